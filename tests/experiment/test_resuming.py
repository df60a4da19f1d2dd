"""A run that goes on: the state that was built makes room for the one that is read."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxft.experiment.build import build
from jaxft.experiment.loop import resume
from jaxft.experiment.session import Memory
from jaxft.experiment.steps import devices
from jaxft.training.checkpoint import Checkpoints, Keep
from tests import worlds
from tests.experiment import check_stacking
from tests.experiment.test_stages import host


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Data, and a BERT of six blocks."""
    return check_stacking.make(tmp_path_factory.mktemp("deep"))


@pytest.mark.parametrize(
    ("mode", "stack"),
    [
        ("jit", "on"),
        *(pytest.param(mode, "off", marks=pytest.mark.slow) for mode in ("shard", "pmap")),
    ],
)
def test_the_state_that_was_built_is_freed_and_the_saved_one_is_in_its_place(
    deep, tmp_path, mode, stack
):
    own = (f"--config.model.stack={stack}", "--config.optim.freeze_below=2")
    prepared = worlds.prepared(
        worlds.arguments(deep, tmp_path / "run", *own, mode=mode, model="deep")
    )
    run, state = build(prepared, devices(prepared.config), cache=None, stack=stack == "on")
    saved = jax.tree.map(lambda x: x + 1, (state.params, state.opt_state))
    before, frozen = host(saved), host(state.frozen)
    fresh = jax.tree.leaves((state.params, state.opt_state, state.step))
    with Checkpoints(tmp_path / "checkpoints", run.parallel, keep=Keep(1)) as checkpoints:
        left = type(state)(
            state.step + 3, saved[0], state.frozen, saved[1], state.hparams, state.stats
        )
        checkpoints.save(
            3, run.stages.plain(left, frozen=False), dataclasses.asdict(Memory()), None
        )
        checkpoints.wait()
        session = SimpleNamespace(
            run=run,
            checkpoints=checkpoints,
            nonfinite=SimpleNamespace(resume=lambda step: None),
            logs=SimpleNamespace(resume=lambda step: None),
        )
        restored, memory = resume(session, state)
    assert run.steps_done(restored) == 3 and memory == Memory()
    assert all(x.is_deleted() for x in fresh)
    found = host((restored.params, restored.opt_state))
    assert found.keys() == before.keys()
    for path, x in before.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)
    assert all(np.array_equal(x, frozen[path]) for path, x in host(restored.frozen).items())
    places = jax.tree.map(lambda x: x.sharding, (saved[0], saved[1]))
    assert places == jax.tree.map(lambda x: x.sharding, (restored.params, restored.opt_state))
