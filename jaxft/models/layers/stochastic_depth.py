"""Stochastic depth (Huang et al., 2016, arXiv:1603.09382): residual branches left out at random.

Each branch is left out of each example by a draw of its own, as `drop_path` of timm and transformers does
it, and what is kept is scaled, so that the mean stays. In packed rows of text each text is an example.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models.layers import seeds

# What is added to the residual stream -> the same, left out of some examples.
Branch = Callable[[jax.Array], jax.Array]

# More than the segments of a row, so that rows do not share numbers.
_SEGMENTS = 2**16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StochasticDepth:
    """Of one block.

    Attributes:
        seed: of `seeds.seed_of`.
        rate: how often a branch is left out of an example; below 1.
    """

    seed: jax.Array
    rate: float = dataclasses.field(metadata={"static": True})

    def branches(self, count: int, segments: jax.Array | None) -> tuple[Branch, ...]:
        """Of `count` branches, each with its draws.

        Args:
            segments: ids [R, T] of the tokens that the branches give, 0 = padding; None: images.
        """
        return tuple(
            functools.partial(left_out, seed=seed, rate=self.rate, segments=segments)
            for seed in seeds.split(self.seed, count)
            if seed is not None
        )


def whole(update: jax.Array) -> jax.Array:
    """A branch of which nothing is left out."""
    return update


def left_out(
    update: jax.Array, *, seed: jax.Array, rate: float, segments: jax.Array | None
) -> jax.Array:
    """Zeros for examples that are drawn with probability `rate`, the others scaled by 1 / (1 - rate).

    A draw depends on the seed, the row and the segment alone, so a sharded array gets those of the whole,
    and each device under pmap those of its part.

    Args:
        update: [B, ...] of images, or [R, T, D] of packed texts.
        segments: [R, T] of its tokens; None: images.
    """
    number = jax.lax.iota(jnp.uint32, len(update)) + seeds.before(seed, len(update))
    if segments is not None:
        number = number[:, None] * jnp.uint32(_SEGMENTS) + segments.astype(jnp.uint32)
    keep = seeds.hashed(number, seed) >= jnp.uint32(round(rate * 2**32))
    keep = keep.reshape(keep.shape + (1,) * (update.ndim - keep.ndim))
    return jnp.where(keep, update * (1 / (1 - rate)), 0).astype(update.dtype)


def rising(rate: float, blocks: int) -> tuple[float, ...]:
    """Of each block, from 0 of the first, by equal steps, to `rate` of the last."""
    return tuple(np.linspace(0, rate, blocks).tolist()) if blocks > 1 else (rate,) * blocks
