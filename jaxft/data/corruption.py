"""Changing the tokens of a batch at random as it is made, such as masking some of them.

What happens to an entry depends on (seed, epoch, entry) alone: not on the batch that it is in, the place
that it has there, or the process that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from jaxft.data.targets import Batch

# (inputs of a batch, the entries in its slots [R, K], -1 where empty, epoch) -> the inputs as the model and
# the targets read them. Arrays may be added, always the same ones; those that are given stay as they are.
Corruption = Callable[[Batch, np.ndarray, int], Batch]


def each_entry(
    inputs: Batch, slots: np.ndarray, seed: int, epoch: int
) -> Iterator[tuple[np.random.Generator, int, slice]]:
    """Of each entry of a batch a generator of its own, its row, and its columns in it.

    Args:
      inputs: as `loader.fill_text` makes them.
      slots: [R, K] of the entries, -1 where empty.
    """
    segments, starts = inputs["segment_ids"], inputs["starts"]
    slot_count = slots.shape[1]
    texts = starts.shape[1] // slot_count
    row, column = np.nonzero(segments)
    slot = row * slot_count + (segments[row, column] - 1) // texts
    sizes = np.bincount(slot, minlength=slots.size).reshape(slots.shape)
    for r, k in zip(*np.nonzero(slots >= 0), strict=True):
        start = int(starts[r, k * texts])
        generator = np.random.default_rng([seed, epoch, int(slots[r, k])])
        yield generator, int(r), slice(start, start + int(sizes[r, k]))
