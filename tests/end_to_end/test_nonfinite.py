"""Runs that meet a batch whose loss is not finite: what is left out, and that a kill changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxft import train
from jaxft.data.loader import TextBatches
from jaxft.terminal.errors import run_command
from jaxft.training.nonfinite import NAME
from tests.worlds import arguments, assert_same_weights, killed_at, rows, timeless, weights

BAD = (6, 7)  # steps whose batches hold a weight that is no number; evaluations have fewer batches
IDEAS = {
    "sam": ("--config.optim.sam_radius=0.05",),
    "accumulated": ("--config.train.accumulate=2",),
    "average": ("--config.optim.average=ema",),
    "schedule free": ("--config.optim.schedule_free=true", "--config.optim.schedule=constant"),
    "stages": ("--config.optim.unfreeze=top_down", "--config.optim.unfreeze_every=5 steps"),
}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    original = TextBatches.__getitem__

    def poisoned(self, step):
        batch = original(self, step)
        if step + 1 in BAD:
            batch["weight"] = np.where(batch["weight"] > 0, np.nan, 0).astype(np.float32)
        return batch

    monkeypatch.setattr(TextBatches, "__getitem__", poisoned)


def command(world: Path, workdir: Path, how: str, *extra: str, mode: str = "jit") -> list[str]:
    return arguments(world, workdir, f"--config.train.on_nonfinite={how}", *extra, mode=mode)


def noted(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / NAME).read_text().splitlines()]


def check_both(
    world: Path, folder: Path, how: str, *extra: str, mode: str = "jit", kills: tuple = (5, 6, 10)
) -> None:
    """An undisturbed run, and one that is killed before, between and after the bad batches."""
    whole, broken = folder / "whole", folder / "broken"
    argv = command(world, broken, how, *extra, mode=mode)
    assert train.main(command(world, whole, how, *extra, mode=mode)) == 0
    for step in kills:
        killed_at(step, argv)
    assert train.main(argv) == 0
    assert_same_weights(broken, whole)
    assert timeless(broken) == timeless(whole)
    assert noted(broken) == noted(whole)
    assert all(np.isfinite(x).all() for x in weights(whole).values())
    found = noted(whole)
    assert [(r["step"], r["done"], r["loss"]) for r in found] == [(s, how, "nan") for s in BAD]
    assert all(len(r["rows"]) == len(set(r["rows"])) > 1 and r["leaves"] > 0 for r in found)
    trained = {r["step"]: r["nonfinite"] for r in rows(whole) if r["kind"] == "train"}
    assert (trained[4], trained[8], trained[12]) == (0, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "shard", "pmap"])
@pytest.mark.parametrize("how", ["skip", "rollback"])
def test_a_run_that_leaves_batches_out_ends_bitwise_the_same_when_it_is_killed(
    world, tmp_path, how, mode
):
    check_both(world, tmp_path, how, mode=mode)


@pytest.mark.slow
@pytest.mark.parametrize("idea", IDEAS)
@pytest.mark.parametrize("how", ["skip", "rollback"])
def test_so_it_does_with_every_idea(world, tmp_path, how, idea):
    check_both(world, tmp_path, how, *IDEAS[idea])


@pytest.mark.slow
def test_both_ways_leave_the_same_out_and_so_does_a_trial(world, tmp_path):
    for how in ("skip", "rollback"):
        assert train.main(command(world, tmp_path / how, how)) == 0
    ours, theirs = weights(tmp_path / "skip"), weights(tmp_path / "rollback")
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_stopping_then_skipping_goes_on_in_the_same_directory(world, tmp_path, capsys):
    argv = arguments(world, tmp_path / "run", "--config.checkpoint.every_steps=2")
    assert run_command(train.main, argv) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the loss is nan at step 6; checkpoints of earlier" in said
    assert "config.train.on_nonfinite='skip'" in said
    assert [r["done"] for r in noted(tmp_path / "run")] == ["stop"]
    few = [*argv, "--config.train.on_nonfinite=skip", "--config.train.max_nonfinite=1"]
    assert run_command(train.main, few) == 1
    assert "at step 7, and 1 updates were left out before it" in capsys.readouterr().err
    assert train.main([*argv, "--config.train.on_nonfinite=skip"]) == 0
    assert [(r["step"], r["done"]) for r in noted(tmp_path / "run")] == [(6, "skip"), (7, "skip")]
