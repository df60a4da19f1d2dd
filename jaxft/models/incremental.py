"""The forward pass of a decoder's new tokens, given what is kept of those before them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxft.models.architecture import Architecture
from jaxft.models.family import Batch, Cache, Context, Outputs
from jaxft.models.tree import Params, by_path

# Of each block: keys and values, as `Kept` has them.
Entries = list[tuple[jax.Array, jax.Array]]


def forward(
    architecture: Architecture,
    params: Params,
    batch: Batch,
    reads: jax.Array,
    caches: Sequence[Cache],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[Outputs, Entries]:
    """What the head gives for the tokens at `reads` [B, K], and what caches are to be after all of them.

    Args:
        architecture: of a causal family, with the head 'causal'.
        batch: `input_ids`, `segment_ids` and `positions` [B, T]; rows may be packed. With caches of tokens
            before, one token of each sequence.
        caches: of each block; `Cache()` for the first tokens of texts.
        dtype: of the blocks' activations.
    """
    backbone, head = architecture.modules(params)
    carry = backbone.stem(batch, Context())
    carry["hidden"] = carry["hidden"].astype(dtype)
    entries: Entries = []
    last = len(caches) - 1
    for number, (block, cache) in enumerate(zip(backbone.blocks, caches, strict=True)):
        context = Context(reads=reads if number == last else None, cache=cache)
        carry, kept = block(carry, context)
        entries.append(kept["entries"])
    hidden = carry["hidden"].astype(jnp.float32)
    table = by_path(params)[architecture.family.heads[architecture.head].table]
    return head(backbone.finish(hidden), None, table), entries
