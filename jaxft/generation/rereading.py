"""Texts from models that keep nothing of the tokens before, as bridged ones: each is read again for each
token that it gets.

Texts lie at the left of their rows, so that positions, masks and distances are those of a text alone in every
architecture, and padding after it is seen by none of its tokens. Rows have lengths that are powers of two,
so few programs are compiled.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxft.generation.sampling import Numbers, Sampling, Structure, choose
from jaxft.generation.search import Advance
from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.models.contract import Architecture, Pass, Rereading
from jaxft.models.families import FAMILIES
from jaxft.models.family import Batch, TextLimits
from jaxft.models.tree import Params

CHUNK = 16  # tokens between two looks at which texts have ended
_LEAST = 32  # tokens of the shortest rows
# Model types whose class gives the last token other logits where padding follows it, or nothing does.
_AHEAD = ("cpmant", "prophetnet", "xlnet")


def check_rereads(architecture: Architecture) -> None:
    """Raises ValueError for a bridged model whose texts would not be those of its class."""
    if architecture.model_type in _AHEAD and not isinstance(architecture, NativeArchitecture):
        raise ValueError(
            f"{architecture.model_type} is bridged, and what its class says of a token depends on what "
            "follows it, so it does not write texts here; of any other model type it can be tried"
        )


def row_length(tokens: int, most: int) -> int:
    """The power of two that holds so many, at most `most`."""
    return min(most, max(_LEAST, 1 << (tokens - 1).bit_length()))


def without_cache(architecture: Architecture) -> str:
    """What it costs that there is none, in one line; '' of a native family, which has one."""
    if isinstance(architecture, NativeArchitecture):
        return ""
    limits, head = architecture.limits, architecture.head
    assert isinstance(limits, TextLimits)
    programs = ""
    if head == "causal":
        count = len(row_lengths(limits.positions))
        programs = f", in one program for each power of two of its tokens, {count} at most"
    native = ", ".join(name for name, family in FAMILIES.items() if head in family.heads)
    return (
        f"{architecture.model_type} is bridged and writes without a cache: each token takes a pass over "
        f"the whole text so far{programs}; native families keep what they have read and are faster: {native}"
    )


def row_lengths(most: int) -> list[int]:
    """All that there are."""
    return sorted(
        {row_length(n, most) for n in (*(1 << k for k in range(most.bit_length())), most)}
    )


class Rows:
    """The texts of some sequences, see `decoding.Sequences`."""

    def __init__(
        self,
        architecture: Rereading,
        params: Params,
        *,
        count: int,
        sampling: Sampling,
        most: int,
        ends: np.ndarray,
        dtype: jax.typing.DTypeLike,
    ):
        self._texts: list[list[int]] = [[] for _ in range(count)]
        self._numbers = np.zeros(count, np.int32)  # of the prompts
        self._made = np.zeros(count, np.int32)
        limits = architecture.limits
        assert isinstance(limits, TextLimits)
        self._positions, self._most = limits.positions, most
        self._given = (ends, sampling.numbers)
        self._program = functools.partial(
            _go_on,
            params,
            architecture=architecture,
            structure=sampling.structure,
            dtype=np.dtype(dtype),
        )

    def begin(
        self, free: Sequence[int], waiting: Sequence[tuple[int, Sequence[int]]]
    ) -> list[list[int]]:
        """All that there is room for; nothing is read yet."""
        for sequence, (number, prompt) in zip(free, waiting, strict=False):
            self._texts[sequence] = list(prompt)
            self._numbers[sequence], self._made[sequence] = number, 0
        return [[] for _ in range(min(len(free), len(waiting)))]

    def go_on(self, live: np.ndarray) -> list[list[int]]:
        """Up to CHUNK more tokens of each that is live."""
        left = np.minimum(CHUNK, self._most - self._made)
        longest = max(len(self._texts[n]) + left[n] for n in np.flatnonzero(live))
        tokens = np.zeros((len(live), row_length(int(longest), self._positions)), np.int32)
        lengths = np.zeros(len(live), np.int32)
        for n in np.flatnonzero(live):
            lengths[n] = len(self._texts[n])
            tokens[n, : lengths[n]] = self._texts[n]
        rows = np.asarray(
            self._program(tokens, lengths, self._numbers, self._made, live, left, *self._given)
        )
        found = [row[row >= 0].tolist() for row in rows]
        for sequence, new in enumerate(found):
            self._texts[sequence] += new
            self._made[sequence] += len(new)
        return found


@functools.partial(jax.jit, static_argnames=("architecture", "structure", "dtype"))
def _go_on(
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    prompts: jax.Array,
    made: jax.Array,
    live: jax.Array,
    left: jax.Array,
    ends: jax.Array,
    numbers: Numbers,
    *,
    architecture: Rereading,
    structure: Structure,
    dtype: Any,
) -> jax.Array:
    """[B, CHUNK] int32: the next tokens of those that are `live` [B], at most `left` [B] of each, -1 after
    the end of a text. tokens: [B, L] int32, the first `lengths` [B] of each row are its text."""
    rows, places = jnp.arange(len(tokens)), jnp.arange(tokens.shape[1])
    limits = architecture.limits
    assert isinstance(limits, TextLimits)
    seen = None
    if structure.penalty:
        there = jnp.where(places < lengths[:, None], tokens, limits.vocabulary)
        seen = jnp.zeros((len(tokens), limits.vocabulary), bool)
        seen = seen.at[rows[:, None], there].set(True, mode="drop")

    def more(carry: Any) -> jax.Array:
        step, live, *_ = carry
        return (step < CHUNK) & live.any()

    def advance(carry: Any) -> Any:
        step, live, tokens, lengths, seen, found = carry
        batch = {
            "input_ids": tokens,
            "segment_ids": (places < lengths[:, None]).astype(jnp.int32),
        }
        last = jnp.maximum(lengths - 1, 0)
        logits = architecture.next_logits(params, batch, last, Pass(dtype=dtype))
        new = choose(logits, prompts, made + step, seen, structure, numbers)
        if seen is not None:
            seen = seen.at[rows, new].set(True)
        # Past the end, and so dropped, where a text has ended.
        tokens = tokens.at[rows, jnp.where(live, lengths, len(places))].set(new, mode="drop")
        column = jnp.where(live, new, -1)[:, None]
        found = lax.dynamic_update_slice_in_dim(found, column, step, axis=1)
        lengths = lengths + live
        live = live & (step + 1 < left) & ~(new[:, None] == ends).any(-1)
        return step + 1, live, tokens, lengths, seen, found

    found = jnp.full((len(tokens), CHUNK), -1, jnp.int32)
    first = (jnp.int32(0), live, tokens, lengths, seen, found)
    return lax.while_loop(more, advance, first)[-1]


def prepared(
    architecture: Rereading, params: Params, batch: Batch, most: int, count: int, how: Pass
) -> tuple[Advance, Any]:
    """How `count` sequences of each text advance by a token, and the empty cache [R * count, most], which
    is their tokens: see `encoder_decoder.prepared`.

    The encoder runs once. The decoder's rows are as long as the least power of two that holds what is there.

    Raises:
        ValueError: as `check_rereads`.
    """
    check_rereads(architecture)
    given = {name: batch[name] for name in ("input_ids", "segment_ids")}
    given = {
        name: jnp.repeat(x, count, axis=0)
        for name, x in architecture.encoded(params, given, how).items()
    }
    lengths = row_lengths(most)
    edges = jnp.asarray(lengths)

    def advance(cache: jax.Array, tokens: jax.Array, step: jax.Array) -> tuple[jax.Array, Any]:
        cache = lax.dynamic_update_slice_in_dim(cache, tokens[:, None], step, axis=1)

        def logits(length: int, cache: jax.Array) -> jax.Array:
            present = jnp.broadcast_to(jnp.arange(length) <= step, (len(cache), length))
            sides = {
                "decoder_input_ids": cache[:, :length],
                "decoder_segment_ids": present.astype(jnp.int32),
            }
            places = jnp.full(len(cache), step)
            return architecture.next_logits(params, given | sides, places, how)

        branches = [functools.partial(logits, length) for length in lengths]
        return lax.switch(jnp.searchsorted(edges, step, side="right"), branches, cache), cache

    return advance, jnp.zeros((len(given["input_ids"]), most), jnp.int32)
