"""Keys and values of the tokens that are there, in a ring of slots that all sequences write alike.

At each step every sequence writes the slot of the clock, wherever its own text is, so one slice of the
array is written; positions say which token lies where. A prompt is laid just behind the clock. A text of
at most as many tokens as there are slots is never overwritten.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.models.family import Cache
from jaxft.models.incremental import Entries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ring:
    """The caches of B sequences.

    Attributes:
        keys, values: of each block [B, G, S, C].
        positions: [B, S] int32 of the tokens in their texts; -1: an empty slot.
        clock: int32 scalar, steps so far.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    positions: jax.Array
    clock: jax.Array

    def caches(self, positions: jax.Array) -> list[Cache]:
        """What the blocks are given to write a token of each sequence, whose position [B] is -1 where
        it is none."""
        slot = self.clock % self.positions.shape[1]
        placed = lax.dynamic_update_slice_in_dim(self.positions, positions[:, None], slot, 1)
        pairs = zip(self.keys, self.values, strict=True)
        return [Cache(keys, values, placed, slot) for keys, values in pairs]

    def after(self, caches: list[Cache], entries: Entries) -> "Ring":
        """With what the blocks, given these caches, have left."""
        keys, values = zip(*entries, strict=True)
        placed = caches[0].positions
        assert placed is not None
        return Ring(keys, values, placed, self.clock + 1)

    def begun(
        self, entries: Entries, sequences: jax.Array, starts: jax.Array, lengths: jax.Array,
        count: jax.Array,
    ) -> "Ring":  # fmt: skip
        """With the prompts of one packed row, [1, T, G, C], in place of what some sequences had.

        Args:
            sequences, starts, lengths: [K] int32 of each prompt: whose it is, where it lies in the row.
            count: how many of them there are.
        """
        slots = jnp.arange(self.positions.shape[1])

        def lay(number: jax.Array, ring: Ring) -> Ring:
            at, length = sequences[number], lengths[number]
            place = (slots - (ring.clock - length)) % len(slots)  # of the token in its text
            taken = starts[number] + jnp.minimum(place, length - 1)

            def write(caches: tuple[jax.Array, ...], which: int) -> tuple[jax.Array, ...]:
                return tuple(
                    lax.dynamic_update_slice_in_dim(
                        cache, new[which][:, taken].transpose(0, 2, 1, 3), at, 0
                    )
                    for cache, new in zip(caches, entries, strict=True)
                )

            own = jnp.where(place < length, place, -1)[None].astype(jnp.int32)
            placed = lax.dynamic_update_slice_in_dim(ring.positions, own, at, 0)
            return Ring(write(ring.keys, 0), write(ring.values, 1), placed, ring.clock)

        return lax.fori_loop(0, count, lay, self)


def empty(shapes: list[tuple[int, int]], sequences: int, slots: int, dtype: jax.typing.DTypeLike):
    """A ring for so many sequences; shapes: (G, C) of each block."""
    keys, values = (
        tuple(jnp.zeros((sequences, heads, slots, width), dtype) for heads, width in shapes)
        for _ in range(2)
    )
    return Ring(keys, values, jnp.full((sequences, slots), -1, jnp.int32), jnp.int32(0))
