"""Which tokens of a row look at which, said before a mask is made of it: of long rows there is none.

A mask has an element for each pair of tokens. Where a row is cut over the context axis of a mesh, no device
ever has it: `ring.py` makes the part that it needs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxft.models.layers import ops


class Places(NamedTuple):
    """Where tokens are.

    Attributes:
        segments: ids [B, T] of the examples that share a row; 0: padding.
        positions: [B, T], from 0 on in each example; None where none is asked for.
    """

    segments: jax.Array
    positions: jax.Array | None = None

    def at(self, reads: jax.Array | None) -> Places:
        """The same of the tokens at positions [B, K] of the row; None: of all."""
        own = None if self.positions is None else ops.take(self.positions, reads)
        return Places(ops.take(self.segments, reads), own)


class Sight(NamedTuple):
    """What a token may look at: tokens of its own example and, of these, so many.

    Attributes:
        places: of all tokens of the rows.
        reads: positions [B, K] in the row of the tokens that look; None: all look.
        causal: at itself and those before it, at none after it.
        reach: at most this far before or, if not causal, after it; None: at any distance.
        looking: the places of the tokens that look, where they are of other rows, as a decoder's are that
            look at an encoder's; None: those at which they look.
    """

    places: Places
    reads: jax.Array | None = None
    causal: bool = False
    reach: int | None = None
    looking: Places | None = None

    def mask(self) -> jax.Array:
        """[B, 1, Q, T], True where a query may look."""
        looking = self.places if self.looking is None else self.looking
        return visible(looking.at(self.reads), self.places, self.causal, self.reach)


def visible(queries: Places, keys: Places, causal: bool, reach: int | None) -> jax.Array:
    """Those of [B, Q] and [B, T] -> [B, 1, Q, T], True where a query may look at a key."""
    mask = ops.segment_mask(queries.segments, keys.segments)
    if not causal and reach is None:
        return mask
    assert queries.positions is not None and keys.positions is not None
    before = queries.positions[:, None, :, None] - keys.positions[:, None, None, :]
    if causal:
        mask = mask & (before >= 0)
    return mask if reach is None else mask & (jnp.abs(before) <= reach)
