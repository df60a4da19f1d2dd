"""What it costs to keep what a frozen prefix gives for each example, what it saves, and whether it can be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict
from jaxft.data.inputs import KINDS
from jaxft.data.kept import unit_bytes
from jaxft.data.loader import ImageBatches, TextBatches
from jaxft.experiment.changes import change_of
from jaxft.experiment.decide import frozen_blocks
from jaxft.experiment.prepared import Prepared
from jaxft.models import Architecture, Pass, by_path
from jaxft.models.prefix import Prefix, cuttable, hidden_after, prefix_of

# 'auto' keeps a prefix where that saves so much of a run (10 s of a CPU; less than compiling costs), such a
# share of its updates, and takes no more room.
LEAST_FLOPS, LEAST_SHARE, MOST_BYTES = 1e12, 0.1, 64 << 30
# An update costs three forward passes of what trains.
_PASSES = 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one prefix.

    Attributes:
      units: of the training and the evaluation rows, see `Prefix.space`.
      prefix_flops, rest_flops: of the forward pass of the prefix, and of what comes after it, over the
        training rows once.
    """

    prefix: Prefix
    units: int
    prefix_flops: float
    rest_flops: float

    @property
    def unit_bytes(self) -> int:
        """Of a token, a text or an image."""
        return unit_bytes(self.prefix.unit, np.dtype(self.prefix.dtype))

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self.units * self.unit_bytes

    @property
    def share(self) -> float:
        """What of an epoch's work is no longer done, 0 to 1."""
        whole = self.prefix_flops + _PASSES * self.rest_flops
        return self.prefix_flops / whole if whole else 0.0

    def times(self, batches: float, units: int) -> Cost:
        """Of as many full batches as the training rows are, and of the units of all rows that are kept."""
        return Cost(self.prefix, units, self.prefix_flops * batches, self.rest_flops * batches)

    def saved(self, passes: float) -> float:
        """FLOPs of so many passes over the training rows, less those of the one that fills it."""
        return self.prefix_flops * (passes - 1)

    def against(self, passes: float) -> str:
        """Why 'auto' does not keep it for so many passes over the training rows; '' where it does."""
        if self.bytes > MOST_BYTES:
            return f"it would take {self.bytes / 2**30:.0f} GiB, above {MOST_BYTES >> 30}"
        if passes <= 1:
            return f"the rows are read {passes:.2g} times"
        if self.share < LEAST_SHARE:
            return f"it would save {self.share:.0%} of an epoch"
        if self.saved(passes) < LEAST_FLOPS:
            return f"it would save {self.saved(passes):.1e} FLOPs, less than compiling for it costs"
        return ""

    def __str__(self) -> str:
        one = {
            "tokens": "a token",
            "answers": "a token to be given",
            "texts": "a text",
            "images": "an image",
        }
        return (
            f"{self.unit_bytes:,} bytes {one[self.prefix.space]}, {size(self.bytes)}; saves "
            f"{self.prefix_flops:.1e} FLOPs of an epoch, {self.share:.0%}"
        )


def size(count: int) -> str:
    """'1.5 GiB'."""
    for unit, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << unit:
            return f"{count / (1 << unit):.1f} {name}"
    return f"{count} bytes"


def obstacle(prepared: Prepared) -> str:
    """Why nothing can be kept, whatever is frozen; '' where it can."""
    config, task = prepared.config, prepared.task
    kind = KINDS[task.inputs]
    if not cuttable(prepared.architecture):
        return "the forward pass of a bridged model cannot be cut at a block"
    if config.data.stream:
        return "of a stream (config.data.stream) each row is read once"
    if kind.corrupt is not None:
        return f"config.task={config.task!r} changes the tokens of a text at each reading"
    if field := change_of(config):
        value = flatten(config)[field]
        return f"config.{field}={value!r} changes an example at each reading"
    return ""


def stage_depths(prepared: Prepared) -> tuple[int, ...]:
    """Of each stage the block up to which nothing has changed since the run began; -1: not even the stem."""
    architecture, decisions = prepared.architecture, prepared.decisions
    return tuple(
        frozen_blocks(architecture, decisions.frozen_in(stage))
        for stage in range(len(decisions.starts))
    )


def passes(prepared: Prepared, stage: int) -> float:
    """How often the updates of a stage read the training rows."""
    starts = (*prepared.decisions.starts, prepared.length.steps)
    return max(0, starts[stage + 1] - starts[stage]) / max(1, prepared.length.epoch)


def cannot_pay(
    architecture: Architecture, batch: Mapping[str, Any], depth: int, batches: float, passes: float
) -> str:
    """Why 'auto' does not keep the prefix up to a block, as far as sizes alone say so; '' where they do not.

    Counting what a prefix costs traces it, which takes longer than small runs.

    Args:
      batch, batches: see `full_batches`.
      passes: over the training rows.
    """
    if passes <= 1:
        return f"the rows are read {passes:.2g} times"
    most = _most_flops(architecture, batch, depth) * batches * (passes - 1)
    return "" if most >= LEAST_FLOPS else "it would save less than compiling for it costs"


def _most_flops(architecture: Architecture, batch: Mapping[str, Any], depth: int) -> float:
    """That a prefix of this batch can have: no parameter meets a token or a pixel twice, no model is wider
    than the root of its parameters, and every token may look at every one of its row."""
    leaves = by_path(architecture.abstract)
    count = sum(math.prod(x.shape) for p, x in leaves.items() if architecture.depths[p] <= depth)
    shapes = [batch[n].shape for n in ("input_ids", "decoder_input_ids") if n in batch]
    if "pixel_values" in batch:
        images, height, width, _ = batch["pixel_values"].shape
        shapes.append((images, height * width))
    looks = 4 * math.sqrt(count) * (depth + 1)
    return sum(rows * length * (2 * count + looks * length) for rows, length in shapes)


def full_batches(batches: TextBatches | ImageBatches) -> tuple[dict[str, Any], float]:
    """(a batch of padding, how many full ones like it the rows are)."""
    batch = batches.blank()[0]
    if isinstance(batches, ImageBatches):
        return batch, len(batches.targets) / len(batch["index"])
    return batch, int(batches.tokens.offsets[-1]) / batch["input_ids"].size


def cost_of(
    architecture: Architecture, batch: Mapping[str, Any], depth: int, config: ConfigDict
) -> Cost:
    """What keeping the prefix up to a block costs for one batch, of no units; see `Cost.times`.

    Args:
      batch: of the training rows, as arrays or shapes.
    """
    dtype = jnp.dtype(config.model.dtype)
    prefix = prefix_of(architecture, batch, depth, dtype)
    first, whole = (
        _flops(architecture, batch, run, dtype)
        for run in (
            lambda params, batch, how: hidden_after(architecture, params, batch, prefix.depth, how),
            lambda params, batch, how: architecture.apply(params, batch, None, how),
        )
    )
    return Cost(prefix, 0, first, max(0.0, whole - first))


def _flops(
    architecture: Architecture, batch: Mapping[str, Any], run: Callable[..., Any], dtype: Any
) -> float:
    """Of one forward pass, as XLA counts them before it optimises; nothing is compiled."""
    lowered = jax.jit(lambda params, batch: run(params, batch, Pass(dtype=dtype))).lower(
        architecture.whole, dict(batch)
    )
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))
