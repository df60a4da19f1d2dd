"""Which tokens are chosen: the likeliest one, or the likeliest sequences by beam search.

Both are transformers' own, step by step, so that the same tokens come out: its greedy search, and its beam
search (Graves, 2012, arXiv:1211.3711, with the length penalty of Wu et al., 2016, arXiv:1609.08144, as a
plain power). What a sequence becomes depends on no other sequence of the batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# `(cache, tokens [N] int32, step) ->` logits [N, V] fp32 of the next token of each sequence, and the cache:
# arrays [N, ...] of what is kept of each. step: an int32 scalar, from 0 on.
Advance = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]

_NEVER = -1e9  # as of a sequence that is not to be chosen


@dataclasses.dataclass(frozen=True)
class Ending:
    """When a sequence ends, and what is settled whatever the model says.

    Attributes:
        most: tokens at most, the ending one included.
        end: the token that ends it; None: it has always `most`.
        pad: what stands after its end.
        first: the token that it begins with, as the language of a translation; None: any.
        last: the token of a sequence that has come to `most`; None: any.
        never: tokens that are not chosen.
    """

    most: int
    end: int | None
    pad: int
    first: int | None = None
    last: int | None = None
    never: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Beams:
    """How beams are searched.

    Attributes:
        count: sequences that are followed.
        length_penalty: a sequence's score is its log-probability over its length to this power, so more
            favours longer ones.
        early_stopping: True: as soon as `count` sequences have ended; False: when a longer one is
            unlikely to be better; 'never': when it cannot be, for any length up to the longest.
    """

    count: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


def greedy(advance: Advance, cache: Any, start: jax.Array, ending: Ending) -> jax.Array:
    """The likeliest token at each step: [N, most] int32.

    Args:
        start: [N] int32, what the sequences begin with; it is not returned.
    """
    count = len(start)

    def more(state: Any) -> jax.Array:
        step, _, ended, _, _ = state
        return (step < ending.most) & ~ended.all()

    def advanced(state: Any) -> Any:
        step, last, ended, found, cache = state
        logits, cache = advance(cache, last, step)
        likeliest = _allowed(logits, step, ending).argmax(-1).astype(jnp.int32)
        token = jnp.where(ended, ending.pad, likeliest)
        found = lax.dynamic_update_slice(found, token[:, None], (0, step))
        return step + 1, token, ended | _ends(token, ending), found, cache

    found = jnp.full((count, ending.most), ending.pad, jnp.int32)
    first = (jnp.int32(0), start, jnp.zeros(count, bool), found, cache)
    return lax.while_loop(more, advanced, first)[3]


class _Search(NamedTuple):
    """The state of a beam search over B texts with n sequences each.

    Attributes:
        step: tokens that the running sequences have.
        running, scores: [B, n, most] and [B, n], their summed log-probabilities.
        ended, ended_scores, is_ended: the best that have ended, by score over length.
        hopeful: [B, 1], whether a running one may still become better than those.
        stuck: whether none of the latest candidates could go on.
        cache: of the running ones, [B * n, ...].
    """

    step: jax.Array
    running: jax.Array
    scores: jax.Array
    ended: jax.Array
    ended_scores: jax.Array
    is_ended: jax.Array
    hopeful: jax.Array
    stuck: jax.Array
    cache: Any


def beam_search(
    advance: Advance, cache: Any, start: jax.Array, ending: Ending, beams: Beams
) -> jax.Array:
    """The best sequence of each text by beam search: [B, most] int32.

    Args:
        advance: of B * n sequences, those of a text one after the other.
        cache: arrays [B * n, ...].
        start: [B] int32, what the sequences begin with; it is not returned.
    """
    count, n = len(start), beams.count
    blank = jnp.full((count, n, ending.most), ending.pad, jnp.int32)
    first = _Search(
        step=jnp.int32(0),
        running=blank,
        # All begin alike, so all but the first are out, or each would be there n times.
        scores=jnp.tile(jnp.where(jnp.arange(n) > 0, _NEVER, 0.0), (count, 1)),
        ended=blank,
        ended_scores=jnp.full((count, n), _NEVER),
        is_ended=jnp.zeros((count, n), bool),
        hopeful=jnp.ones((count, 1), bool),
        stuck=jnp.bool_(False),
        cache=cache,
    )

    def more(s: _Search) -> jax.Array:
        enough = s.is_ended.all() if beams.early_stopping is True else jnp.bool_(False)
        return s.hopeful.any() & ~enough & ~s.stuck

    def advanced(s: _Search) -> _Search:
        latest = s.running[:, :, s.step - 1].reshape(-1)
        last = jnp.where(s.step == 0, jnp.repeat(start, n), latest)
        logits, cache = advance(s.cache, last, s.step)
        return _searched(s._replace(cache=cache), logits, ending, beams)

    return lax.while_loop(more, advanced, first).ended[:, 0]


def _searched(s: _Search, logits: jax.Array, ending: Ending, beams: Beams) -> _Search:
    """After a step that gave these logits [B * n, V]."""
    count, n = s.scores.shape
    vocabulary = logits.shape[-1]
    gained = _allowed(jax.nn.log_softmax(logits.astype(jnp.float32)), s.step, ending)
    totals = gained.reshape(count, n, vocabulary) + s.scores[:, :, None]
    totals = totals.reshape(count, n * vocabulary)
    # Twice as many as go on, since at most n of them end.
    scores, places = lax.top_k(totals, 2 * n)
    parents, tokens = places // vocabulary, (places % vocabulary).astype(jnp.int32)
    sequences = _of(s.running, parents)
    sequences = lax.dynamic_update_slice(sequences, tokens[:, :, None], (0, 0, s.step))
    length = s.step + 1
    stops = _ends(tokens, ending) | (length >= ending.most)
    best = _best_ended(s, sequences, scores, stops, beams)
    going, chosen = lax.top_k(scores + jnp.where(stops, _NEVER, 0.0), n)
    offsets = n * jnp.arange(count)[:, None]
    kept = (jnp.take_along_axis(parents, chosen, 1) + offsets).reshape(-1)
    return best._replace(
        step=length,
        running=_of(sequences, chosen),
        scores=going,
        hopeful=s.hopeful & _may_improve(going, best, length, ending, beams),
        stuck=stops.all(),
        cache=jax.tree.map(lambda x: x[kept], s.cache),
    )


def _best_ended(
    s: _Search, sequences: jax.Array, scores: jax.Array, stops: jax.Array, beams: Beams
) -> _Search:
    """With those of the candidates [B, 2 n] that end, among the first n, and are better."""
    n = beams.count
    ends = stops & (jnp.arange(2 * n) < n)
    lengths = (s.step + 1).astype(jnp.float32) ** beams.length_penalty
    closed = ~s.hopeful
    if beams.early_stopping is True:
        closed |= s.is_ended.all(-1, keepdims=True)
    scores = scores / lengths + jnp.where(closed, _NEVER, 0.0) + jnp.where(ends, 0.0, _NEVER)
    every = jnp.concatenate([s.ended_scores, scores], axis=1)
    best, chosen = lax.top_k(every, n)
    return s._replace(
        ended=_of(jnp.concatenate([s.ended, sequences], axis=1), chosen),
        ended_scores=best,
        is_ended=jnp.take_along_axis(jnp.concatenate([s.is_ended, ends], axis=1), chosen, 1),
    )


def _may_improve(
    going: jax.Array, best: _Search, length: jax.Array, ending: Ending, beams: Beams
) -> jax.Array:
    """[B, 1]: whether the best running sequence may beat the worst that has ended."""
    far = beams.early_stopping == "never" and beams.length_penalty > 0
    reach = jnp.float32(ending.most) if far else length.astype(jnp.float32)
    possible = going[:, :1] / reach**beams.length_penalty
    worst = jnp.where(best.is_ended, best.ended_scores.min(1, keepdims=True), _NEVER)
    return (possible > worst).any(-1, keepdims=True)


def _of(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """[B, m, most] -> [B, k, most] of the chosen [B, k]."""
    return jnp.take_along_axis(x, chosen[:, :, None], axis=1)


def _allowed(scores: jax.Array, step: jax.Array, ending: Ending) -> jax.Array:
    """Scores [N, V] of the token at `step`, minus infinity where it is not allowed and 0 where no other
    is, which transformers does after the softmax, too."""
    if ending.never:
        scores = scores.at[:, jnp.array(ending.never)].set(-jnp.inf)
    # Of a sequence of one token, the last.
    for only, at in ((ending.first, 0), (ending.last, ending.most - 1)):
        if only is not None:
            alone = jnp.where(jnp.arange(scores.shape[1]) == only, 0.0, -jnp.inf)
            scores = jnp.where(step == at, alone, scores)
    return scores


def _ends(tokens: jax.Array, ending: Ending) -> jax.Array:
    return jnp.zeros(tokens.shape, bool) if ending.end is None else tokens == ending.end
