"""Several sources in one training set, each with its share of every stretch of the run."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from jaxft.data.sampler import random_bits, shuffled_place, steps_per_epoch

# Draws in which every source has exactly its share; divided by the denominator of the shares where that is
# no larger, else shares are rounded to one part in so many.
_BLOCK = 10_000


@dataclass(frozen=True)
class Mixture:
    """What is mixed: rows of a source that are, one after the other, those of several.

    Attributes:
      names: of these, all different.
      ends: row behind the last one of each.
      weights: how much of each is wanted, positive, in no unit.
      temperature: shares are weight * examples ** (1 / temperature), as in mT5 (Xue et al. 2021): 1 by size,
        the larger the more alike; None: the weights alone.
    """

    names: tuple[str, ...]
    ends: tuple[int, ...]
    weights: tuple[float, ...]
    temperature: float | None = None

    def source_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the source of rows, any shape, int32; 0 of -1, which is none."""
        return np.searchsorted(self.ends, rows, side="right").astype(np.int32)

    def draws(self, rows: np.ndarray) -> tuple[int, ...]:
        """How many of some draws are of each source, where the training data is these rows [n].

        Raises ValueError: a source has no row, or a share below one in ten thousand.
        """
        counts = np.bincount(self.source_of(rows), minlength=len(self.names))
        if not counts.all():
            raise ValueError(f"{self.names[int(np.argmin(counts))]}: no row is left to train on")
        power = 0.0 if self.temperature is None else 1 / self.temperature
        shares = [w * int(n) ** power for w, n in zip(self.weights, counts, strict=True)]
        return tuple(_draws(self.names, shares))

    def sampler(self, rows: np.ndarray, *, batch_size: int, seed: int) -> MixtureSampler:
        """Of entries with these rows [n]; raises what `draws` does."""
        return MixtureSampler(self.source_of(rows), self.draws(rows), batch_size, seed)

    def said(self, rows: np.ndarray) -> str:
        """What an epoch over these rows holds, for the terminal; raises what `draws` does."""
        counts, draws = np.bincount(self.source_of(rows)), self.draws(rows)
        parts = [
            f"{own / sum(draws) * len(rows) / count:.2f} times through {name} ({own / sum(draws):.1%})"
            for name, count, own in zip(self.names, counts, draws, strict=True)
        ]
        return f"an epoch of {len(rows)} goes {', '.join(parts)}"


def _draws(names: tuple[str, ...], shares: list[float]) -> list[int]:
    """How many draws of a block are of each source: in proportion, exactly where that is possible."""
    parts = [Fraction(share).limit_denominator(1000) for share in shares]
    total = sum(parts)
    exact = [part / total for part in parts] if total and all(parts) else []
    size = math.lcm(*(part.denominator for part in exact)) if exact else 0
    if 0 < size <= _BLOCK and all(
        abs(float(part) - share / sum(shares)) < 1e-9
        for part, share in zip(exact, shares, strict=True)
    ):
        return [int(part * size * (_BLOCK // size)) for part in exact]
    wanted = np.array(shares) / sum(shares) * _BLOCK
    counts = np.floor(wanted).astype(int)
    # The largest remainders (Hamilton) get the rest.
    counts[np.argsort(counts - wanted, kind="stable")[: _BLOCK - counts.sum()]] += 1
    if not counts.all():
        name = names[int(np.argmin(counts))]
        raise ValueError(f"{name}: its share of the mixture is less than one in {_BLOCK:,}")
    return counts.tolist()


@dataclass(frozen=True, eq=False)
class MixtureSampler:
    """Batches of a mixture: which examples make step i, a function of these fields and i.

    Draws are numbered through the run, and go from block to block. In each block every source has its
    `draws`, in an order of its own by (seed, block). The examples of a source are drawn in passes: each
    once, in an order of its own by (seed, source, pass), then all of them again.

    An epoch is as many draws as there are examples in all sources. So a source with less than its share by
    size is not gone through in it, and one with more is gone through several times.

    sources: [n], the source of each example. draws: [S], of each source in a block.
    """

    sources: np.ndarray
    draws: tuple[int, ...]
    batch_size: int
    seed: int
    _members: list[np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = np.argsort(self.sources, kind="stable")
        ends = np.cumsum(np.bincount(self.sources, minlength=len(self.draws)))
        object.__setattr__(self, "_members", np.split(order, ends[:-1]))

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.sources), self.batch_size)

    def __call__(self, step: int) -> tuple[np.ndarray, int]:
        """The examples of a step [<= batch_size] int64, and a number for what is random in them.

        This number is the step: within an epoch an example may come more than once.
        """
        examples, per_epoch = len(self.sources), self.steps_per_epoch
        epoch, batch = divmod(step, per_epoch)
        first = epoch * examples + batch * self.batch_size
        last = min(first + self.batch_size, (epoch + 1) * examples)
        return np.array([self._example(draw) for draw in range(first, last)], np.int64), step

    def _example(self, draw: int) -> int:
        number, place = divmod(draw, sum(self.draws))
        sources, ranks = _block(self.draws, self.seed, number)
        source = int(sources[place])
        members = self._members[source]
        passed, position = divmod(number * self.draws[source] + int(ranks[place]), len(members))
        return int(members[shuffled_place(position, len(members), (self.seed, source), passed)])


@functools.lru_cache(maxsize=64)
def _block(draws: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, how many draws of it there are before) of each draw in a block."""
    count = sum(draws)
    order = np.argsort(random_bits(count, seed, 3, number), kind="stable")
    sources = np.repeat(np.arange(len(draws)), draws)[order]
    ranks = np.empty(count, np.int64)
    for source, own in enumerate(draws):
        ranks[sources == source] = np.arange(own)
    return sources, ranks
