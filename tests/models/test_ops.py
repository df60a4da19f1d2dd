"""Hand-written backward passes against automatic ones, and what dropout's masks must be."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models.layers import ops, seeds, stochastic_depth
from jaxft.models.layers.sight import Places, Sight

SEED = jnp.array([12345, 67890], jnp.uint32)


def plain_layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def plain_rms_norm(x, scale):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * scale


def plain_attention(query, key, value, mask, keep, scale=None, cap=None):
    repeats = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, repeats, axis=2) for x in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    scores *= 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights * keep, value)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
MASK = ops.segment_mask(SEGMENTS, SEGMENTS)
POSITIONS = jnp.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
READS = jnp.array([[0, 3], [5, 5]])
SOME_MASK = ops.segment_mask(ops.take(SEGMENTS, READS), SEGMENTS)
HEADS = tuple(normal(2, 6, 3, 4, seed=i) for i in range(3))
GROUPED = (normal(2, 6, 6, 4), *(normal(2, 6, 2, 4, seed=i) for i in (1, 2)))
ONE_KEY = (3 * normal(2, 6, 3, 4), *(normal(2, 6, 1, 4, seed=i) for i in (1, 2)))
PLACES = Places(SEGMENTS, POSITIONS)
LATER = Sight(PLACES, READS, causal=True, reach=1).mask()
KEEP = ops.dropout(jnp.ones((2, 3, 6, 6)), 0.4, SEED)
X, KERNEL, BIAS = normal(7, 5), normal(5, 3, seed=1), normal(3, seed=2)
CASES = {
    "linear": (ops.linear, lambda x, w, b: x @ w + b, (X, KERNEL, BIAS)),
    "linear without bias": (
        lambda x, w: ops.linear(x, w, None),
        lambda x, w: x @ w,
        (X, KERNEL),
    ),
    "gelu": (ops.gelu, lambda x: jax.nn.gelu(x, approximate=False), (3 * X,)),
    "layer norm": (
        lambda x, s, b: ops.layer_norm(x, s, b, 1e-6),
        plain_layer_norm,
        (normal(2, 7, 3), BIAS, normal(3, seed=3)),
    ),
    "attention": (
        lambda q, k, v: ops.attention(q, k, v, MASK, rate=0.0, seed=SEED),
        lambda q, k, v: plain_attention(q, k, v, MASK, 1.0),
        HEADS,
    ),
    "attention of some to all": (
        lambda q, k, v: ops.attention(ops.take(q, READS), k, v, SOME_MASK, rate=0.0, seed=None),
        lambda q, k, v: plain_attention(q, k, v, MASK, 1.0)[[[0], [1]], READS],
        HEADS,
    ),
    "attention of all to all": (
        lambda q, k, v: ops.attention(q, k, v, None, rate=0.4, seed=None),
        lambda q, k, v: plain_attention(q, k, v, True, 1.0),
        HEADS,
    ),
    "attention with dropout": (
        lambda q, k, v: ops.attention(q, k, v, MASK, rate=0.4, seed=SEED),
        lambda q, k, v: plain_attention(q, k, v, MASK, KEEP),
        HEADS,
    ),
    "attention in groups": (
        lambda q, k, v: ops.attention(q, k, v, MASK, rate=0.0, seed=None, scale=0.3),
        lambda q, k, v: plain_attention(q, k, v, MASK, 1.0, scale=0.3),
        GROUPED,
    ),
    "attention of all to one head with capped scores": (
        lambda q, k, v: ops.attention(q, k, v, MASK, rate=0.4, seed=SEED, cap=1.5),
        lambda q, k, v: plain_attention(q, k, v, MASK, KEEP, cap=1.5),
        ONE_KEY,
    ),
    "attention of some in groups with capped scores": (
        lambda q, k, v: ops.attention(
            ops.take(q, READS), k, v, LATER, rate=0.0, seed=None, scale=1.1, cap=0.7
        ),
        lambda q, k, v: plain_attention(ops.take(q, READS), k, v, LATER, 1.0, 1.1, 0.7),
        GROUPED,
    ),
    "rms norm": (
        lambda x, s: ops.rms_norm(x, s, 1e-3),
        plain_rms_norm,
        (normal(2, 7, 3), normal(3, seed=3)),
    ),
    "dropout": (
        lambda x: ops.dropout(x, 0.4, SEED),
        lambda x: x * ops.dropout(jnp.ones_like(x), 0.4, SEED),
        (X,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_plain_jax(name):
    function, plain, arguments = CASES[name]
    found, pull = jax.vjp(function, *arguments)
    expected, plain_pull = jax.vjp(plain, *arguments)
    # Also for the padding of SEGMENTS, which may look at nothing: a loss may read it all the same.
    cotangent = normal(*expected.shape, seed=9)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for a, b in zip(pull(cotangent), plain_pull(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_query_that_may_look_at_nothing_moves_values_alone(rate):
    """It gets the mean of all values, whatever query and keys are: finite differences are 0."""
    out, pull = jax.vjp(lambda q, k, v: ops.attention(q, k, v, MASK, rate=rate, seed=SEED), *HEADS)
    padding = (SEGMENTS == 0)[:, :, None, None]
    query, key, value = pull(jnp.where(padding, normal(*out.shape, seed=9), 0))
    assert not np.any(query) and not np.any(key)
    assert np.any(value) and all(np.isfinite(x).all() for x in (out, value))


def test_a_token_sees_itself_and_those_before_it_in_its_window():
    seen = seen_of(3)
    for row, column, other in itertools.product(range(2), range(6), range(6)):
        own = SEGMENTS[row, column] == SEGMENTS[row, other] > 0
        assert seen[row, column, other] == (own and 0 <= column - other < 3)
    everything = Sight(PLACES, causal=True).mask()
    np.testing.assert_array_equal(everything[1, 0], np.tril(np.ones((6, 6), bool)))
    np.testing.assert_array_equal(LATER, ops.take(jnp.asarray(seen_of(2)), READS)[:, None])


def seen_of(window: int) -> np.ndarray:
    """[B, T, T] of all tokens."""
    return np.asarray(Sight(PLACES, causal=True, reach=window - 1).mask())[:, 0]


DTYPES = (jnp.float32, jnp.bfloat16)
MIXED = {
    "linear": (ops.linear, (X, KERNEL, BIAS)),
    "linear without bias": (lambda x, w: ops.linear(x, w, None), (X, KERNEL)),
    "gelu": (ops.gelu, (X,)),
    "layer norm": (CASES["layer norm"][0], CASES["layer norm"][2]),
    "rms norm": (CASES["rms norm"][0], CASES["rms norm"][2]),
    "attention": (CASES["attention with dropout"][0], HEADS),
    "attention with capped scores": (
        CASES["attention of all to one head with capped scores"][0],
        ONE_KEY,
    ),
    "dropout": (lambda x: ops.dropout(x, 0.4, SEED), (X,)),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_gradient_has_the_dtype_of_its_primal(name):
    function, arguments = MIXED[name]

    def loss(*arguments):
        return function(*arguments).astype(jnp.float32).sum()

    for dtypes in itertools.product(DTYPES, repeat=len(arguments)):
        mixed = [x.astype(dtype) for x, dtype in zip(arguments, dtypes, strict=True)]
        gradients = jax.eval_shape(jax.grad(loss, range(len(mixed))), *mixed)
        assert tuple(x.dtype for x in gradients) == dtypes


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameter_gradients_are_summed_in_fp32(dtype):
    # bf16 has 8 bits: a sum in it would stick at 256. 4096 itself fits.
    x, one, zero = jnp.ones((4096, 1), jnp.bfloat16), jnp.ones(1, dtype), jnp.zeros(1, dtype)
    gradient = jax.grad(lambda w, b: ops.linear(x, w, b).astype(jnp.float32).sum(), (0, 1))
    kernel, bias = gradient(one[None], zero)
    assert kernel.dtype == bias.dtype == dtype
    assert kernel[0, 0] == bias[0] == 4096
    norm = jax.grad(lambda s, b: ops.layer_norm(x, s, b, 1e-6).astype(jnp.float32).sum(), (0, 1))
    scale, bias = norm(one, zero)
    assert scale.dtype == bias.dtype == dtype
    assert scale[0] == 0 and bias[0] == 4096


def test_no_seed_or_no_rate_is_the_identity():
    assert ops.dropout(X, 0.5, None) is X and ops.dropout(X, 0.0, SEED) is X
    assert seeds.split(None, 3) == (None, None, None)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_given_share_and_the_mean(rate):
    n = 2**20
    dropped = np.asarray(ops.dropout(jnp.ones(n), rate, SEED))
    assert abs((dropped != 0).mean() - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / (1 - rate)], rtol=1e-6)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """In standard deviations of that of independent samples."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1] * math.sqrt(a.size))


