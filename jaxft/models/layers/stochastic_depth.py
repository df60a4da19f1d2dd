"""Stochastic depth (Huang et al., 2016, arXiv:1603.09382): residual branches left out at random.

Each branch is left out of each example by a draw of its own, as `drop_path` of timm and transformers does
it, and what is kept is scaled, so that the mean stays. In packed rows of text each text is an example.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models.layers import seeds

# What is added to the residual stream -> the same, left out of some examples.
Branch = Callable[[jax.Array], jax.Array]

# More than the segments of a row, so that rows do not share numbers.
_SEGMENTS = 2**16


class Odds(NamedTuple):
    """How often a branch is left out, as a program takes it: scalars, or arrays of as many blocks.

    Attributes:
        least: uint32, of the hashes of which a branch is kept.
        scale: fp32, of what is kept.
    """

    least: Any
    scale: Any


def odds(rate: float) -> Odds:
    """Of a rate below 1."""
    return Odds(np.uint32(round(rate * 2**32)), np.float32(1 / (1 - rate)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StochasticDepth:
    """Of one block.

    Attributes:
        seed: of `seeds.seed_of`.
        odds: how often a branch is left out of an example.
    """

    seed: jax.Array
    odds: Odds

    def branches(self, count: int, segments: jax.Array | None) -> tuple[Branch, ...]:
        """Of `count` branches, each with its draws.

        Args:
            segments: ids [R, T] of the tokens that the branches give, 0 = padding; None: images.
        """
        return tuple(
            functools.partial(left_out, seed=seed, odds=self.odds, segments=segments)
            for seed in seeds.split(self.seed, count)
            if seed is not None
        )


def whole(update: jax.Array) -> jax.Array:
    """A branch of which nothing is left out."""
    return update


def left_out(
    update: jax.Array, *, seed: jax.Array, odds: Odds, segments: jax.Array | None
) -> jax.Array:
    """Zeros for examples that are drawn, the others scaled.

    A draw depends on the seed, the row and the segment alone, so a sharded array gets those of the whole,
    and each device under pmap those of its part.

    Args:
        update: [B, ...] of images, or [R, T, D] of packed texts.
        segments: [R, T] of its tokens; None: images.
    """
    number = jax.lax.iota(jnp.uint32, len(update)) + seeds.before(seed, len(update))
    if segments is not None:
        number = number[:, None] * jnp.uint32(_SEGMENTS) + segments.astype(jnp.uint32)
    keep = seeds.hashed(number, seed) >= odds.least
    keep = keep.reshape(keep.shape + (1,) * (update.ndim - keep.ndim))
    return jnp.where(keep, update * jnp.asarray(odds.scale, update.dtype), 0)


def rising(rate: float, blocks: int) -> tuple[float, ...]:
    """Of each block, from 0 of the first, by equal steps, to `rate` of the last."""
    return tuple(np.linspace(0, rate, blocks).tolist()) if blocks > 1 else (rate,) * blocks
