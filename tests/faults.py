"""Training processes to which something happens at a chosen phase, or at a random moment.

Processes are forked from one that has imported everything, so that a launch takes a second and not five.
`python -m tests.faults --kills 100 --seed 0` kills that many and compares what they leave (see `kill_often`).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.worlds import ROOT, arguments, assert_same_weights, timeless

# Reads {argv, fault, out, err, seen} a line and forks; says the number of the child and, when it has ended,
# its status as subprocess has it and its CPU seconds.
_SERVER = """
import importlib, json, os, sys
import jaxft.train, jaxft.experiment.finish, jaxft.analysis.report
from jaxft.terminal.errors import run_command
from tests import faults

for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        for number, path in ((1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        faults.install(asked["fault"], asked["seen"])
        status = run_command(importlib.import_module(asked["module"]).main, asked["argv"])
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
    _, status, used = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, flush=True)
"""
STEPS = 12  # of a run
# Phase -> (module, object or '', function that is called when it begins).
PHASES = {
    "start": ("jaxft.experiment.workdir", "", "RunDirectory"),
    "tokens": ("jaxft.data.token_cache", "", "writing"),
    "compile": ("jaxft.training.programs", "Programs", "compile"),
    "log": ("jaxft.training.rows", "RowFile", "write"),
    "evaluation": ("jaxft.experiment.loop", "", "evaluate"),
    "predictions": ("jaxft.experiment.loop", "", "write_predictions"),
    "save": ("jaxft.training.checkpoint", "Checkpoints", "save"),
    "written": ("jaxft.training.digests", "", "write"),
    "visible": ("jaxft.training.digests", "", "seal"),
    "export": ("jaxft.models.checkpoint.hf", "", "write_checkpoint"),
    "report": ("jaxft.experiment.finish", "", "report"),
    "summary": ("jaxft.experiment.finish", "", "_summary"),
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens: at the nth beginning of a phase, and so many seconds later.

    Attributes:
      action: 'kill', 'term' or 'interrupt' (signals to itself), 'fill' or 'read_only' (of `place`).
    """

    phase: str
    action: str
    nth: int = 1
    delay: float = 0.0
    place: str = ""


def install(fault: dict | None, seen: str) -> None:
    """In the training process: wait for the phase, and write down which rows each update reads."""
    if fault is not None:
        _wait_for(Fault(**fault))
    if seen:
        _watch(seen)


def _wait_for(fault: Fault) -> None:
    import importlib
    import threading

    if fault.action == "read_only":
        _obey_rights()
    module, owner, name = PHASES[fault.phase]
    target = importlib.import_module(module)
    target = getattr(target, owner) if owner else target
    original, count = getattr(target, name), [0]

    def reached(*args, **kwargs):
        count[0] += 1
        if count[0] == fault.nth:
            if fault.delay:
                threading.Timer(fault.delay, _happen, [fault]).start()
            else:
                _happen(fault)
        return original(*args, **kwargs)

    setattr(target, name, reached)


def _obey_rights() -> None:
    """Make the superuser one whom the rights of files concern, in this process and its coming threads."""
    overrides = ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= overrides & 0xFFFFFFFF
    data[1] &= overrides & 0xFFFFFFFF
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


def _happen(fault: Fault) -> None:
    signals = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}
    if fault.action in signals:
        os.kill(os.getpid(), signals[fault.action])
    elif fault.action == "fill":
        fill(Path(fault.place))
    else:
        for folder in [Path(fault.place), *Path(fault.place).rglob("*")]:
            if folder.is_dir():
                folder.chmod(0o555)


