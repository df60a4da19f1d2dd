"""What is pruned of trials that run together, after a kill at any report."""

from __future__ import annotations

import datetime

import pytest
from optuna.trial import FrozenTrial, TrialState

from jaxft.search.sweeps.hearing import Hearing
from jaxft.search.sweeps.optuna_study import Plan, Pruning

# Losses of four trials; the last is lost after its second evaluation.
LOSSES = ([1.0, 0.9, 0.8, 0.7], [0.9, 0.95, 0.9, 0.9], [1.5, 0.7, 0.75, 0.6], [0.7, 0.6])
PLAN = Plan("random", "halving", ("loss",), ("min",), 0, 4, 4)


def asked(number: int) -> FrozenTrial:
    return FrozenTrial(
        number=number, state=TrialState.RUNNING, value=None, datetime_start=datetime.datetime.now(),
        datetime_complete=None, params={}, distributions={}, user_attrs={}, system_attrs={},
        intermediate_values={}, trial_id=number,
    )  # fmt: skip


class Killed(BaseException):
    pass


def run(path, kept: dict, kill: int, *, order=None) -> dict[tuple[int, int], bool]:
    """Decisions of all reports, up to a kill before one of them. kept: trials that have ended, by number."""
    trials = [asked(number) for number in range(4)]
    hearing = Hearing(Pruning(trials, range(4), PLAN), path, list(range(4)), "loss")
    for place in kept:
        for loss in LOSSES[place][: kept[place]]:
            hearing.report(place, {"loss": loss})
    decided, before = {}, dict(kept)
    for step in range(4):
        for place in range(4):
            if place in before or step >= len(LOSSES[place]) or decided.get((place, step - 1)):
                continue
            kill -= 1
            if kill == 0:
                raise Killed
            decided[place, step] = hearing.report(place, {"loss": LOSSES[place][step]})
            if decided[place, step] or step + 1 == len(LOSSES[place]):
                kept[place] = step + 1
    return decided


@pytest.mark.parametrize("noted", [True, False])
def test_a_kill_at_any_report_changes_no_decision(tmp_path, noted):
    whole = run(tmp_path / "whole.jsonl", {}, 0)
    assert any(whole.values()) and not all(whole.values())
    same = []
    for kill in range(1, len(whole) + 1):
        path, kept = tmp_path / f"{kill}.jsonl", dict[int, int]()
        with pytest.raises(Killed):
            run(path, kept, kill)
        if not noted:
            path.unlink(missing_ok=True)
        elif path.exists():  # the last line may be cut off
            path.write_text(path.read_text() + "[0, 9, 0.1")
        again = run(path, kept, 0)
        same.append(all(whole[key] == decision for key, decision in again.items()))
    # Without notes some kills do change what is pruned, so there is something to be held.
    assert all(same) == noted


def test_the_notes_are_gone_when_the_batch_is_over(tmp_path):
    hearing = Hearing(Pruning([asked(0)], [0], PLAN), tmp_path / "reports/0.jsonl", [0], "loss")
    hearing.report(0, {"loss": 1.0})
    assert (tmp_path / "reports/0.jsonl").read_text() == "[0, 1, 1.0, false]\n"
    hearing.over()
    assert not (tmp_path / "reports/0.jsonl").exists()
