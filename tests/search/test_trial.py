"""Trials in memory are the runs of `train`, and what came of them is found again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxft import train
from jaxft.config import override
from jaxft.search.trials import trial
from jaxft.search.trials.trial import Trial, run_trials
from jaxft.search.trials.worlds import Worlds
from jaxft.terminal import config_file
from tests.worlds import ROOT, arguments, fields, weights


def config(world, **changes):
    own = fields(world, "train.csv", 16, **{"model.path": str(world / "one_block")})
    short = {"train.steps": 6, "eval.every": "3 steps", "optim.lr": 3e-3}
    loaded = config_file.load(f"{ROOT}/configs/text_classification.py", [])
    return override(loaded, own, short, changes)


def same(found, expected):
    assert found.history == expected.history and found.best == expected.best
    assert found.stopped == expected.stopped
    for kept, other in ((found.weights, expected.weights), (found.predicted, expected.predicted)):
        assert kept.keys() == other.keys()
        for name in other:
            np.testing.assert_array_equal(kept[name], other[name])


KEEP = {"keep_weights": True, "keep_predictions": True}


def test_what_came_of_a_trial_is_found_again(world, tmp_path):
    heard = []
    trials = [Trial("low", config(world, **{"optim.lr": 1e-4})), Trial("high", config(world))]
    low, high = run_trials(
        trials, directory=tmp_path, **KEEP,
        report=lambda number, row: heard.append((number, row["step"])) or (number, row["step"]) == (0, 3),
    )  # fmt: skip
    assert heard == [(0, 3), (1, 3), (1, 6)]
    assert low.stopped == "pruned" and high.stopped == "" and low.history != high.history[:1]

    def never(number, row):
        raise AssertionError("it is run again")

    again = run_trials(trials, directory=tmp_path, report=never, **KEEP)
    for found, expected in zip(again, (low, high), strict=True):
        same(found, expected)
    assert (again[0].memory, again[1].memory) == (low.memory, high.memory)
    state = 3 * 4 * sum(x.size for x in low.weights.values())  # parameters and Adam's two slots
    assert state < low.memory == high.memory < 100 * state  # one program, rates are its inputs
    without = run_trials(trials, directory=tmp_path, report=never)[1]
    assert without.weights is without.predicted is None and without.history == high.history

    other = Trial("high", config(world, **{"train.log_every": 1, "optim.lr": 1e-5}))
    with pytest.raises(ValueError, match="trial with config.optim.lr=0.003, not 1e-05"):
        run_trials([other], directory=tmp_path)


def test_a_trial_for_which_there_is_no_memory_is_spared_where_that_is_asked_for(
    world, tmp_path, monkeypatch
):
    tried = []

    def full(run, *rest, **keep):
        tried.append(run.prepared.config.optim.lr)
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

    monkeypatch.setattr(trial, "run_alone", full)
    trials = [Trial("low", config(world, **{"optim.lr": 1e-4})), Trial("high", config(world))]
    found = run_trials(trials, directory=tmp_path, spare=True)
    assert [(one.stopped, one.best) for one in found] == [("out of memory", {})] * 2
    assert tried == [1e-4, 3e-3] and not list(tmp_path.glob("trials/*.json"))
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        run_trials(trials, directory=tmp_path)


@pytest.mark.slow
def test_the_memory_of_a_trial_is_that_of_its_own_batches(world, tmp_path):
    worlds = Worlds(tmp_path / "cache")
    sizes = {
        size: run_trials(
            [Trial(f"of-{size}", config(world, **{"train.batch_size": size}))],
            directory=tmp_path, worlds=worlds,
        )[0].memory
        for size in (32, 8, 16)
    }  # fmt: skip
    assert sizes[8] < sizes[16] < sizes[32]


@pytest.mark.slow
def test_a_trial_is_the_run_alone(world, tmp_path):
    """Bit for bit, also after another trial, with the programs of that one; and after a kill."""
    worlds = Worlds(tmp_path / "cache")
    trials = [
        Trial("low", config(world, **{"optim.lr": 1e-4})),
        Trial("high", config(world, **{"train.seed": 5, "optim.layer_decay": 0.8})),
    ]
    high = run_trials(trials, directory=tmp_path, worlds=worlds, **KEEP)[1]
    extra = ["--config.train.steps=6", "--config.eval.every=3 steps", "--config.checkpoint.every_steps=3",
             "--config.train.seed=5", "--config.optim.layer_decay=0.8"]  # fmt: skip
    assert train.main(arguments(world, tmp_path / "alone", *extra)) == 0
    summary = json.loads((tmp_path / "alone/summary.json").read_text())
    best = dict(high.best)
    assert best.pop("step") == summary["best_step"] and best.pop("train_loss") > 0
    assert best == summary["eval"]
    kernel = weights(tmp_path / "alone")["classifier.weight"].T
    np.testing.assert_array_equal(high.weights["classifier/kernel"], kernel)
    # Killed between its two files: the arrays are there, and nothing says what they are.
    (tmp_path / "trials/high.json").unlink()
    (tmp_path / "trials/high.npz").write_bytes(b"torn")
    same(run_trials(trials, directory=tmp_path, worlds=worlds, **KEEP)[1], high)


@pytest.mark.slow
def test_a_trial_ends_where_it_runs_out_of_patience_or_is_not_finite(world, tmp_path):
    wild = {"optim.lr_mult": ((".*", 1e6),), "optim.lr": 10.0, "optim.warmup": "0 steps",
            "optim.optimizer": "sgd", "optim.clip": None, "optim.weight_decay": 10.0}  # fmt: skip
    patience = {"optim.lr": 0.0, "eval.patience": 1, "train.steps": 9}
    trials = [Trial("broken", config(world, **wild)), Trial("patient", config(world, **patience))]
    broken, patient = run_trials(trials, directory=tmp_path)
    assert broken.stopped == "not finite" and broken.history == () and broken.best == {}
    assert patient.stopped == "early" and [row["step"] for row in patient.history] == [3, 6]
    assert run_trials(trials, directory=tmp_path, keep_weights=True)[0].weights is None


@pytest.mark.slow
def test_folds_have_weights_and_programs_in_common(world, tmp_path):
    worlds = Worlds(tmp_path / "cache")
    trials = [
        Trial(f"fold{k}", config(world, **{"data.folds": 3, "data.fold": k, "train.steps": 3}))
        for k in range(2)
    ]
    first, second = run_trials(trials, directory=tmp_path, worlds=worlds, keep_predictions=True)
    runs = [worlds.begin(worlds.prepared(trial.config))[0] for trial in trials]
    assert runs[0].shared is not runs[1].shared
    assert runs[0].stages.programs == runs[1].stages.programs
    assert runs[0].shared.eval_step is runs[1].shared.eval_step
    rows = [set(run.prepared.splits.eval.targets.rows.tolist()) for run in runs]
    assert len(rows[0]) == len(rows[1]) == 32 and not rows[0] & rows[1]
    assert len(first.predicted["seen"]) == 32 and first.history != second.history


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (["a", "a"], {}, "2 trials are called 'a'"), (["../a"], {}, "is called '../a'"),
        (["a"], {"optim.freeze_below": 9}, "trial a: config.optim.freeze_below=9"),
        (["a"], {"optim.lr": 11.0}, "trial a: config.optim.lr=11.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_line(world, tmp_path, names, changes, said):
    trials = [Trial(name, config(world, **changes)) for name in names]
    with pytest.raises(ValueError, match=said):
        run_trials(trials, directory=tmp_path)
    assert not (tmp_path / "trials").exists()
