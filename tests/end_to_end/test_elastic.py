"""A run that is saved on some devices goes on, on others: the same examples, in the same order, to rounding.

Each leg of a run is a process with a number of devices of its own, in which it is killed. What its updates
were made of is written down as it happens, and held against the run that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from jaxft import train
from jaxft.experiment import loop
from tests.worlds import ROOT, arguments, rows, timeless, weights

STEPS = 12
# (process count, devices of each, flags): in turn, and killed after these updates.
LEGS = (
    (1, 8, ("--config.parallel.mode=shard",), 3),
    (1, 4, ("--config.parallel.mode=shard", "--config.parallel.fsdp=2"), 6),
    (1, 2, ("--config.parallel.mode=pmap",), 8),
    (1, 1, ("--config.parallel.mode=jit",), 9),
    (1, 8, ("--config.parallel.mode=shard", "--config.parallel.tensor=2"), 10),
    (1, 8, ("--config.parallel.mode=shard",), 0),
)
# Reads commands, each with the update after which it is killed and the file for what it saw.
LEG = """
import json, os, signal, sys
from jaxft import train
from jaxft.experiment import loop
from jaxft.training.logs import Logs

class Killed(BaseException):
    pass

class Seen:
    def __init__(self, batches, path):
        self.batches, self.path = batches, path
    def __len__(self):
        return len(self.batches)
    def __getitem__(self, step):
        batch = self.batches[step]
        rows = sorted(batch["index"][batch["index"] >= 0].tolist())
        with open(self.path, "a") as file:
            file.write(json.dumps([step, rows]) + "\\n")
        return batch

iterate, train_row = loop.iterate, Logs.train
for argv, kill, terminate, path in json.loads(sys.argv[1]):
    loop.iterate = lambda batches, *rest, **more: iterate(Seen(batches, path), *rest, **more)
    def row(self, at, *rest):
        train_row(self, at, *rest)
        if at == kill and terminate and self.enabled:
            os.kill(os.getpid(), signal.SIGTERM)
        elif at == kill and not terminate:
            raise Killed
    Logs.train = row
    try:
        status = train.main(argv)
    except Killed:
        status = 9
    assert status == (0 if not kill else 143 if terminate else 9), (argv, status)
"""


def went(commands: list[tuple[list[str], int, Path]], processes: int, devices: int) -> None:
    """Run these commands one after the other, in so many processes of so many devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(processes):
        join = [f"--coordinator=localhost:{port}", f"--num_processes={processes}",
                f"--process_id={number}"] if processes > 1 else []  # fmt: skip
        given = [
            ([*argv, *join], kill, processes > 1, f"{path}.{number}")
            for argv, kill, path in commands
        ]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", LEG, json.dumps(given)],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        )
    try:
        ended = [child.communicate(timeout=1800) for child in children]
    finally:
        for child in children:
            child.kill()
    assert not any(child.returncode for child in children), ended


def seen(folder: Path, name: str) -> dict[int, set[tuple[int, ...]]]:
    """By update, what its batch was each time that it was made, over all processes of a leg."""
    found: dict[int, set[tuple[int, ...]]] = {}
    for leg in sorted({path.name.rpartition(".")[0] for path in folder.glob(f"{name}-*.rows.*")}):
        parts: dict[int, list[int]] = {}
        for path in folder.glob(f"{leg}.*"):
            for line in path.read_text().splitlines():
                step, own = json.loads(line)
                parts.setdefault(step, []).extend(own)
        for step, own in parts.items():
            found.setdefault(step, set()).add(tuple(sorted(own)))
    return found


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(run) if row["kind"] == "train"}


def judged(run: Path) -> list[tuple]:
    """What was evaluated and what came of it, but for rounding."""
    return [(row["step"], row.get("best")) for row in timeless(run) if row["kind"] == "eval"]


TEXT = (
    "--config.train.log_every=1",
    "--config.checkpoint.every_steps=1",
    "--config.data.max_shapes=2",
)
SCENARIOS = {
    # The 86 rows are five batches and a part of one, each of two microbatches, with dropout.
    "text": ("--config.train.accumulate=2", "--config.optim.average=ema"),
    "mixture": ("--config.data.train=",
                "--config.data.mixture=(('{world}/train.csv',3),('{world}/test.csv',1))"),
    "stream": ("--config.data.train={world}/train.csv", "--config.data.stream=50",
               "--config.data.eval={world}/test.csv"),
    "stages": ("--config.optim.unfreeze=top_down", "--config.optim.unfreeze_every=5 steps",
               "--config.optim.average=swa", "--config.optim.average_from=4 steps"),
    "patience": ("--config.eval.metric=loss", "--config.eval.every=2 steps", "--config.eval.patience=4",
                 "--config.eval.min_delta=100"),
    "statistics": ("--config.model.batch_stats=train", "--config.optim.freeze_below=0"),
    "mixed": ("--config.data.mixup=0.8", "--config.model.stochastic_depth=0.2"),
}  # fmt: skip
MODELS = {"statistics": "resnet", "mixed": "vit"}


