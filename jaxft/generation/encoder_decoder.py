"""Texts from an encoder and a decoder: the encoder runs once, the decoder a token at a time.

Of T5 are kept: of the decoder, keys and values [N, most, H, C] of each block; those of the encoder, computed
once and never copied, since the sequences of one text look at them together. A bridged decoder reads its
texts again.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxft.generation import rereading
from jaxft.generation.search import Advance, Beams, Ending, beam_search, greedy
from jaxft.models import vocabulary
from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.models.contract import PLAIN, Architecture, Pass, Rereading
from jaxft.models.family import Batch
from jaxft.models.tree import Params, by_path


def generate(
    architecture: Architecture,
    params: Params,
    batch: Batch,
    start: int,
    ending: Ending,
    beams: Beams | None = None,
    how: Pass = PLAIN,
) -> jax.Array:
    """What the decoder says of each text: [R, most] int32, as `search` gives them.

    Args:
        architecture: with an encoder and a decoder, with the head 'seq2seq'.
        batch: `input_ids`, `segment_ids` and `positions` [R, L], one text in each row.
        start: the token that the decoder reads before the first.
        beams: None: the likeliest token at each step.
        how: only `dtype` counts.
    """
    count = 1 if beams is None else beams.count
    if isinstance(architecture, NativeArchitecture):
        advance, cache = prepared(architecture, params, batch, ending.most, count, how)
    else:
        bridged = cast(Rereading, architecture)
        advance, cache = rereading.prepared(bridged, params, batch, ending.most, count, how)
    begin = jnp.full(len(batch["input_ids"]), start, jnp.int32)
    if beams is None:
        return greedy(advance, cache, begin, ending)
    return beam_search(advance, cache, begin, ending, beams)


def prepared(
    architecture: NativeArchitecture,
    params: Params,
    batch: Batch,
    most: int,
    count: int,
    how: Pass,
) -> tuple[Advance, Any]:
    """How `count` sequences of each text advance by a token, and the empty cache [R * count, ...]: of T5."""
    module, head = architecture.modules(params)
    backbone: Any = module
    rows = len(batch["input_ids"])
    nothing = jnp.zeros((rows, 1), jnp.int32)
    sides = {f"decoder_{name}": nothing for name in ("input_ids", "segment_ids", "positions")}
    carry = architecture.prefix(params, {**batch, **sides}, len(backbone.encoder.block), how=how)
    encoded, seen = carry["hidden"], carry["segment_ids"] > 0
    blocks: list[Any] = [block.layer for block in backbone.decoder.block]
    crossed = [layers[1].EncDecAttention.keys_and_values(encoded) for layers in blocks]
    # One for each distance back; a token that looks, at `step`, is step - t from the one at t.
    biases = backbone.decoder.positions.biases(-np.arange(most))
    table = by_path(params)[architecture.family.heads[architecture.head].table]

    def advance(cache: Any, tokens: jax.Array, step: jax.Array) -> tuple[jax.Array, Any]:
        hidden = backbone.shared(tokens[:, None]).astype(encoded.dtype)
        back = step - jnp.arange(most)
        bias = biases[jnp.maximum(back, 0)].T[None, :, None, :]
        mask = (back >= 0)[None, None, None, :]
        new = []
        for (attention, cross, feed_forward), kept, side in zip(
            blocks, cache, crossed, strict=True
        ):
            normed = attention.layer_norm(hidden)
            pair = zip(kept, attention.SelfAttention.keys_and_values(normed), strict=True)
            kept = tuple(lax.dynamic_update_slice_in_dim(x, y, step, axis=1) for x, y in pair)
            hidden = hidden + attention.SelfAttention(normed, kept, mask, bias)
            # The sequences of a text as further tokens that look, so that `side` is not repeated.
            together = hidden.reshape(rows, count, -1)
            looked = cross(together, side, seen[:, None, None, :])
            hidden = feed_forward(looked.reshape(hidden.shape))
            new.append(kept)
        finished = backbone.finish(hidden.astype(jnp.float32))
        return vocabulary.logits(head(finished, None, table))[:, 0], new

    keys = (rows * count, most, *crossed[0][0].shape[2:])
    empty = tuple(jnp.zeros(keys, encoded.dtype) for _ in range(2))
    return advance, [empty for _ in blocks]
