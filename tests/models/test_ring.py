"""Attention in rows that are cut over devices is that of whole rows, with its gradients and its dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models.layers import attention, blockwise, ring
from jaxft.models.layers.sight import Places, Sight
from jaxft.training.mesh import make_parallel

ROWS, LENGTH, HEADS, KEY_HEADS, WIDTH = 2, 64, 4, 2, 8
# Two texts and padding, neither of whose bounds is one of devices.
SEGMENTS = np.repeat([[1] * 21 + [2] * 37 + [0] * 6], ROWS, 0)
POSITIONS = np.repeat([[*range(21), *range(37), *[0] * 6]], ROWS, 0)
SEED = jnp.array([3, 5], jnp.uint32)
MESHES = {
    "context 8": {"context": 8},
    "fsdp 2 context 2 tensor 2": {"fsdp": 2, "context": 2, "tensor": 2},
}


def normal(heads: int, seed: int) -> np.ndarray:
    shape = (ROWS, LENGTH, heads, WIDTH)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


INPUTS = (normal(HEADS, 0), normal(KEY_HEADS, 1), normal(KEY_HEADS, 2))
COTANGENT = normal(HEADS, 3)


def among(causal: bool, reach: int | None, cap: float | None, rate: float):
    """(attention, its gradients by query, key and value), of what is no padding."""
    places = Places(jnp.asarray(SEGMENTS), jnp.asarray(POSITIONS))

    def total(query, key, value):
        sight = Sight(places, causal=causal, reach=reach)
        out = attention.among(query, key, value, sight, rate=rate, seed=SEED, cap=cap)
        out = jnp.where((places.segments > 0)[:, :, None, None], out, 0)
        return (out * COTANGENT).sum(), out

    def both(*inputs):
        gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(*inputs)
        return out, gradients

    return both


def over(sizes, function):
    """Its results over a mesh."""
    parallel = make_parallel("shard", **sizes)
    whole = jax.sharding.NamedSharding(parallel.mesh, jax.sharding.PartitionSpec())
    with jax.sharding.use_abstract_mesh(parallel.mesh.abstract_mesh):
        mapped = jax.jit(function, out_shardings=whole)
        return mapped(*jax.device_put(INPUTS, whole))


def cases():
    fast = [("context 8", True, None, None, 0.3), ("fsdp 2 context 2 tensor 2", False, 5, 1.5, 0.0)]
    yield from fast
    for name in MESHES:
        for causal in (False, True):
            for reach in (None, 5):
                for cap, rate in ((None, 0.0), (1.5, 0.3)):
                    case = (name, causal, reach, cap, rate)
                    yield pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "causal", "reach", "cap", "rate"), cases())
def test_a_row_that_is_cut_is_attended_as_a_whole_one(monkeypatch, name, causal, reach, cap, rate):
    monkeypatch.setattr(blockwise, "CHUNK", 4)  # so that a device's keys are several chunks
    function = among(causal, reach, cap, rate)
    expected, found = jax.jit(function)(*INPUTS), over(MESHES[name], function)
    for one, many in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(many, one, atol=5e-6)


def test_what_may_look_at_nothing_gets_nothing():
    places = Places(jnp.asarray(SEGMENTS), jnp.asarray(POSITIONS))

    def padding(query, key, value):
        sight = Sight(places, causal=True)
        out = attention.among(query, key, value, sight, rate=0.0, seed=None)
        return jnp.where((places.segments == 0)[:, :, None, None], out, 0)

    def both(*inputs):
        out, pull = jax.vjp(padding, *inputs)
        return out, pull(jnp.ones_like(out))

    for x in jax.tree.leaves(over({"context": 8}, both)):
        assert not np.any(x)  # nor a gradient, nor NaN


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_long_row_of_one_device_is_attended_in_chunks(monkeypatch, rate):
    function = among(True, None, None, rate)
    expected = jax.jit(function)(*INPUTS)
    monkeypatch.setattr(blockwise, "CHUNK", 16)
    monkeypatch.setattr(ring, "LONG", LENGTH - 1)
    lowered = jax.jit(among(True, None, None, rate)).lower(*INPUTS)
    assert f"{LENGTH}x{LENGTH}x" not in lowered.as_text()
    for one, found in zip(
        *map(jax.tree.leaves, (expected, lowered.compile()(*INPUTS))), strict=True
    ):
        np.testing.assert_allclose(found, one, atol=5e-6)


@pytest.mark.parametrize(
    ("length", "size"), [(8, 8), (512, 512), (1024, 512), (1280, 427), (1021, 1021), (640, 320)]
)
def test_chunks_are_equal_and_few(length, size):
    found = blockwise.chunk_of(length)
    assert length % found == 0
    assert found == length or found <= blockwise.CHUNK
    if length % size == 0:
        assert found == size
