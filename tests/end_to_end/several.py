"""Real processes of a run, two of two devices each or one of four: their world, start, end and results."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests import tiny
from tests.worlds import ROOT, timeless, weights

HEARTBEAT = 10  # seconds; also what bounds how long the survivors of a kill may take
# Lines of what Gloo says to stdout, in any order: several of its threads may write at once.
GLOOS = re.compile(
    r"^(?:\[Gloo\] Rank|\d|is connected to|peer ranks\.|Expected number of connected peer ranks is :| )*\n",
    re.MULTILINE,
)
STEPS, EVAL_EVERY, SAVE_EVERY = 20, 10, 5
MODES = {
    # Images are mixed with those of the other process.
    "shard": ("image", ("--config.parallel.mode=shard", "--config.data.mixup=0.8")),
    "pmap": ("image", ("--config.parallel.mode=pmap",)),
    # Packed texts and dropout; one process holds only half of every large parameter.
    "fsdp": ("text", ("--config.parallel.fsdp=4",)),
    # Each row is cut over the devices of both, which read the same ones.
    "context": ("text", ("--config.parallel.mode=shard", "--config.parallel.context=4")),
    # What the frozen embeddings give of each token, or all of the body of each text, is kept.
    "kept": ("text", ("--config.parallel.mode=shard", "--config.data.cache_prefix=on",
                      "--config.optim.freeze_below=0", "--config.model.dropout=0.1")),
    "kept_pmap": ("text", ("--config.parallel.mode=pmap", "--config.data.cache_prefix=on",
                           "--config.optim.freeze_below=1")),
}  # fmt: skip


def make_world(folder: Path) -> Path:
    """Checkpoints and data that all tests of a module read."""
    tiny.vit(folder / "vit", blocks=1)
    tiny.images(folder / "images", each=24)
    tiny.bert(folder / "bert", blocks=1, width=256)
    tiny.texts(folder / "train.csv", 48)
    return folder


def arguments(world: Path, workdir: Path, mode: str, *extra: str) -> list[str]:
    kind, flags = MODES[mode]
    model, data = ("vit", "images") if kind == "image" else ("bert", "train.csv")
    # A low rate: the true gradient of a key's bias is zero, and Adam makes steps of its rounding.
    return [
        f"--config={ROOT}/configs/{kind}_classification.py", f"--workdir={workdir}",
        f"--config.model.path={world / model}", f"--config.data.train={world / data}",
        f"--config.train.steps={STEPS}", "--config.train.batch_size=16",
        f"--config.eval.every={EVAL_EVERY} steps", f"--config.checkpoint.every_steps={SAVE_EVERY}",
        "--config.train.log_every=2", "--config.optim.lr=1e-4", "--config.train.compile_cache=",
        "--config.log.tensorboard=false", "--config.data.max_shapes=2",
        "--config.checkpoint.check_replicas=true", *flags, *extra,
    ]  # fmt: skip


def environment(devices: int) -> dict[str, str]:
    return {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHON": sys.executable}


@dataclasses.dataclass
class Processes:
    """A launch. Leaving the block ends what is left of it."""

    children: list[subprocess.Popen]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_) -> None:
        for child in self.children:
            child.kill()
            child.communicate()

    def end(self, seconds: float = 300) -> tuple[list[int], list[str], list[str]]:
        """Statuses, what was printed, and what went to stderr, without Gloo's own lines."""
        pairs = [child.communicate(timeout=seconds) for child in self.children]
        outputs = [GLOOS.sub("", text) for text, _ in pairs]
        return [child.returncode for child in self.children], outputs, [text for _, text in pairs]


# Its argument's command lines, one run after the other; the first joins the other processes.
RUNS = """
import json, sys
from jaxft import train
sys.exit(max(train.main(command) for command in json.loads(sys.argv[1])))
"""


def launch(*commands: list[str], script: Path | None = None) -> Processes:
    """One process of two devices for each of the command lines; script: in place of jaxft.train."""
    program = ["-m", "jaxft.train"] if script is None else [str(script)]
    joined = _joined(len(commands))
    return Processes(
        [
            _started([*program, *command, *join])
            for command, join in zip(commands, joined, strict=True)
        ]
    )


def launch_runs(*commands: list[str]) -> Processes:
    """Two processes of two devices, each with the runs of these command lines."""
    (first, *others), joined = commands, _joined(2)
    return Processes([_started(_runs([*first, *join], *others)) for join in joined])


def _runs(*commands: list[str]) -> list[str]:
    return ["-c", RUNS, json.dumps([["train", *command] for command in commands])]


def _started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment(2), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _joined(number: int) -> list[list[str]]:
    """The flags of each of so many processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        [f"--coordinator=localhost:{port}", f"--num_processes={number}", f"--process_id={i}",
         f"--heartbeat={HEARTBEAT}"]
        for i in range(number)
    ]  # fmt: skip


def alone(*commands: list[str]) -> None:
    """The runs of these command lines, one after the other, in one process of four devices."""
    subprocess.run(
        [sys.executable, *_runs(*commands)], cwd=ROOT, env=environment(4), check=True,
        capture_output=True, timeout=600,
    )  # fmt: skip


def assert_close(found: Path, expected: Path, atol: float) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=atol, err_msg=name)


def evaluations(run: Path) -> list[dict]:
    return [row for row in timeless(run) if row["kind"] == "eval"]


def wait_for_step(run: Path, step: int, started: Processes) -> None:
    while not re.search(f'"step": {step},', read(run / "metrics.jsonl")):
        assert all(child.poll() is None for child in started.children), "ended too early"
        time.sleep(0.02)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
