"""The two programs of generation, and what they hand on.

`begin` reads prompts, packed in one row of a bounded length, and chooses their first tokens; `go_on`
chooses up to CHUNK more for every sequence, a token at a time, without a word to the host.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxft.generation.cache import Ring, empty
from jaxft.generation.sampling import Numbers, Structure, choose
from jaxft.models import incremental, vocabulary
from jaxft.models.architecture import Architecture
from jaxft.models.family import Cache
from jaxft.models.tree import Params

CHUNK = 16  # tokens between two looks at which sequences have ended


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Of B sequences.

    Attributes:
        ring: what is kept of their tokens but the last.
        last: [B] int32, the token chosen last, which has not been read.
        position: [B] int32, its own.
        prompt: [B] int32, the number of the prompt.
        made: [B] int32, tokens that were chosen.
        seen: [B, V] bool, the tokens of prompt and text; None: no setting asks for it.
    """

    ring: Ring
    last: jax.Array
    position: jax.Array
    prompt: jax.Array
    made: jax.Array
    seen: jax.Array | None


def first(architecture: Architecture, count: int, slots: int, dtype: Any, penalty: bool) -> State:
    """Nothing yet."""
    ring = empty(_widths(architecture), count, slots, dtype)
    zeros = jnp.zeros(count, jnp.int32)
    seen = jnp.zeros((count, architecture.config.vocab_size), bool) if penalty else None
    return State(ring, zeros, zeros + 0, zeros + 0, zeros + 0, seen)


@functools.lru_cache(maxsize=16)
def _widths(architecture: Architecture) -> list[tuple[int, int]]:
    """Heads of the keys of each block and their width, as its entries have them."""
    one = {
        name: jax.ShapeDtypeStruct((1, 1), np.int32)
        for name in ("input_ids", "segment_ids", "positions")
    }
    caches = [Cache()] * architecture.num_blocks
    run = functools.partial(incremental.forward, architecture, caches=caches)
    _, entries = jax.eval_shape(run, architecture.whole, one, one["positions"])
    return [keys.shape[2:] for keys, _ in entries]


@functools.partial(
    jax.jit, static_argnames=("architecture", "structure", "dtype"), donate_argnames="state"
)
def begin(
    params: Params,
    state: State,
    row: dict[str, jax.Array],
    numbers: Numbers,
    *,
    architecture: Architecture,
    structure: Structure,
    dtype: Any,
) -> tuple[State, jax.Array]:
    """Read a row of prompts; the first token of each, [K]."""
    count = len(row["sequences"])
    there = jnp.arange(count) < row["count"]
    batch = {name: row[name] for name in ("input_ids", "segment_ids", "positions")}
    last = jnp.maximum(row["starts"] + row["lengths"] - 1, 0)
    outputs, entries = incremental.forward(
        architecture, params, batch, last[None], [Cache()] * architecture.num_blocks, dtype
    )
    logits = vocabulary.logits(outputs)[0]
    sequences = jnp.where(there, row["sequences"], len(state.last))  # past the end: dropped
    seen = state.seen
    own = None
    if seen is not None:
        segments = row["segment_ids"][0]
        own = jnp.zeros((count + 1, seen.shape[1]), bool)
        own = own.at[jnp.where(segments > 0, segments - 1, count), row["input_ids"][0]].set(True)[
            :-1
        ]
    tokens = choose(logits, row["prompts"], jnp.zeros(count, jnp.int32), own, structure, numbers)
    if seen is not None and own is not None:
        own = own.at[jnp.arange(count), tokens].set(True)
        seen = seen.at[sequences].set(own, mode="drop")

    def put(before: jax.Array, new: jax.Array) -> jax.Array:
        return before.at[sequences].set(new, mode="drop")

    ring = state.ring.begun(entries, row["sequences"], row["starts"], row["lengths"], row["count"])
    after = State(
        ring, put(state.last, tokens), put(state.position, row["lengths"]),
        put(state.prompt, row["prompts"]), put(state.made, jnp.ones(count, jnp.int32)), seen,
    )  # fmt: skip
    return after, tokens


@functools.partial(
    jax.jit, static_argnames=("architecture", "structure", "dtype"), donate_argnames="state"
)
def go_on(
    params: Params,
    state: State,
    live: jax.Array,
    most: jax.Array,
    ends: jax.Array,
    numbers: Numbers,
    *,
    architecture: Architecture,
    structure: Structure,
    dtype: Any,
) -> tuple[State, jax.Array]:
    """[B, CHUNK] int32: the next tokens of those that are `live` [B], -1 after the end of a text."""
    count = len(state.last)
    everywhere = jnp.ones((count, 1), jnp.int32)

    def more(carry: Any) -> jax.Array:
        step, live, _, _ = carry
        return (step < CHUNK) & live.any()

    def advance(carry: Any) -> Any:
        step, live, state, found = carry
        batch = {
            "input_ids": state.last[:, None],
            "segment_ids": everywhere,
            "positions": state.position[:, None],
        }
        caches = state.ring.caches(jnp.where(live, state.position, -1))
        outputs, entries = incremental.forward(
            architecture, params, batch, jnp.zeros((count, 1), jnp.int32), caches, dtype
        )
        logits = vocabulary.logits(outputs)[:, 0]
        tokens = choose(logits, state.prompt, state.made, state.seen, structure, numbers)
        ring = state.ring.after(caches, entries)
        seen = state.seen
        if seen is not None:
            seen = seen.at[jnp.arange(count), tokens].set(True)
        made = state.made + 1
        found = lax.dynamic_update_slice_in_dim(
            found, jnp.where(live, tokens, -1)[:, None], step, axis=1
        )
        live = live & (made < most) & ~(tokens[:, None] == ends).any(-1)
        after = State(ring, tokens, state.position + 1, state.prompt, made, seen)
        return step + 1, live, after, found

    found = jnp.full((count, CHUNK), -1, jnp.int32)
    _, _, state, found = lax.while_loop(more, advance, (jnp.int32(0), live, state, found))
    return state, found
