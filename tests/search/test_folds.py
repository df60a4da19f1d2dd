"""The plan of a cross-validation: each row is held out once a repeat, groups as a whole; mistakes."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from jaxft.config import override
from jaxft.experiment.data import open_splits, open_whole
from jaxft.experiment.encoder import Slicing, make_encoder
from jaxft.experiment.prepared import prepare
from jaxft.search.trials.worlds import Worlds
from jaxft.search.validation.folds import Plan, check_config, make_plan, notes, planned
from jaxft.search.validation.validating import opened
from jaxft.tasks.table import TASKS
from jaxft.terminal import config_file
from tests.worlds import ROOT, fields


def config(world, **changes):
    loaded = config_file.load(f"{ROOT}/configs/text_classification.py", [])
    return override(loaded, fields(world, "train.csv", 16), changes)


def splits(one):
    return open_splits(one, TASKS[one.task], ())


def test_each_row_is_held_out_once_a_repeat_and_each_label_alike(world):
    plan = Plan(folds=5, repeats=2)
    trials = planned(config(world, **{"train.seed": 3}), plan)
    assert [t.trial.config.train.seed for t in trials] == list(range(3, 13))
    cuts = []
    for repeat in range(2):
        held = []
        for one in (t for t in trials if t.repeat == repeat):
            found = splits(one.trial.config)
            rows = [found.train.targets.rows, found.eval.targets.rows]
            assert sorted(np.concatenate(rows)) == list(range(96))
            assert np.ptp(np.bincount(found.eval.targets.ids, minlength=3)) <= 1
            held.append(rows[1])
        assert sorted(np.concatenate(held)) == list(range(96))
        cuts.append(held)
    assert not all(np.array_equal(a, b) for a, b in zip(*cuts, strict=True))  # cut in another way


def test_groups_are_held_out_as_a_whole(world, tmp_path):
    lines = list(csv.reader((world / "train.csv").read_text().splitlines()))
    with (tmp_path / "grouped.csv").open("w", newline="") as file:
        authors = ["author", *(f"a{i % 7}" for i in range(96))]
        csv.writer(file).writerows(
            [*row, author] for row, author in zip(lines, authors, strict=True)
        )
    own = {"data.train": str(tmp_path / "grouped.csv"), "data.group": "author"}
    for one in planned(config(world, **own), Plan(folds=3)):
        found = splits(one.trial.config)
        train, held = (set((s.targets.rows % 7).tolist()) for s in (found.train, found.eval))
        assert train and held and not train & held
    with pytest.raises(ValueError, match="7 groups cannot be cut into 8 folds"):
        splits(planned(config(world, **own), Plan(folds=8))[0].trial.config)


def test_nothing_is_chosen_by_held_out_rows_unless_it_is_asked_for(world):
    given = config(world, **{"eval.patience": 2, "eval.every": "1 epochs"})
    last, best = (
        planned(given, Plan(folds=2, checkpoint=checkpoint))[0].trial.config.eval
        for checkpoint in ("last", "best")
    )
    assert (last.every, last.patience) == ("100%", None)
    assert (best.every, best.patience) == ("1 epochs", 2)
    whole = open_whole(given, TASKS[given.task], ())
    said = notes(given, Plan(checkpoint="last"), whole)
    assert ["eval.patience=2 is not used" in line for line in said] == [True]
    assert notes(given, Plan(checkpoint="best"), whole)[0].startswith("optimistic")


def test_a_frozen_prefix_is_kept_for_all_folds_at_once(world, tmp_path, monkeypatch):
    """A trial of one epoch reads each row once, and would not keep it for itself."""
    monkeypatch.setattr("jaxft.experiment.prefix_cost.LEAST_FLOPS", 0)
    monkeypatch.setattr("jaxft.experiment.prefix_cost.LEAST_SHARE", 0)
    given = config(world, **{"optim.freeze_below": 1, "train.epochs": 1})
    with opened(given, Plan(folds=2), str(tmp_path / "out")) as one:
        runs = [one.worlds.begin(prepared)[0] for prepared in one.prepared]
        assert [run.kept.depths for run in runs] == [(1,), (1,)]
        assert len(list((tmp_path / "out").rglob("*.prefix.*.npy"))) == 1
        alone = Worlds(tmp_path / "alone")
        run, _ = alone.begin(alone.prepared(one.trials[0].trial.config))
        assert run.kept.depths == (None,)


def test_folds_are_batches_of_the_same_shapes(world):
    trials = planned(config(world, **{"data.max_shapes": 3}), Plan(folds=5, repeats=2))
    shapes, rows = set(), list[int]()
    for one in trials:
        given, found = one.trial.config, splits(one.trial.config)
        prepared = prepare(given)
        encoder = make_encoder(
            given, "text", prepared.directory, prepared.architecture.limits, found, None
        )
        train = encoder.training(found.train, given, 3, Slicing())
        held = encoder.evaluation(found.eval, given, Slicing())
        shapes.add((train.plan.shapes, held.plan.shapes, *(x.shape[1:] for x in held.plan.slots)))
        rows += [row for batch in held for row in batch["index"].ravel().tolist() if row >= 0]
    assert len(shapes) == 1
    assert sorted(rows) == sorted([*range(96)] * 2)


def test_what_is_not_used_and_what_is_rare_is_said(world, tmp_path):
    path = tmp_path / "rare.csv"
    path.write_text((world / "train.csv").read_text() + "quite unlike,other\nquite so,other\n")
    own = {"data.train": str(path), "data.eval": "dev.csv", "data.test": "test.csv"}
    given = config(world, **own)
    said = notes(given, Plan(folds=5), open_whole(given, TASKS[given.task], ()))
    assert "data.eval=dev.csv is not used: the folds are cut from the training data" in said[0]
    assert "data.test=test.csv is not used" in said[1]
    assert "'other' (2); some held-out parts have none of them" in said[2]
    trial = planned(given, Plan(folds=5))[0].trial.config
    assert trial.data.eval == trial.data.test == ""
    seeded = planned(given, Plan(folds=0, seeds=2))[1].trial.config
    assert seeded.data.eval == "dev.csv" and seeded.train.seed == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"folds": 1}, "--folds=1 must be between 2 and 1000"),
        ({"repeats": -1}, "--repeats=-1 must be between 1 and 1000"),
        ({"seeds": 1}, "--seeds=1 must be between 2 and 1000"),
        (
            {"seeds": 3, "folds": 5},
            "--seeds=3 keeps the rows as they are, --folds=5 cuts them anew",
        ),
        ({"checkpoint": "lst"}, "--checkpoint=lst is not one of last, best (did you mean 'last'?)"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, said):
    given = {"folds": 0, "repeats": 0, "seeds": 0, "checkpoint": "last", **flags}
    with pytest.raises(ValueError) as error:
        make_plan(**given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_configs_that_cannot_be_are_refused(world):
    with pytest.raises(ValueError, match=r"config\.data\.folds=4 holds out fold 1 of a single run"):
        check_config(config(world, **{"data.folds": 4, "data.fold": 1}), Plan())
    check_config(config(world, **{"data.folds": 4, "data.fold": 1}), Plan(folds=0, seeds=2))
    with pytest.raises(ValueError, match="a stream is read from its beginning"):
        check_config(config(world, **{"data.stream": 10}), Plan())