def test_bits_are_uniform_and_neighbours_independent():
    shape = (64, 128, 128)
    bits = np.asarray(seeds.hash_bits(shape, SEED))
    ones = [((bits >> bit) & 1).mean() for bit in range(32)]
    assert np.abs(np.array(ones) - 0.5).max() < 5 * 0.5 / math.sqrt(bits.size)
    keep = (bits >= 2**32 // 10).astype(np.float32)
    for axis in range(3):
        for lag in (1, 2, 3, 16):
            a, b = np.take(keep, range(shape[axis] - lag), axis), np.roll(keep, -lag, axis)
            assert abs(correlation(a, np.take(b, range(shape[axis] - lag), axis))) < 5
    # Neither rows nor columns have more in common than chance: the spread of their means.
    for axes in ((0, 1), (0, 2), (1, 2)):
        means = keep.mean(axes)
        expected = math.sqrt(0.09 / (keep.size / means.size))
        assert 0.6 * expected < means.std() < 1.5 * expected


def test_masks_of_different_seeds_are_independent():
    """Of consecutive PRNG keys and depths, of the sites of one block, and of seeds that differ in one bit."""
    base = [seeds.seed_of(jax.random.key(0), depth) for depth in range(3)]
    near = [SEED, SEED ^ jnp.array([1, 0], jnp.uint32), SEED ^ jnp.array([0, 1], jnp.uint32)]
    swapped = [SEED[::-1]]
    others = [seeds.seed_of(jax.random.key(1), 0), *base, *seeds.split(base[0], 3), *near, *swapped]
    masks = [np.asarray(seeds.hash_bits((2**18,), seed)) >= 2**31 for seed in others]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs(correlation(a, b)) < 5


def test_a_sharded_array_gets_the_mask_of_the_whole_one():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "tensor"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", None, "tensor"))
    x = normal(8, 6, 4)
    drop = jax.jit(lambda x: ops.dropout(x, 0.3, SEED))
    np.testing.assert_array_equal(drop(jax.device_put(x, sharding)), drop(x))
    text = drop.lower(jax.device_put(x, sharding)).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text


def test_each_device_under_pmap_gets_its_part_of_the_mask():
    """Of rows; what is the same on every device, such as a table, is dropped alike."""
    x, key = normal(16, 6, 4), jax.random.key(5)

    def drop(x, axis_name=None):
        first, second, third = seeds.split(seeds.seed_of(key, 1, axis_name), 3)
        depth = stochastic_depth.StochasticDepth(third, stochastic_depth.odds(0.5))
        (branch,) = depth.branches(1, None)
        return (
            ops.dropout(x, 0.3, first),
            ops.dropout(x[0] * 0 + 1, 0.5, ops.without_rows(second)),
            branch(x),
        )

    rows, table, left_out = drop(x)
    mapped = jax.pmap(functools.partial(drop, axis_name="devices"), axis_name="devices")
    own = mapped(x.reshape(8, 2, 6, 4))
    np.testing.assert_array_equal(own[0].reshape(x.shape), rows)
    np.testing.assert_array_equal(own[2].reshape(x.shape), left_out)
    assert all(np.array_equal(one == 0, table == 0) for one in own[1])
    assert 0 < int((np.asarray(left_out).any((1, 2))).sum()) < 16