def fill(folder: Path) -> None:
    """Leave no byte free on the file system of `folder`."""
    with contextlib.suppress(OSError), open(folder / "ballast", "wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def writable_again(folder: Path) -> None:
    """After 'fill' or 'read_only'."""
    (folder / "ballast").unlink(missing_ok=True)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def _watch(seen: str) -> None:
    """Of every update a line: its number, and the rows of its batch."""
    from jaxft.training.programs import Programs
    from jaxft.training.step import TrainState

    original = Programs.__call__

    def watched(self, *args):
        if isinstance(args[0], TrainState):
            index = np.asarray(args[1]["index"])
            with open(seen, "a") as file:
                row = [int(args[0].step) + 1, sorted(index[index >= 0].tolist())]
                file.write(json.dumps(row) + "\n")
        return original(self, *args)

    Programs.__call__ = watched  # type: ignore[method-assign]


class Server:
    """Starts training processes; use `server`.

    Attributes:
      seconds: of CPU that the last one took.
    """

    seconds = 0.0

    def __init__(self, folder: Path):
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(
        self, argv: list[str], fault: Fault | None = None, *, kill_after: float | None = None,
        seen: Path | None = None, module: str = "jaxft.train",
    ) -> tuple[int, str]:  # fmt: skip
        """(status, what it said as errors) of a training process, or of another command's.

        kill_after: CPU seconds, so that other work on the machine does not move the moment.
        """
        out, err = self._folder / "out", self._folder / "err"
        asked = {
            "argv": argv, "out": str(out), "err": str(err), "seen": str(seen or ""), "module": module,
            "fault": None if fault is None else dataclasses.asdict(fault),
        }  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if kill_after is not None:
            while (used := _cpu_seconds(child)) is not None and used < kill_after:
                time.sleep(0.002)
            if used is not None:
                with contextlib.suppress(ProcessLookupError):  # waited for as soon as it has ended
                    os.kill(child, signal.SIGKILL)
        status, seconds = self._process.stdout.readline().split()
        self.seconds = float(seconds)
        return int(status), err.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _cpu_seconds(number: int) -> float | None:
    """What a process has used by now; None once it has ended."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    ticks = int(fields[11]) + int(fields[12])
    return None if fields[0] == "Z" else ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A `Server` that ends with the block; what its processes say goes into `folder`."""
    started = Server(folder)
    try:
        yield started
    finally:
        started.close()


def command(world: Path, run: Path, *extra: str) -> list[str]:
    """A run of two epochs with checkpoints, evaluations and a test."""
    return arguments(
        world, run, f"--config.train.steps={STEPS}", "--config.eval.every=6 steps",
        "--config.checkpoint.every_steps=2", f"--config.data.test={world}/test.csv", *extra,
    )  # fmt: skip


def check_readable(run: Path, *, export_to: Path | None = None) -> None:
    """That nothing in a run directory is half there for those who read it."""
    from jaxft import compare, export
    from jaxft.terminal.errors import run_command
    from jaxft.training.mesh import make_parallel
    from jaxft.training.reader import CheckpointReader

    reader = CheckpointReader(run / "checkpoints", make_parallel("jit"))
    for step in reader.steps():
        assert not reader.damage(step), reader.damage(step)
    for path in run.glob("*.json"):
        json.loads(path.read_text())
    if (run / "metrics.jsonl").exists():
        lines = (run / "metrics.jsonl").read_text().split("\n")
        assert all(json.loads(line)["kind"] for line in lines[:-1])
    for page in run.glob("*.html"):
        assert page.read_text().rstrip().endswith("</html>")
    commands = [(compare.main, ["compare", str(run)])] if (run / "metrics.jsonl").exists() else []
    if export_to is not None and reader.steps():
        commands.append((export.main, ["export", f"--run={run}", f"--output={export_to}"]))
    for main, argv in commands:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = run_command(main, argv)
        begun = (run / "config.json").exists() and reader.steps()
        assert status == 0 or not begun, said.getvalue()
        assert said.getvalue().count("\n") <= 1, said.getvalue()


def check_same(run: Path, whole: Path, seen: Path, rows: int, epoch: int) -> None:
    """That a finished run is the undisturbed one, and read each row once an epoch."""
    assert_same_weights(run, whole)
    assert timeless(run) == timeless(whole)
    for name in ("eval", "test"):
        ours, theirs = (p / f"predictions/{name}.jsonl" for p in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes()
    by_step: dict[int, list[int]] = {}
    for step, index in map(json.loads, seen.read_text().splitlines()):
        assert by_step.setdefault(step, index) == index, f"another batch at step {step}"
    assert sorted(by_step) == list(range(1, STEPS + 1))
    for first in range(1, STEPS + 1, epoch):
        read = sorted(i for step in range(first, first + epoch) for i in by_step[step])
        assert len(read) == rows and len(set(read)) == rows


def kill_often(world: Path, folder: Path, kills: int, seed: int = 0, say=print) -> dict[str, int]:
    """Kill training processes until `kills` have died; returns how many died in which way.

    Half of them die at a moment that is uniform over the CPU time of an undisturbed run, half at or soon
    after the beginning of a random phase. After each the run directory is read as other commands read it;
    a run that ends is held against an undisturbed one, and the next begins.
    """
    rng, died, runs = random.Random(seed), dict[str, int](), 0
    with server(folder) as started:
        # The second one is timed: the first has filled the cache of compiled programs.
        for name in ("first", "whole"):
            status, err = started.run(command(world, folder / name))
            assert status == 0, err
        seconds = started.seconds
        while sum(died.values()) < kills:
            runs += 1
            run, seen = folder / f"run{runs}", folder / f"seen{runs}"
            argv = command(world, run)
            while True:
                fault, after, where = None, None, "a random moment"
                if sum(died.values()) < kills:
                    if rng.random() < 0.5:
                        after = rng.uniform(0, seconds)
                    else:
                        where = rng.choice(list(PHASES))
                        delay = rng.choice([0.0, rng.uniform(0, 0.05)])
                        fault = Fault(where, "kill", nth=rng.choice([1, 1, 2, 3]), delay=delay)
                status, err = started.run(argv, fault, kill_after=after, seen=seen)
                if status == 0:
                    break
                assert status == -signal.SIGKILL, (where, status, err)
                died[where] = died.get(where, 0) + 1
                out = folder / "exported" if sum(died.values()) % 5 == 0 else None
                if run.exists():
                    check_readable(run, export_to=out)
            check_same(run, folder / "whole", seen, rows=86, epoch=6)
            say(f"run {runs} ended as undisturbed; {sum(died.values())} kills so far")
    died["runs"] = runs
    return died


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    from tests import conftest, worlds  # noqa: F401 its settings of XLA and the cache

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "world").mkdir()
        world = worlds.make(Path(folder) / "world")
        print(kill_often(world, Path(folder), given.kills, given.seed))


if __name__ == "__main__":
    main()
