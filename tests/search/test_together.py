"""Trials that run as one program have the curves of trials that run one after the other."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxft.config import override
from jaxft.search.trials.groups import Members, begun, grouped
from jaxft.search.trials.memory import affordable
from jaxft.search.trials.trial import Trial, run_trials
from jaxft.search.trials.worlds import Worlds
from jaxft.terminal import config_file
from jaxft.training.trials import TrialAxis, stack_states, trials_step
from tests.worlds import ROOT, fields


def config(world, *changes):
    own = fields(world, "train.csv", 16)
    short = {"train.steps": 6, "eval.every": "3 steps", "optim.lr": 3e-3}
    loaded = config_file.load(f"{ROOT}/configs/text_classification.py", [])
    return override(loaded, own, short, *changes)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """One for all tests, so that what is alike in them is compiled once."""
    return Worlds(tmp_path_factory.mktemp("trials") / "cache")


def both(trials, worlds, tmp_path, **more):
    """What came of the trials alone and together."""
    found = []
    for vmapped in ("off", "on"):
        found.append(
            run_trials(
                trials, directory=tmp_path / vmapped, worlds=worlds, vmapped=vmapped,
                keep_weights=True, keep_predictions=True, **more,
            )
        )  # fmt: skip
    return found


def assert_equal(alone, together, rtol=2e-5):
    for one, other in zip(alone, together, strict=True):
        assert one.stopped == other.stopped and len(one.history) == len(other.history)
        for row, same in zip(one.history, other.history, strict=True):
            assert row.keys() == same.keys()
            for name in row:
                if not isinstance(row[name], int | float):
                    assert row[name] == same[name]
                    continue
                np.testing.assert_allclose(
                    same[name], row[name], rtol=rtol, atol=rtol, err_msg=name
                )
        assert one.weights.keys() == other.weights.keys()
        for path in one.weights:
            np.testing.assert_allclose(
                other.weights[path], one.weights[path], rtol=rtol, atol=rtol, err_msg=path
            )
        np.testing.assert_allclose(
            other.predicted["logits"], one.predicted["logits"], rtol=rtol, atol=1e-4
        )


HEAD = {"optim.freeze_below": "all", "data.cache_prefix": "on"}
HALF = {"optim.freeze_below": 1, "optim.layer_decay": 0.8, "data.cache_prefix": "off"}
RATES = [{"optim.lr": 1e-3}, {"optim.lr": 3e-3, "optim.weight_decay": 0.3, "optim.warmup": "1 steps"},
         {"optim.lr": 1e-2, "optim.clip": 0.1}]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", [HALF, HEAD], ids=["half", "head"])
def test_rates_over_one_batch(world, worlds, tmp_path, part):
    trials = [Trial(str(n), config(world, part, change)) for n, change in enumerate(RATES)]
    alone, together = both(trials, worlds, tmp_path)
    assert_equal(alone, together)
    # Killed when one of the three had not ended.
    (tmp_path / "on/trials/1.json").unlink()
    heard = []
    again = run_trials(
        trials, directory=tmp_path / "on", worlds=worlds, vmapped="on", keep_weights=True,
        keep_predictions=True, report=lambda number, row: heard.append(number),
    )  # fmt: skip
    assert set(heard) == {1}
    assert [outcome.history for outcome in again] == [outcome.history for outcome in together]


@pytest.mark.slow
def test_seeds_and_folds_have_batches_of_their_own(world, worlds, tmp_path):
    """Also where one has a step more than another."""
    folds = [
        {"data.folds": 3, "data.fold": 1},
        {"train.seed": 3},
        {"train.seed": 4, "train.steps": 7},
    ]
    trials = [Trial(str(n), config(world, HEAD, change)) for n, change in enumerate(folds)]
    assert_equal(*both(trials, worlds, tmp_path))


@pytest.mark.slow
def test_a_trial_that_ended_stays_as_it_was(world, worlds, tmp_path):
    """By its report, by patience, or because it is not finite; and the others go on, closer together."""
    patience = {"optim.lr": 0.0, "eval.patience": 1}
    wild = {"optim.lr_mult": ((".*", 1e6),), "optim.lr": 10.0, "optim.warmup": "0 steps",
            "optim.weight_decay": 10.0}  # fmt: skip
    changes = [{}, patience, {"optim.lr": 1e-3}, wild, {"optim.lr": 1e-4}]
    long = {"train.steps": 90, "eval.every": "3 steps"}
    trials = [Trial(str(n), config(world, HEAD, long, change)) for n, change in enumerate(changes)]
    alone, together = both(
        trials, worlds, tmp_path, report=lambda number, row: number in (0, 2) and row["step"] == 6
    )
    stopped = [outcome.stopped for outcome in alone]
    assert stopped == ["pruned", "early", "pruned", "not finite", ""]
    assert [len(outcome.history) for outcome in alone][:3] == [2, 2, 2]
    assert_equal(alone, together)
    (tmp_path / "on/trials/4.json").unlink()
    again = run_trials(trials, directory=tmp_path / "on", worlds=worlds, vmapped="on")
    assert [outcome.history for outcome in again] == [outcome.history for outcome in together]


@pytest.mark.slow
def test_what_is_shared_is_computed_once(world, worlds, tmp_path):
    """Of K trials the operations are those of the frozen blocks once, and those of K suffixes."""
    trials = {n: worlds.prepared(config(world, HALF, change)) for n, change in enumerate(RATES)}
    [members] = grouped(trials, worlds, "auto")
    assert members == Members((0, 1, 2))
    [(_, begun_runs)] = begun(members, trials, worlds)
    runs, states = zip(*begun_runs, strict=True)
    batch = runs[0].train_batches[0]
    flops = {}
    for count in (1, 2, 3):
        stacked, shared = stack_states(states[:count], frozenset(), TrialAxis())
        step = trials_step(runs[0].stages.at(0).step, own_batches=False)
        compiled = jax.jit(step).lower(stacked, shared, batch).compile()
        flops[count] = compiled.cost_analysis()["flops"]
    assert flops[3] - flops[2] == pytest.approx(flops[2] - flops[1], rel=0.02)
    architecture, whole = runs[0].prepared.architecture, states[0].whole
    prefix = jax.jit(lambda whole, batch: architecture.prefix(whole, batch, 1))
    prefix = prefix.lower(whole, batch).compile().cost_analysis()["flops"]
    assert prefix > 0.3 * flops[1]
    assert flops[3] <= 1.02 * (prefix + 3 * (flops[1] - prefix))


@pytest.mark.slow
def test_trials_over_devices(world, worlds, tmp_path):
    """Three on eight devices: each has a trial or a place without one, and what is frozen."""
    jit = [Trial(str(n), config(world, HALF, change)) for n, change in enumerate(RATES)]
    auto = [Trial(one.name, override(one.config, {"parallel.mode": "auto"})) for one in jit]
    keep = {"keep_weights": True, "keep_predictions": True, "worlds": worlds}
    alone = run_trials(jit, directory=tmp_path / "alone", vmapped="off", **keep)
    over = run_trials(auto, directory=tmp_path / "over", vmapped="on", **keep)
    assert_equal(alone, over)


def test_as_many_at_once_as_there_is_memory_for():
    def needs(count):
        return 100 + 30 * count

    assert affordable(5, 1, 170, needs) == 2  # of five, two at a time and then one
    assert affordable(6, 1, 229, needs) == 3  # and not four and then two
    assert affordable(5, 1, 250, needs) == affordable(5, 1, None, needs) == 5
    assert affordable(5, 1, 0, needs) == 1
    assert affordable(9, 4, 100 + 30 * 8, needs) == 5  # eight at once would leave one
    assert affordable(5, 1, 10, lambda count: None) == 5


@pytest.mark.slow
def test_groups_run_in_turn_where_memory_is_for_few(world, worlds, tmp_path):
    trials = [Trial(str(n), config(world, HALF, change)) for n, change in enumerate(RATES)]
    keep = {"keep_weights": True, "keep_predictions": True, "worlds": worlds, "vmapped": "on"}
    whole = run_trials(trials, directory=tmp_path / "whole", **keep)
    parts = run_trials(trials, directory=tmp_path / "parts", memory=1, **keep)
    assert_equal(whole, parts)
