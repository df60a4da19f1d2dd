"""Sweeps of real trials in real processes: killed, shared, and their best config trained again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxft import sweep, train
from tests.worlds import ROOT, arguments

SPACE = """
from jaxft.search.sweeps.domains import Choice, Float, Integer


def get_space():
    return {
        "optim.lr": Float(1e-4, 1e-1, log=True),
        "optim.weight_decay": Float(0.0, 0.2),
        "optim.optimizer": Choice("adamw", "sgd"),
        "train.seed": Integer(0, 2),
    }
"""


def command(world: Path, folder: Path, trials: int) -> list[str]:
    """The command line of a sweep into `folder`."""
    space = folder.parent / "space.py"
    space.write_text(SPACE)
    own = ["--config.eval.metric=loss", "--config.eval.every=2 steps", f"--space={space}"]
    return [*arguments(world, folder, *own), f"--trials={trials}", "--at_once=4"]


def start(world: Path, folder: Path, trials: int, *more: str) -> subprocess.Popen:
    _, *flags = [*command(world, folder, trials), *more]
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jaxft.sweep", *flags], stdout=log, stderr=log, cwd=ROOT
        )


def found(folder: Path) -> list[dict]:
    """Trials without what must differ: times."""
    trials = json.loads((folder / "sweep.json").read_text())["rows"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in trials]


def ended(folder: Path) -> int:
    return len(list(folder.glob("trials/*.json")))


@pytest.mark.slow
def test_the_best_config_trained_again_has_the_value_of_its_trial(world, tmp_path):
    assert sweep.main(command(world, tmp_path / "s", 3)) == 0
    best = json.loads((tmp_path / "s/sweep.json").read_text())
    row = best["rows"][best["best"][0]]
    again = ["train", f"--config={tmp_path}/s/best.py", f"--workdir={tmp_path}/again"]
    assert train.main(again) == 0
    summary = json.loads((tmp_path / "again/summary.json").read_text())
    assert [summary["eval"]["loss"]] == row["values"]


@pytest.mark.slow
def test_thirty_trials_killed_five_times_are_those_of_an_undisturbed_sweep(world, tmp_path):
    assert start(world, tmp_path / "whole", 30).wait() == 0
    rng, folder, kills = np.random.default_rng(0), tmp_path / "killed", 0
    while kills < 5:
        process, until = start(world, folder, 30), ended(folder) + int(rng.integers(1, 6))
        while process.poll() is None and ended(folder) < until:
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 1)))
        assert process.poll() is None, Path(f"{folder}.log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert start(world, folder, 30).wait() == 0
    assert found(folder) == found(tmp_path / "whole")
    states = {row["state"] for row in found(folder)}
    assert states == {"complete", "pruned"} and len(found(folder)) == 30


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_one_takes_over_what_the_other_left(world, tmp_path):
    folder = tmp_path / "s"
    first, second = start(world, folder, 24), start(world, folder, 24)
    while ended(folder) < 6:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait() == 0
    log = Path(f"{folder}.log").read_text()
    # Not the line of the best one by itself, which has no colon after its number.
    numbers = [int(number) for number in re.findall(r"^trial (\d+):", log, re.MULTILINE)]
    assert len(numbers) == len(set(numbers))  # each was told once
    assert [row["number"] for row in found(folder)] == list(range(24))
    assert {row["state"] for row in found(folder)} == {"complete", "pruned"}
