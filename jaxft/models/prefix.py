"""A forward pass that goes on from what is kept of a frozen prefix.

A batch that has an array `after_block_6` brings the hidden states after block 6. What else of the carry the
rest needs (which tokens see each other, where they stand, which are read) is computed of the batch as ever:
the prefix is traced and its hidden states are replaced, so that nothing reads what its stem and blocks would
give, and the compiler leaves them out.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.models.contract import PLAIN, Architecture, Pass
from jaxft.models.family import Batch, ImageLimits, Outputs
from jaxft.models.tree import Params

_NAME = "after_block_"
_SIDE = 224  # of images for models that take any


@dataclasses.dataclass(frozen=True)
class Prefix:
    """What can be kept of an architecture's first blocks.

    Attributes:
        depth: the block after which it is.
        space: what it has one of: of 'tokens' each, of 'answers' each (a decoder's own tokens), of
            'texts' (the one token that a head reads of it), or of 'images'.
        unit: shape of one.
        dtype: of the computation.
    """

    depth: int
    space: str
    unit: tuple[int, ...]
    dtype: Any

    @property
    def name(self) -> str:
        """Of its array in a batch."""
        return f"{_NAME}{self.depth}"


def cuttable(architecture: Architecture) -> bool:
    """Whether its forward pass can be cut at a block: a bridged module's cannot."""
    return isinstance(architecture, NativeArchitecture)


def prefix_of(
    architecture: Architecture, batch: Batch, depth: int, dtype: jax.typing.DTypeLike
) -> Prefix:
    """What can be kept of the stem and the first `depth` blocks.

    It is less deep where the rest needs more of them than hidden states: the states of an encoder, which
    every block of its decoder looks at. There it is kept up to the encoder's last block.

    Args:
        batch: arrays, or their shapes, without anything kept.
    """
    assert isinstance(architecture, NativeArchitecture)
    how = Pass(dtype=dtype)

    def shapes(depth: int) -> Any:
        return jax.eval_shape(
            lambda params, batch: architecture.prefix(params, batch, depth, None, how),
            architecture.whole,
            dict(batch),
        )

    carry, last = shapes(depth), depth == architecture.num_blocks
    while "encoded" in carry and not last:
        depth -= 1
        carry = shapes(depth)
    hidden = carry["hidden"]
    if architecture.inputs == "image":
        return Prefix(depth, "images", hidden.shape[1:], hidden.dtype)
    space = "tokens"
    if last and "reads" in carry:
        space = "texts"
    elif "encoded" in carry and "decoder_input_ids" in batch:
        space = "answers"
    return Prefix(depth, space, hidden.shape[2:], hidden.dtype)


def hidden_after(
    architecture: Architecture, params: Params, batch: Batch, depth: int, how: Pass = PLAIN
) -> jax.Array:
    """The hidden states after a block, without dropout: [B, T, D], [R, K, D] or [B, H, W, D]."""
    assert isinstance(architecture, NativeArchitecture)
    return architecture.prefix(params, batch, depth, None, how)["hidden"]


def forward(
    architecture: Architecture,
    params: Params,
    batch: Batch,
    key: jax.Array | None = None,
    how: Pass = PLAIN,
) -> Outputs:
    """`architecture.apply`, of a batch that may bring what is kept of its first blocks.

    Args:
        how: those blocks are frozen, or there is no key.
    """
    name = next((name for name in batch if name.startswith(_NAME)), None)
    if name is None:
        return architecture.apply(params, batch, key, how)
    assert isinstance(architecture, NativeArchitecture)
    depth, kept = int(name.removeprefix(_NAME)), batch[name].astype(how.dtype)
    assert key is None or depth <= how.frozen_blocks, (depth, how.frozen_blocks)
    if isinstance(limits := architecture.limits, ImageLimits):
        sides = (limits.height or _SIDE, limits.width or _SIDE, limits.channels)
        batch = {**batch, "pixel_values": jnp.zeros((len(kept), *sides))}
    carry = architecture.prefix(params, batch, depth, key, how)
    assert carry["hidden"].shape[1:] == kept.shape[1:] or architecture.inputs == "image"
    return architecture.suffix(params, {**carry, "hidden": kept}, depth, key, how)
