"""A range test: the batches of the run, at rates that grow; seeds together are the seeds one by one."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxft.config import override
from jaxft.experiment.build import build
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.search.range_test import range_test
from jaxft.terminal import config_file
from tests.worlds import ROOT, fields

GROUPS = (
    ("classifier/.*", {"lr": 0.25, "schedule": "linear"}),
    ("bert/encoder/.*", {"weight_decay": 0.5}),
)


def config(world, **more):
    values = fields(world, "train.csv", 16, **{"model.path": str(world / "one_block"), **more})
    given = config_file.load(f"{ROOT}/configs/text_classification.py", [])
    return override(given, values)


@pytest.mark.slow
def test_each_update_has_the_next_rate_and_the_next_batch_of_the_run(world):
    """Held against updates whose numbers are all those of a run with that rate."""
    given = config(world, **{
        "optim.groups": GROUPS, "optim.layer_decay": 0.5, "train.steps": 9, "train.accumulate": 2,
    })  # fmt: skip
    tested = range_test(given, lowest=1e-3, highest=0.5, steps=9, seeds=1)
    rates = tested.curve.rates
    np.testing.assert_allclose(rates, 1e-3 * 500 ** (np.arange(9) / 8))

    plain = (GROUPS[0][0], {"lr": 0.25}), GROUPS[1]
    constant = {"optim.schedule": "constant", "optim.warmup": "0 steps", "optim.groups": plain}
    prepared = prepare(override(given, constant))
    run, state = build(prepared, devices(given), cache=None)
    for step in range(9):
        trial = prepared.trial(override(prepared.config, {"optim.lr": float(rates[step])}))
        hparams = jax.tree.map(jax.numpy.asarray, trial.inputs())
        assert hparams["optimizer"]["group_lr"].tolist() != [rates[step]] * 3
        batch = run.parallel.put(run.train_batches[step])
        state, metrics = run.stages.at(0).program(
            dataclasses.replace(state, hparams=hparams), batch
        )
        assert tested.curve.losses[0, step] == pytest.approx(float(metrics["loss"]), rel=1e-5)


@pytest.mark.slow
def test_seeds_together_are_the_seeds_one_after_the_other(world):
    given = config(world, **{"optim.freeze_below": 0, "train.steps": 12, "model.dropout": 0.0})
    several = {"lowest": 1e-4, "highest": 0.1, "steps": 12, "seeds": 3}
    together = range_test(given, **several)
    in_turn = range_test(override(given, {"parallel.mode": "shard"}), **several)
    assert together.together and not in_turn.together
    losses = together.curve.losses
    np.testing.assert_allclose(losses, in_turn.curve.losses, rtol=2e-4)
    assert len(np.unique(losses[:, 0])) == 3  # another head each
    assert not any("the same" in note for note in together.notes)


@pytest.mark.slow
def test_the_first_seed_is_the_run_s_own_with_its_dropout(world):
    given, several = (
        config(world, **{"train.steps": 12}),
        {"lowest": 1e-4, "highest": 0.1, "steps": 12},
    )
    together = range_test(given, **several, seeds=2).curve.losses
    alone = range_test(given, **several, seeds=1).curve.losses
    np.testing.assert_allclose(alone[0], together[0], rtol=2e-4)
    apart = range_test(override(given, {"model.dropout": 0.0}), **several, seeds=1).curve.losses
    assert abs(apart - alone).max() > 1e-3


@pytest.mark.slow
def test_the_end_at_a_loss_that_ran_away(world):
    given = config(
        world, **{"optim.optimizer": "sgd", "optim.clip": None, "optim.unfreeze": "lp_ft"}
    )
    tested = range_test(given, lowest=1e-3, highest=10.0, steps=60, seeds=2)
    assert (
        5 < len(tested.curve.rates) < 60 and len(tested.curve.rates) == tested.curve.losses.shape[1]
    )
    assert any("first stage" in note for note in tested.notes)
    assert any("more than an epoch" in note for note in tested.notes)


def test_what_has_only_rates_of_its_own_is_refused(world):
    own = config(world, **{"optim.groups": ((".*", {"lr": 1e-3}),)})
    with pytest.raises(ValueError, match="every parameter that trains a rate of its own"):
        range_test(own, lowest=1e-6, highest=1.0, steps=30, seeds=1)
