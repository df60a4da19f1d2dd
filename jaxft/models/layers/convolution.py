"""Convolutions and pooling of feature maps [B, H, W, C], with the numbers of PyTorch's modules."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxft.models.layers import ops
from jaxft.models.layers.batch_norm import BatchNorm, Moments, Sample
from jaxft.models.layers.stochastic_depth import Branch

# Results of so few positions are products of matrices on the CPU, where XLA's own convolutions of small maps
# are slow. Measured on one core, 32 maps, 3 x 3, forward and backward, in ms: 2 x 2 of 512 channels 1,100
# against 22; 2 x 2 of 256 93 against 6; 4 x 4 of 512 88 against 81; from 8 x 8 on the convolution is faster.
_FEW = 16


class Convolution(nnx.Module):
    """`inputs` -> `outputs` channels by a kernel [size, size, inputs, outputs].

    Args:
        depthwise: each output is of its own input; the kernel is [size, size, 1, outputs].
        std: of the initial values; None: so that gradients keep their spread through a ReLU.
        padding: rows and columns of zeros on each side; None: so many that a stride of 1 keeps the
            size of the images.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int,
        rngs: nnx.Rngs,
        stride: int = 1,
        padding: int | None = None,
        use_bias: bool = False,
        depthwise: bool = False,
        std: float | None = None,
    ):
        # He et al. 2015, arXiv:1502.01852, for the backward pass.
        std = math.sqrt(2 / (size * size * outputs)) if std is None else std
        shape = (size, size, 1 if depthwise else inputs, outputs)
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None
        self.stride, self.padding = stride, size // 2 if padding is None else padding
        self.groups = inputs if depthwise else 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, in] -> [B, H / stride, W / stride, out], rounded up, in the dtype of `x`."""
        kernel, stride, edge = self.kernel[...].astype(x.dtype), self.stride, self.padding
        height, width = ((side + 2 * edge - len(kernel)) // stride + 1 for side in x.shape[1:3])
        if self.groups == 1 and height * width <= _FEW and jax.default_backend() == "cpu":
            x = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
            columns = _patches(x, len(kernel), stride, height, width)
            flat = columns.reshape(-1, columns.shape[-1])
            bias = None if self.bias is None else self.bias[...]
            product = ops.linear(flat, kernel.reshape(flat.shape[1], kernel.shape[-1]), bias)
            return product.reshape(*columns.shape[:3], kernel.shape[-1])
        product = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=[(edge, edge)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return product if self.bias is None else product + self.bias[...].astype(x.dtype)


def _patches(x: jax.Array, size: int, stride: int, height: int, width: int) -> jax.Array:
    """[B, H, W, C] -> [B, height, width, size * size * C], what each position of the result is made of."""
    down, across = stride * (height - 1) + 1, stride * (width - 1) + 1
    return jnp.concatenate(
        [
            x[:, i : i + down : stride, j : j + across : stride]
            for i in range(size)
            for j in range(size)
        ],
        axis=-1,
    )


Normed = tuple[Convolution, BatchNorm]


def residual(
    x: jax.Array,
    layers: Sequence[Normed],
    shortcut: Normed | None,
    activation: Callable[[jax.Array], jax.Array],
    sample: Sample | None,
    branch: Branch,
) -> tuple[jax.Array, dict[str, Moments]]:
    """activation(branch(layers(x)) + x) and the norms' moments; `x` through `shortcut` where its shape
    changes.

    He et al., 2015, arXiv:1512.03385: a ReLU after each layer but the last.
    """
    y, moments = x, dict[str, Moments]()
    for number, (convolution, norm) in enumerate(layers):
        y, seen = norm(convolution(jax.nn.relu(y) if number else y), sample)
        moments |= seen
    if shortcut is not None:
        convolution, norm = shortcut
        x, seen = norm(convolution(x), sample)
        moments |= seen
    return activation(branch(y) + x), moments


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
    """The largest of each `size` x `size` values, [B, H, W, C] -> [B, H / stride, W / stride, C].

    Windows that do not fit are left out; padding is never the largest.
    """
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, edges)


def adaptive_mean(x: jax.Array, height: int, width: int) -> jax.Array:
    """[B, H, W, C] -> [B, height, width, C]: means of parts that overlap where they do not divide.

    As torch.nn.AdaptiveAvgPool2d has the parts; larger maps than `x` repeat its values.
    """
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = _parts(x.shape[1], height), _parts(x.shape[2], width)
    highest = lax.Precision.HIGHEST
    return jnp.einsum("bhwc,ph,qw->bpqc", x, rows, columns, precision=highest).astype(x.dtype)


def _parts(length: int, parts: int) -> np.ndarray:
    """float32 [parts, length], whose rows take the means from floor(i L / P) to ceil((i + 1) L / P)."""
    weights = np.zeros((parts, length), np.float32)
    for part in range(parts):
        start, stop = part * length // parts, -(-(part + 1) * length // parts)
        weights[part, start:stop] = 1 / (stop - start)
    return weights
