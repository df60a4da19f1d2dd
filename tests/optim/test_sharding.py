"""Slots live where their parameters live; those of another shape are whole on every device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxft.models.cuts import param_specs
from jaxft.training.mesh import make_parallel
from jaxft.training.step import hyperparameters

HPARAMS = hyperparameters(jax.random.key(0))


def sharded():
    parallel = make_parallel("shard", data=2, fsdp=4)
    shapes = {"kernel": (512, 256), "bias": (256,)}
    tree = {name: jnp.ones(shape) for name, shape in shapes.items()}
    return parallel, jax.device_put(
        tree, parallel.shardings(param_specs(tree, (), fsdp=4, tensor=1))
    )


def test_slots_of_the_shape_of_a_parameter_are_cut_like_it():
    parallel, params = sharded()
    assert params["kernel"].sharding.spec == PartitionSpec("fsdp", None)
    state = parallel.init(params, {}, HPARAMS, lambda _: optax.adam(1e-3))
    for slot in (state.opt_state[0].mu, state.opt_state[0].nu):
        assert slot["kernel"].sharding == params["kernel"].sharding


@pytest.mark.parametrize(
    "tx",
    [
        optax.adafactor(1e-3),
        optax.scale_by_factored_rms(min_dim_size_to_factor=8, factored=True),
        optax.chain(optax.sm3(1e-3), optax.scale_by_adam()),
    ],
)
def test_factored_slots_have_a_placement_of_their_own_rank(tx):
    parallel, params = sharded()
    state = parallel.init(params, {}, HPARAMS, lambda _: tx)
    slots = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert any(leaf.shape in ((512,), (512, 1)) for leaf in slots)
    for leaf in slots:
        assert len(leaf.sharding.spec) <= leaf.ndim
    updates, _ = jax.jit(tx.update)(params, state.opt_state, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
