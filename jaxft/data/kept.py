"""What a frozen prefix of a model gives for each example, kept: in memory, or in mapped files.

A unit is what a model has a vector of: a token of a text, a text, an image. Those of an entry (see
`Tokens`) are consecutive. Files hold whole entries, are written beside their place and renamed, so each is
there whole or not at all; mapped, they take no memory but what the system keeps of them while there is room.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxft.base.whole_file import whole_file
from jaxft.data.targets import offsets_of

# Of a file, and so of what is in memory while it is made.
SHARD_BYTES = 256 << 20


class Places(NamedTuple):
    """Attributes:
    units: [n] numbers of units.
    target: [n] the place of each in the array of a batch, flattened.
    shape: of that array, without the axes of a unit.
    """

    units: np.ndarray
    target: np.ndarray
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Kept:
    """The hidden states after a block, of each unit.

    Attributes:
      depth: the block.
      name: of their array in a batch.
      space: what a unit is: of 'tokens', one of a text; of 'answers', one of a text to be given; of
        'texts', one of which a head reads one token; of 'images', an image.
      unit, dtype: of one: [D] of a token, [P, D] or [H, W, D] of an image.
      starts: [n] int64, the first unit of each entry.
      parts: arrays [units, *unit], one after the other.
      bounds: [parts + 1] int64, the first unit of each.
    """

    depth: int
    name: str
    space: str
    unit: tuple[int, ...]
    dtype: np.dtype[Any]
    starts: np.ndarray
    parts: tuple[np.ndarray, ...] = ()
    bounds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1, np.int64))

    def __getitem__(self, units: np.ndarray) -> np.ndarray:
        """Those with these numbers: [len(units), *unit]."""
        if len(self.parts) == 1:
            return self.parts[0].take(units, axis=0)
        found = np.empty((len(units), *self.unit), self.dtype)
        part = np.searchsorted(self.bounds, units, side="right") - 1
        for number in np.unique(part).tolist():
            own = part == number
            found[own] = self.parts[number].take(units[own] - self.bounds[number], axis=0)
        return found

    def take(self, entries: np.ndarray) -> Kept:
        """The same for some of the entries [m], whose numbers are then 0 to m - 1."""
        return dataclasses.replace(self, starts=self.starts[entries])

    @property
    def nbytes(self) -> int:
        """Of all units, whichever entries these are."""
        return int(self.bounds[-1]) * unit_bytes(self.unit, self.dtype)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What is kept for which step of a run.

    Attributes:
      changes: (first step, what is kept from there on, or None), in order.
    """

    changes: tuple[tuple[int, Kept | None], ...] = ()

    def at(self, step: int) -> Kept | None:
        """What the batch of a step has; None: nothing is kept for it."""
        return next((kept for first, kept in reversed(self.changes) if first <= step), None)


def unit_bytes(unit: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of one unit."""
    return int(np.prod(unit, dtype=np.int64)) * dtype.itemsize


def shards(counts: np.ndarray, size: int, limit: int | None = None) -> list[range]:
    """Entries of each file, in order, of at most `limit` bytes where no entry is larger.

    Args:
      counts: [n] units of each entry.
      size: bytes of a unit.
      limit: None: `SHARD_BYTES`.
    """
    most, begins = max(1, (limit or SHARD_BYTES) // size), offsets_of(counts)
    found, start = [], 0
    while start < len(counts):
        stop = int(np.searchsorted(begins, begins[start] + most, side="right")) - 1
        found.append(range(start, max(stop, start + 1)))
        start = found[-1].stop
    return found


def with_parts(kept: Kept, parts: Sequence[np.ndarray]) -> Kept:
    """The same, with its arrays."""
    return dataclasses.replace(
        kept, parts=tuple(parts), bounds=offsets_of(np.array([len(part) for part in parts]))
    )


def read_part(path: Path, units: int, unit: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A file of `write_part`, mapped; None where it is missing, damaged or of something else."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # of a shorter file than its header says, too
        return None
    whole = mapped.dtype == _stored(dtype) and mapped.shape == (units, *unit)
    return np.asarray(mapped).view(dtype) if whole else None


def write_part(path: Path, array: np.ndarray) -> None:
    """The file is there whole, or not at all; several processes may write the same.

    Raises:
      OSError: naming the file; such as that the disk is full.
    """
    with whole_file(path) as file:
        np.save(file, array.view(_stored(array.dtype)), allow_pickle=False)
        file.flush()
        os.fsync(
            file.fileno()
        )  # renamed before its bytes are on the disk, it would outlive them empty


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """As which it lies in a file: NumPy's format knows no bfloat16."""
    return dtype if dtype.kind == "f" else np.dtype(f"<u{dtype.itemsize}")
