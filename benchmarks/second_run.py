"""Seconds from the start of a process to its first logged step: cold, again, and with another seed and rate.

    python benchmarks/second_run.py --model DIR --train train.csv [--steps 20]

Each line is a process of its own over one compilation cache that begins empty. Programs that the cache
did not have are counted by its new files. Another version is measured with its folder in PYTHONPATH.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("model", "checkpoint directory", required=True),
    Flag("train", "training data", required=True),
    Flag("steps", "optimizer updates of a run", default=20),
)
_RUNS = {
    "cold": (),
    "the same again": (),
    "another seed and rate": ("--config.train.seed=1", "--config.optim.lr=1e-4"),
    "another length, decay and warm-up": (
        "--config.optim.weight_decay=0.1", "--config.optim.layer_decay=0.9",
        "--config.optim.warmup=3 steps", "--config.train.seed=2",
    ),
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Print one line a run."""
    values, _ = parse(argv, FLAGS)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        for number, (name, extra) in enumerate(_RUNS.items()):
            steps = values.steps + (2 if "length" in name else 0)
            before = _programs(cache)
            seconds = _seconds_to_first_step(
                Path(folder, f"run{number}"), cache, values.model, values.train, steps, extra
            )
            new = len(_programs(cache) - before)
            print(f"{name:34} {seconds:6.2f} s, {new} programs compiled", flush=True)
    return 0


def _seconds_to_first_step(
    workdir: Path, cache: Path, model: str, data: str, steps: int, extra: Sequence[str]
) -> float:
    command = [
        sys.executable, "-m", "jaxft.train", "--config=configs/text_classification.py",
        f"--workdir={workdir}", f"--config.model.path={model}", f"--config.data.train={data}",
        f"--config.train.steps={steps}", "--config.train.log_every=1",
        f"--config.train.compile_cache={cache}", f"--config.data.cache={cache.parent}/tokens", *extra,
    ]  # fmt: skip
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        log = workdir / "metrics.jsonl"
        while not (log.exists() and '"kind": "train"' in log.read_text()):
            if process.poll() is not None:
                raise ValueError(f"the run ended with status {process.returncode}")
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        process.wait()
    return seconds


def _programs(cache: Path) -> set[str]:
    return (
        {name for name in os.listdir(cache) if name.endswith("-cache")} if cache.is_dir() else set()
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
