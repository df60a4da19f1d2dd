"""Convolutions of small maps are products of matrices on the CPU, with the numbers of convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxft.models.layers.convolution import Convolution


def plain(layer: Convolution, x: jax.Array) -> jax.Array:
    y = lax.conv_general_dilated(
        x, layer.kernel[...], (layer.stride,) * 2, [(layer.padding,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return y if layer.bias is None else y + layer.bias[...]


@pytest.mark.parametrize(
    "image, size, stride, padding",
    [
        ((2, 2), 3, 1, None),
        ((5, 3), 3, 2, None),
        ((7, 7), 7, 1, 0),
        ((4, 3), 1, 2, None),
    ],
)
def test_value_and_gradients_of_small_maps_are_those_of_the_convolution(
    image, size, stride, padding
):
    layer = Convolution(
        3, 5, size=size, stride=stride, padding=padding, use_bias=True, rngs=nnx.Rngs(0)
    )
    layer.bias = nnx.Param(jnp.arange(5.0))
    graph, params = nnx.split(layer)
    x = jax.random.normal(jax.random.key(1), (2, *image, 3))

    def total(apply, params, x):
        y = apply(nnx.merge(graph, params), x)
        return (y * jnp.arange(y.size).reshape(y.shape)).sum(), y

    ours, theirs = (
        jax.jit(jax.value_and_grad(lambda p, x, f=f: total(f, p, x), (0, 1), has_aux=True))(
            params, x
        )
        for f in (Convolution.__call__, plain)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("side, convolved", [(2, False), (4, False), (8, True)])
def test_only_large_maps_are_convolved(side, convolved):
    layer = Convolution(3, 5, size=3, rngs=nnx.Rngs(0))
    program = str(jax.make_jaxpr(layer)(jnp.zeros((2, side, side, 3))))
    assert ("conv_general_dilated" in program) == convolved