def command(world: Path, workdir: Path, name: str, flags: tuple[str, ...]) -> list[str]:
    own = (flag.format(world=world) for flag in SCENARIOS[name])
    if MODELS.get(name) == "resnet":  # which has no matrix products to share
        flags = tuple(flag.replace("tensor", "fsdp") for flag in flags)
    # A low rate: the gradient of a key's bias is rounding alone, of which Adam makes whole steps.
    return arguments(
        world, workdir, *TEXT, "--config.optim.lr=1e-4", "--config.train.batch_size=16", *own, *flags,
        model=MODELS.get(name, "one_block"), mode="shard",
    )  # fmt: skip


@pytest.fixture(scope="module")
def disturbed(world, tmp_path_factory):
    """Every scenario, undisturbed on eight devices ('NAME') and over all legs ('NAME-legs')."""
    folder = tmp_path_factory.mktemp("elastic")
    for number, (processes, devices, flags, kill) in enumerate(LEGS):
        commands = []
        for name in SCENARIOS:
            if not number:
                argv = command(world, folder / name, name, flags)
                commands.append((argv, 0, folder / f"{name}-whole.rows"))
            ends = 0 if name == "patience" and kill > 9 else kill
            argv = command(world, folder / f"{name}-legs", name, flags)
            commands.append((argv, ends, folder / f"{name}-{number}.rows"))
        went(commands, processes, devices)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_update_has_its_examples_on_any_devices(disturbed, name):
    found = seen(disturbed, name)
    # One batch an update, whoever made it and however often.
    assert set(found) == set(range(STEPS)) and {len(batch) for batch in found.values()} == {1}
    ours, theirs = losses(disturbed / f"{name}-legs"), losses(disturbed / name)
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, rel=2e-5), name
    assert judged(disturbed / f"{name}-legs") == judged(disturbed / name)
    for key, value in weights(disturbed / name).items():
        assert weights(disturbed / f"{name}-legs")[key] == pytest.approx(value, abs=2e-5), key


@pytest.mark.slow
def test_patience_counts_on_over_all_devices(disturbed):
    whole, legs = (
        json.loads((disturbed / name / "summary.json").read_text())
        for name in ("patience", "patience-legs")
    )
    assert whole["stopped_early"] and whole["steps"] == 10
    for key in ("stopped_early", "steps", "best_step"):
        assert legs[key] == whole[key]
    assert legs["best_metric"]["value"] == pytest.approx(whole["best_metric"]["value"], rel=1e-5)


@pytest.mark.slow
def test_any_number_of_processes_goes_on(world, tmp_path):
    flags = ("--config.parallel.mode=shard",)
    went(
        [(command(world, tmp_path / "text", "text", flags), 0, tmp_path / "text-whole.rows")], 1, 8
    )
    legs = ((4, 2, 3), (2, 1, 6), (1, 3, 9), (2, 4, 0))
    for number, (processes, devices, kill) in enumerate(legs):
        argv = command(world, tmp_path / "legs", "text", flags)
        went([(argv, kill, tmp_path / f"text-{number}.rows")], processes, devices)
    found = seen(tmp_path, "text")
    assert set(found) == set(range(STEPS))
    assert losses(tmp_path / "legs") == pytest.approx(losses(tmp_path / "text"), rel=2e-5)


def test_a_run_on_eight_devices_goes_on_on_one(world, tmp_path, capsys, monkeypatch):
    """With dropout, in packed rows, which lie as they did."""
    batches: dict[int, dict] = {}
    times = Counter[int]()
    iterate = loop.iterate

    def noted(source, *rest, **more):
        class Seen:
            def __len__(self):
                return len(source)

            def __getitem__(self, step):
                batch = source[step]
                before = batches.setdefault(step, batch)
                times[step] += 1
                assert batch.keys() == before.keys()
                for name in batch:
                    shorter = min(len(batch[name]), len(before[name]))
                    assert (batch[name][:shorter] == before[name][:shorter]).all(), name
                assert (batch["index"][shorter:] == -1).all()
                return batch

        return iterate(Seen(), *rest, **more)

    monkeypatch.setattr(loop, "iterate", noted)

    def argv(name: str, mode: str) -> list[str]:
        own = (*TEXT, "--config.data.max_shapes=1", "--config.optim.lr=1e-4", "--config.train.steps=4",
               "--config.eval.every=100%", "--config.train.batch_size=10",
               "--config.checkpoint.keep=4")  # fmt: skip
        return arguments(world, tmp_path / name, *own, mode=mode)

    assert train.main(argv("whole", "shard")) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    assert train.main([*argv("other", "jit"), "--resume_from=1"]) == 0
    out = capsys.readouterr().out
    assert "config.parallel.mode: 'shard' -> 'jit'" in out
    assert "train.batch_size=10 does not divide over 8 devices" in out and "8 or 16 would" in out
    ours, theirs = losses(tmp_path / "other"), losses(tmp_path / "whole")
    assert ours == pytest.approx(theirs, rel=1e-5) and set(batches) == set(range(4))
    # The steps after the first were done again; on some machines their losses have the same bits.
    assert [times[step] for step in range(4)] == [1, 2, 2, 2]


def test_a_run_does_not_begin_on_devices_that_would_have_nothing_to_do(world, tmp_path):
    few = ("--config.train.batch_size=4", "--config.train.steps=1", "--config.eval.every=100%")
    with pytest.raises(ValueError, match="batch_size=4 leaves 4 of 8 devices .*: give 8 or more"):
        train.main(arguments(world, tmp_path / "run", *few, mode="shard"))
