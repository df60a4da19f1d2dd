"""Images or feature maps cut into patches that do not overlap, and each patch mapped linearly."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx


class Projection(nnx.Module):
    """A convolution with its kernel's size as stride, which is one product of flattened patches."""

    def __init__(
        self,
        patch: tuple[int, int],
        inputs: int,
        outputs: int,
        *,
        std: float,
        rngs: nnx.Rngs,
        use_bias: bool = True,
    ):
        shape = (*patch, inputs, outputs)  # HWIO
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, in] -> [B, H / P, W / Q, out] in the dtype of `images`; a rest is cut off."""
        p, q, channels, width = self.kernel.shape
        batch, rows, columns = len(images), images.shape[1] // p, images.shape[2] // q
        whole = images[:, : rows * p, : columns * q]
        patches = whole.reshape(batch, rows, p, columns, q, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(-1, p * q * channels)
        mapped = patches @ self.kernel[...].reshape(-1, width).astype(images.dtype)
        if self.bias is not None:
            mapped = mapped + self.bias[...].astype(images.dtype)
        return mapped.reshape(batch, rows, columns, width)


def require_shape(images: jax.Array, expected: Sequence[int]) -> None:
    """Raises ValueError if images are not (height, width, channels) as the positions of a checkpoint are."""
    if images.shape[1:] != tuple(expected):
        raise ValueError(
            "pixel_values are (height, width, channels) = "
            f"{images.shape[1:]}, but the checkpoint takes {tuple(expected)}"
        )


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a config's number or two: 16 -> (16, 16); [16, 8] -> (16, 8)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
