"""Attention in rows that are cut over devices is that of whole rows, with its gradients and its dropout."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models.layers import attention, blockwise, ring, slices
from jaxft.models.layers.sight import Places, Sight
from jaxft.models.layers.slices import Slices
from jaxft.planning import hlo
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


@pytest.fixture(autouse=True)
def _as_in_long_rows(monkeypatch):
    monkeypatch.setattr(slices, "SPARED", 0)  # so that short rows are balanced, too


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


def over(sizes, function, inputs=INPUTS):
    """Its results over a mesh."""
    return compiled(sizes, function, inputs)(*inputs)


def compiled(sizes, function, inputs=INPUTS):
    parallel = make_parallel("shard", **sizes)
    whole = jax.sharding.NamedSharding(parallel.mesh, jax.sharding.PartitionSpec())
    with jax.sharding.use_abstract_mesh(parallel.mesh.abstract_mesh):
        mapped = jax.jit(function, in_shardings=whole, out_shardings=whole)
        return mapped.lower(*inputs).compile()


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


def biased(causal: bool):
    """(attention with a bias for each distance, its gradients by query, key, value and biases)."""
    places = Places(jnp.asarray(SEGMENTS), jnp.asarray(POSITIONS))

    def total(query, key, value, biases):
        sight = Sight(places, causal=causal)
        out = attention.among(query, key, value, sight, rate=0.3, seed=SEED, biases=biases)
        out = jnp.where((places.segments > 0)[:, :, None, None], out, 0)
        return (out * COTANGENT).sum(), out

    return jax.grad(total, (0, 1, 2, 3), has_aux=True)


@pytest.mark.parametrize(
    ("name", "causal"),
    [
        ("context 8", True),
        pytest.param("context 8", False, marks=pytest.mark.slow),
        pytest.param("fsdp 2 context 2 tensor 2", True, marks=pytest.mark.slow),
        pytest.param("data 8", True, marks=pytest.mark.slow),
    ],
)
def test_biases_of_distances_are_added_with_their_gradients(monkeypatch, name, causal):
    monkeypatch.setattr(blockwise, "CHUNK", 4)
    biases = np.random.default_rng(4).normal(size=(2 * LENGTH, HEADS)).astype(np.float32)
    inputs = (*INPUTS, biases)
    expected = jax.jit(biased(causal))(*inputs)
    monkeypatch.setattr(ring, "LONG", 0)
    found = over(MESHES.get(name, {"data": 8}), biased(causal), inputs)
    assert np.abs(expected[0][3]).max() > 0.1
    for one, many in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(many, one, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["context 8", pytest.param("fsdp 2 context 2 tensor 2", marks=pytest.mark.slow)]
)
def test_rows_that_are_cut_look_at_others_that_are(monkeypatch, name):
    monkeypatch.setattr(blockwise, "CHUNK", 4)
    segments, half = jnp.asarray(SEGMENTS), LENGTH // 2
    looking = jnp.repeat(jnp.array([[1] * 9 + [2] * 20 + [0] * 3]), ROWS, 0)

    def both(query, key, value):
        def total(*inputs):
            sight = Sight(Places(segments), looking=Places(looking))
            out = attention.among(*inputs, sight, rate=0.3, seed=SEED)
            out = jnp.where((looking > 0)[:, :, None, None], out, 0)
            return (out * COTANGENT[:, :half]).sum(), out

        return jax.grad(total, (0, 1, 2), has_aux=True)(query, key, value)

    inputs = (INPUTS[0][:, :half], *INPUTS[1:])
    expected, found = jax.jit(both)(*inputs), over(MESHES[name], both, inputs)
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


@pytest.mark.parametrize("count", [2, 4, 8])
def test_each_device_has_as_much_to_do_at_each_step_of_a_causal_row(count):
    length = 16384 // count
    found = Slices.of(count, length, True, None).pairs(True, None)
    assert (found == found[0]).all()
    # Of 32 chunks, those of a query and a key that is not after it.
    assert found.sum() == 32 * 33 // 2
    before = Slices(count, length, False).pairs(True, None)
    assert before.sum() == found.sum()
    assert before.max(0).sum() / before.sum(1).mean() > 2 * count / (count + 1)


@pytest.mark.parametrize(
    ("length", "causal", "reach", "paired"),
    [
        (2048, False, None, False),  # every device sees all
        (2048, True, 2048, False),  # each sees its own slice and the one before
        (2048, False, 2048, False),
        (2048, True, 16383, True),
        (1, True, None, False),
        (2, True, None, True),
    ],
)
def test_slices_are_paired_where_that_spares_work(length, causal, reach, paired):
    assert Slices.of(8, length, causal, reach).paired == paired


def test_slices_are_paired_from_a_length_on(monkeypatch):
    monkeypatch.undo()
    assert Slices.of(8, 2048 // 8, True, None).paired
    assert not Slices.of(8, 1024 // 8, True, None).paired


def one_text(length: int) -> Places:
    return Places(jnp.ones((ROWS, length), jnp.int32), jnp.tile(jnp.arange(length), (ROWS, 1)))


def test_no_device_computes_more_than_is_counted(monkeypatch):
    monkeypatch.setattr(blockwise, "CHUNK", 4)
    done, added = Counter(), blockwise.Sums.added

    def counted(self, part, queries, keys, seen):
        def count(*at):
            done[tuple(int(x) for x in at)] += 1

        device = jax.lax.axis_index("context")
        jax.debug.callback(count, device, queries.first, keys.first)
        return added(self, part, queries, keys, seen)

    monkeypatch.setattr(blockwise.Sums, "added", counted)

    def attend(*inputs):
        sight = Sight(one_text(LENGTH), causal=True)
        return attention.among(*inputs, sight, rate=0.0, seed=None)

    jax.block_until_ready(over({"context": 8}, attend))
    jax.effects_barrier()
    cut = Slices.of(8, LENGTH // 8, True, None)
    assert cut.size == 4
    firsts = cut.firsts(np.arange(8))
    owner = {int(first): device for device, own in enumerate(firsts) for first in own}
    assert sorted(owner) == list(range(0, LENGTH, 4))
    found = np.zeros((8, 8), int)
    for (device, query, key), times in done.items():
        assert owner[query] == device and key <= query and times == 1
        found[device, (device - owner[key]) % 8] += 1
    np.testing.assert_array_equal(found, cut.pairs(True, None))


def test_half_of_queries_keys_values_and_output_is_sent_to_balance_a_row(monkeypatch):
    def permuted():
        def total(*inputs):
            sight = Sight(one_text(LENGTH), causal=True)
            return attention.among(*inputs, sight, rate=0.0, seed=None).sum()

        text = compiled({"context": 8}, jax.grad(total, (0, 1, 2))).as_text()
        return hlo.by_kind(hlo.collectives(text, {"context": 8}))["collective-permute"]

    balanced = permuted()
    monkeypatch.setattr(slices, "SPARED", LENGTH)
    queries, keys, tokens = (
        x // 8 for x in (INPUTS[0].nbytes, INPUTS[1].nbytes, ROWS * LENGTH * 4)
    )
    # Queries, output, their gradients, keys and values; places, and a sum for each query and head. The
    # gradients of keys and values go to where their slices are instead of to the next device.
    half = (4 * queries + 2 * keys + 2 * tokens + HEADS * tokens) / 2
    assert balanced - permuted() == half


@pytest.mark.parametrize(
    ("length", "size"), [(8, 8), (512, 512), (1024, 512), (1280, 427), (1021, 1021), (640, 320)]
)
def test_chunks_are_equal_and_few(length, size):
    found = blockwise.chunk_of(length)
    assert length % found == 0
    assert found == length or found <= blockwise.CHUNK
    if length % size == 0:
        assert found == size
