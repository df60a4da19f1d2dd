"""Which meshes, batches, compute types and recomputation could be, and what each needs by arithmetic alone.

Parameters, slots and traffic follow from shapes; activations are counted once for each compute type, and are
in proportion to the rows of a device. What a compiler makes of it is not known, so the most promising are
compiled afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

# A batch that is twice as large must be so much faster a token to be preferred: it trains otherwise.
GAIN = 1.05
_LARGER = (1, 2, 4)  # times the batch of the config
_PARTS = (1, 2, 4, 8)
_AXES = ("parallel.data", "parallel.fsdp", "parallel.tensor")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run.

    Attributes:
      fields: config field -> value.
      needed, available: bytes a device.
      seconds: of an update.
      rate: tokens, or images, a second.
      larger: how many times the batch of the config.
    """

    fields: dict[str, Any]
    needed: float
    available: float
    seconds: float
    rate: float
    larger: int

    @property
    def fits(self) -> bool:
        """By arithmetic."""
        return self.needed <= self.available

    @property
    def rank(self) -> float:
        """What is fastest first, larger batches only where they gain."""
        return self.worth(self.rate)

    @property
    def mesh(self) -> tuple[Any, ...]:
        """Devices along each axis."""
        return tuple(n for name, n in self.fields.items() if name in _AXES)

    def worth(self, rate: float) -> float:
        """`rank`, at another rate."""
        return rate / GAIN ** (self.larger.bit_length() - 1)


def promising(candidates: Sequence[Candidate]) -> list[Candidate]:
    """In which order to compile: the best of each mesh, then the others. Those of one mesh differ by what
    arithmetic counts; of meshes only the compiler knows what it makes of them.

    Args:
      candidates: the best first. Where none fits, those that need least come first.
    """
    if not any(one.fits for one in candidates):
        candidates = sorted(candidates, key=lambda one: one.needed)
    first: dict[tuple[Any, ...], Candidate] = {}
    for one in candidates:
        first.setdefault(one.mesh, one)
    own = {id(one) for one in first.values()}
    return [*first.values(), *(one for one in candidates if id(one) not in own)]


def meshes(devices: int, hosted: int, *, tensor: bool) -> Iterator[tuple[int, int, int]]:
    """(data, fsdp, tensor) that multiply to the devices; devices that share a product are of one host."""
    for t in _divisors(hosted if tensor else 1):
        for f in _divisors(devices // t) if devices % t == 0 else ():
            yield devices // t // f, f, t


def batches(batch: int, shards: int) -> Iterator[tuple[int, int, int]]:
    """(times the batch, batch, microbatches) that can be cut over so many shards."""
    for larger in _LARGER:
        for parts in _PARTS:
            if batch * larger % (shards * parts) == 0:
                yield larger, batch * larger, parts


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]
