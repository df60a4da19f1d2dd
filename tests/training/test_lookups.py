"""A lookup over a mesh sends what the tokens of a device need, however many devices there are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft.models import cuts
from jaxft.models.layers import mesh
from jaxft.planning.hlo import collectives

ROWS, LENGTH, WIDTH = 2, 8, 32  # rows of a device
TABLES = {"words": 64, "positions": 12, "kinds": 2}


def gradient(tables, ids):
    """Of a loss of normalised sums of what is looked up, as the stem of an encoder makes them."""

    def loss(tables):
        x = sum(mesh.looked_up(table, ids[name]) for name, table in tables.items())
        x = x - x.mean(-1, keepdims=True)
        return jnp.sum(jnp.sin(x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)))

    return jax.grad(loss)(tables)


@pytest.mark.parametrize("count", [2, 8])
def test_a_lookup_sends_as_much_on_two_devices_as_on_eight(monkeypatch, count):
    monkeypatch.setattr(cuts, "MIN_FSDP_SIZE", 128)  # kinds are whole on each device
    devices = Mesh(np.array(jax.devices()[:count]), ("fsdp",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    tables = {name: rng.normal(size=(n, WIDTH)).astype(np.float32) for name, n in TABLES.items()}
    ids = {
        name: rng.integers(0, n, (ROWS * count, LENGTH)).astype(np.int32)
        for name, n in TABLES.items()
    }
    cut = {
        name: NamedSharding(devices, cuts.spec_of("embedding", x.shape, (), fsdp=count, tensor=1))
        for name, x in tables.items()
    }
    over_rows = NamedSharding(devices, PartitionSpec("fsdp"))

    def traced(tables, ids):
        with jax.sharding.use_abstract_mesh(devices.abstract_mesh):
            return gradient(tables, ids)

    placed = jax.device_put(tables, cut), jax.device_put(ids, over_rows)
    compiled = jax.jit(traced, out_shardings=cut).lower(*placed).compile()
    found = sum(one.bytes for one in collectives(compiled.as_text(), {"fsdp": count}))
    share, number = (count - 1) / count, 4
    tokens = ROWS * LENGTH
    words = 2 * tokens * WIDTH + tokens * count  # there and back; and the ids of all
    # Positions are gathered, as they are fewer than a device's tokens; the CPU sums their gradient for all.
    least = share * number * (words + (1 + 2) * TABLES["positions"] * WIDTH)
    least += share * number * 2 * TABLES["kinds"] * WIDTH
    assert 0.9 * least < found < 1.1 * least
    alone = gradient(tables, ids)
    for name, given in compiled(*placed).items():
        np.testing.assert_allclose(given, alone[name], atol=1e-5, rtol=1e-5, err_msg=name)
