"""What a paired test says, in words, and which cross-validations are no pair."""

from __future__ import annotations

import dataclasses

import pytest

from jaxft.analysis import paired, validation
from jaxft.analysis.validation import Measured, Validation


def of(values, *, metric="accuracy", folds=5, **changes) -> Validation:
    trials = tuple(
        Measured(f"t{i}", 0, i, i, 0, 80, 20, 10, "", 1.0, {metric: v, "mcc": v / 2})
        for i, v in enumerate(values)
    )
    found = Validation(
        "text_classification", metric, ("loss",), (metric, "mcc"), folds, 1, "last",
        {"optim.lr": 1e-3, "train.seed": 0}, "rows", trials, (), (),
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


LOW = [0.80, 0.82, 0.79, 0.81, 0.83]
HIGH = [0.90, 0.93, 0.88, 0.92, 0.92]


def test_the_better_one_is_named_by_what_the_metric_means():
    better = paired.verdict(of(LOW), of(HIGH, config={"optim.lr": 1e-2}))
    assert better.startswith("B is better in accuracy by 0.1000 (95% interval of B - A: +0.0")
    worse = paired.verdict(of(LOW, metric="loss"), of(HIGH, metric="loss"))
    assert worse.startswith("A is better in loss by 0.1000")


def test_what_may_be_chance_is_said_to_be():
    near = [0.83, 0.79, 0.80, 0.82, 0.82]
    assert paired.verdict(of(LOW), of(near)).startswith("no difference in accuracy is shown (p = ")
    assert paired.verdict(of(LOW), of(LOW)) == "A and B have the same accuracy in each fold"
    moved = paired.verdict(of(LOW), of([v + 0.1 for v in LOW]))
    assert moved == "B is better in accuracy by 0.1000 in each fold alike: no variance to test by"


def test_seeds_have_signed_ranks_and_what_these_can_show_is_said():
    first, second = of(LOW, folds=0), of(HIGH, folds=0)
    [row, _] = paired.rows(first, second, first.shown)
    assert len(row) == len(paired.heads(first)) == 7 and row[-1] == "0.062"
    assert any("no p below 0.0625; give 6" in note for note in paired.notes(first, second))
    assert len(paired.heads(of(LOW))) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "embedding"}, "nothing to compare"),
        ({"folds": 0}, "b has 5 seeds"),
        ({"repeats": 2}, "b has 5 folds x 2 repeats"),
        ({"checkpoint": "best"}, "b the best"),
        ({"fingerprint": "others"}, "the folds hold other rows in a than in b"),
    ],
)
def test_what_is_no_pair_is_refused(changes, said):
    with pytest.raises(ValueError) as error:
        paired.check_pair(of(LOW), of(HIGH, **changes), ("a", "b"))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_other_seeds_and_other_metrics_are_refused():
    trials = of(LOW).trials
    later = tuple(dataclasses.replace(t, seed=t.seed + 1) for t in trials)
    with pytest.raises(ValueError, match="run under other seeds"):
        paired.check_pair(of(LOW, folds=0), of(LOW, folds=0, trials=later), ("a", "b"))
    with pytest.raises(ValueError, match="b has no accuracy"):
        paired.check_pair(of(LOW), of(LOW, metric="f1_macro"), ("a", "b"))


def test_the_record_is_read_again_and_what_is_none_is_refused():
    found = of(LOW, pooled=({"accuracy": 0.81},))
    value = validation.to_json(found)
    assert validation.from_json(value, "x") == dataclasses.replace(
        found, trials=found.trials, pooled=({"accuracy": 0.81},)
    )
    for broken in ([], {}, {**value, "written by": "me"}, {**value, "format": 99}, {**value, "trials": []},
                   {**value, "trials": [{"name": 1}]}, {**value, "metric": "none"}):  # fmt: skip
        with pytest.raises(ValueError, match="^x "):
            validation.from_json(broken, "x")
