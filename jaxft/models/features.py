"""What the head would read after each block: the features of a probe."""

import jax

from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.models.contract import PLAIN, Architecture
from jaxft.models.family import Batch
from jaxft.models.layers import ops
from jaxft.models.tree import Params


def block_features(
    architecture: Architecture, params: Params, batch: Batch
) -> tuple[jax.Array, ...]:
    """The hidden state after each block, first to last, in one forward pass without dropout.

    It is that of the tokens that the head reads, or of an example's tokens or pixels averaged, where
    the head reads all of them. A norm or pooler after the last block is not applied.

    Args:
        params: in the structure of `architecture.whole`.

    Returns:
        One fp32 array a block: [R, K, D] for the K examples of each text row, [B, D] for images. D may
        differ between blocks.

    Raises:
        ValueError: a bridged module cannot be traced, or has a block without such a state; one line.
    """
    if isinstance(architecture, NativeArchitecture):
        return _native(architecture, params, batch)
    # torch takes seconds to import, and is an extra.
    from jaxft.models.bridge import features
    from jaxft.models.bridge.architecture import BridgedArchitecture

    assert isinstance(architecture, BridgedArchitecture)
    return features.block_features(architecture, params, batch)


def _native(
    architecture: NativeArchitecture, params: Params, batch: Batch
) -> tuple[jax.Array, ...]:
    backbone, _ = architecture.modules(params)
    carry = backbone.stem(batch, PLAIN.context(0, None, None, None))
    reads = architecture.reads(batch)
    averages = architecture.family.heads[architecture.head].averages(architecture.config, batch)
    found = []
    for depth, block in enumerate(backbone.blocks, start=1):
        carry, _ = block(carry, PLAIN.context(depth, None, None, None))
        hidden = ops.take(carry["hidden"], reads)
        if averages is not None:
            hidden = averages @ hidden
        if architecture.inputs == "image":  # [B, 1, D] of the class token, or [B, H, W, D]
            hidden = hidden.mean(tuple(range(1, hidden.ndim - 1)))
        found.append(hidden)
    return tuple(found)
