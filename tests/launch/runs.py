"""Runs of several processes as their launchers start them: where a run is, and a kill at a chosen moment."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice
from pathlib import Path

import pytest

from jaxft.training.reader import saved_steps
from tests import tiny
from tests.worlds import ROOT, assert_same_weights, timeless

HEARTBEAT = 10  # seconds
STEPS, EVAL_EVERY, SAVE_EVERY = 12, 4, 2
FINISHED = "summary.json"


def make_world(folder: Path) -> Path:
    """A checkpoint and data of the smallest run that has a test set."""
    tiny.bert(folder / "bert", blocks=1)
    tiny.texts(folder / "train.csv", 48)
    tiny.texts(folder / "test.csv", 12, seed=9)
    return folder


def arguments(world: Path, run: Path, *extra: str) -> list[str]:
    return [
        f"--config={ROOT}/configs/text_classification.py", f"--workdir={run}",
        f"--config.model.path={world / 'bert'}", f"--config.data.train={world / 'train.csv'}",
        f"--config.data.test={world / 'test.csv'}", f"--config.train.steps={STEPS}",
        "--config.train.batch_size=16", f"--config.eval.every={EVAL_EVERY} steps",
        f"--config.checkpoint.every_steps={SAVE_EVERY}", "--config.train.log_every=1",
        "--config.data.max_shapes=1", "--config.log.tensorboard=false",
        f"--config.train.compile_cache={world / 'programs'}", f"--heartbeat={HEARTBEAT}", *extra,
    ]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    one = {"JAX_NUM_CPU_DEVICES": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return {**os.environ, **one, **more}


@contextlib.contextmanager
def launched(*command: object, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher with all its output in `stdout`; what it started and is left at the end is killed."""
    child = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=environment(**more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


def process_numbers(run: Path) -> dict[int, int]:
    """--process_id -> number of the operating system, of the run's processes that live."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # ended meanwhile
            continue
        if "jaxft.train" in words and f"--workdir={run}" in words and state != "Z":
            numbers = [word.split("=")[1] for word in words if word.startswith("--process_id=")]
            if numbers and words[1] == "-m":
                found[int(numbers[-1])] = int(folder.name)
    return found


def ended(run: Path, seconds: float) -> float:
    """Wait until no process of the run lives. Returns how long it took."""
    began = time.monotonic()
    while process_numbers(run):
        assert time.monotonic() - began < seconds, f"{process_numbers(run)} live on"
        time.sleep(0.05)
    return time.monotonic() - began


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def logged(run: Path, kind: str) -> int:
    """The last step of which metrics.jsonl has a row of this kind; 0 for none."""
    rows = re.findall(rf'"kind": "{kind}".*?"step": (\d+)', text_of(run / "metrics.jsonl"))
    rows += re.findall(rf'"step": (\d+).*?"kind": "{kind}"', text_of(run / "metrics.jsonl"))
    return max(map(int, rows), default=0)


def wait_for_step(run: Path, step: int) -> None:
    began = time.monotonic()
    while logged(run, "train") < step:
        assert time.monotonic() - began < 600, f"never came to step {step}"
        time.sleep(0.02)


PHASES = (
    "start-up", "reading", "compile", "step", "save", "evaluation", "late step", "export", "report"
)  # fmt: skip


def has_come_to(phase: str, run: Path, began: float, evaluated: int) -> bool:
    """Whether the run is in this phase or, where it passes quickly, in one of the next.

    Args:
      began: time of this start; earlier ones, which were killed, have left files, too.
      evaluated: the last step whose evaluation was logged before it.
    """

    def written(*paths: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(path.stat().st_ctime > began for path in paths)
        return False

    loaded = written(run / "parameters.json")
    following = min(evaluated + EVAL_EVERY, STEPS)
    return {
        "start-up": True,
        "reading": written(run / ".lock"),
        "compile": loaded,
        "step": loaded and written(run / "metrics.jsonl"),
        "save": written(*(run / "checkpoints").glob("*.orbax-checkpoint-tmp*")),
        "evaluation": loaded and logged(run, "train") >= following,
        "late step": loaded and logged(run, "eval") >= following,
        "export": loaded and logged(run, "eval") >= STEPS,
        "report": loaded and written(run / "best"),
    }[phase]


# Seconds after the sign, at most: a phase has a beginning and a middle.
SPREAD = {"start-up": 3.0, "reading": 2.0, "compile": 2.0, "step": 1.0, "report": 1.0}


@dataclasses.dataclass
class Kill:
    """One kill -9, and what followed."""

    phase: str
    victim: int
    seconds: float | None = None  # until no process was left
    reached: str = ""  # where the run was

    def __str__(self) -> str:
        took = "never" if self.seconds is None else f"{self.seconds:.1f} s"
        return f"killed process {self.victim} in {self.phase} ({self.reached}): others ended after {took}"


def kill(run: Path, phase: str, count: int, draw: random.Random) -> Kill | None:
    """Wait for the phase and kill one of the run's processes; None where it has finished before."""
    sleep, victim = draw.uniform(0, SPREAD.get(phase, 0.2)), draw.randrange(count)
    began, evaluated = time.time(), logged(run, "eval")
    while not has_come_to(phase, run, began, evaluated):
        if (run / FINISHED).exists():
            return None
        assert time.time() - began < 600, f"never came to {phase}"
        time.sleep(0.002)
    time.sleep(sleep)
    while (numbers := process_numbers(run)).keys() != set(range(count)):
        if (run / FINISHED).exists():
            return None
        assert phase == "start-up", f"{numbers} are left in {phase}"
        time.sleep(0.01)
    os.kill(numbers[victim], signal.SIGKILL)
    where = f"step {logged(run, 'train')}, {len(saved_steps(run / 'checkpoints'))} checkpoints"
    return Kill(phase, victim, reached=where)


def files(run: Path) -> set[Path]:
    """All that a run leaves; of its checkpoints the steps."""
    return {
        path.relative_to(run)
        for path in run.rglob("*")
        if path.parent.parent.name != "checkpoints" and len(path.relative_to(run).parts) < 4
        and "cache" not in path.parts
    }  # fmt: skip


def assert_as_undisturbed(run: Path, undisturbed: Path) -> None:
    assert_same_weights(run, undisturbed)
    assert timeless(run) == timeless(undisturbed)
    assert files(run) == files(undisturbed)


def survive_kills(
    launch: Callable[[Path], AbstractContextManager[subprocess.Popen[str]]], folder: Path,
    phases: Sequence[str], count: int, draw: random.Random, bound: float,
) -> list[Kill]:  # fmt: skip
    """One run after the other, killed once in each of these phases and started anew each time.

    Args:
      launch: starts the run in this directory.
      bound: seconds after a kill within which all processes must have ended.
    """
    undisturbed, run, kills = folder / "undisturbed", folder / "run", []
    if not (undisturbed / FINISHED).exists():
        finish(launch, undisturbed)
    for phase in phases:
        with launch(run) as started:
            done = kill(run, phase, count, draw)
            if done is not None:
                done.seconds = ended(run, bound)
                kills.append(done)
                print(done, flush=True)
            said = started.communicate(timeout=600)[0]
        assert (started.returncode == 0) == (done is None), said
        if done is None or phase == PHASES[-1]:
            finish(launch, run)
            assert_as_undisturbed(run, undisturbed)
            shutil.rmtree(run)
    finish(launch, run)
    assert_as_undisturbed(run, undisturbed)
    return kills


def chosen(request: pytest.FixtureRequest) -> tuple[list[str], random.Random]:
    """The phases of as many kills as --kills says, and what draws the moments and the victims."""
    kills, seed = (request.config.getoption(name) for name in ("--kills", "--kill-seed"))
    return list(islice(cycle(PHASES), kills)), random.Random(seed)


def finish(
    launch: Callable[[Path], AbstractContextManager[subprocess.Popen[str]]], run: Path
) -> None:
    with launch(run) as started:
        said = started.communicate(timeout=900)[0]
    assert started.returncode == 0, said
