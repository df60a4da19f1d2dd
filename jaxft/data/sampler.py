"""Which examples make step i: a pure function of their number, the batch size, the seed and i."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from grain.experimental import index_shuffle

# Up to so many are put in order at once: grain's shuffle needs 3 ms for a place among seven.
_SMALL = 1 << 16


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """The last batch of an epoch is partial, never dropped."""
    return math.ceil(examples / batch_size)


@dataclass(frozen=True)
class Sampler:
    """Batches of examples, epoch after epoch.

    examples, batch_size: at least 1.
    seed: each epoch has an order of its own by it; None: the examples' own order in every epoch.
    """

    examples: int
    batch_size: int
    seed: int | None

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.examples, self.batch_size)

    def __call__(self, step: int) -> tuple[np.ndarray, int]:
        """The examples of a step [<= batch_size] int64, and its epoch, from 0.

        Access is random: nothing is generated or stored for the steps before.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.batch_size
        last = min(first + self.batch_size, self.examples)
        if self.seed is None:
            return np.arange(first, last), epoch
        found = [shuffles(i, self.examples, (self.seed,), epoch) for i in range(first, last)]
        return np.array(found, np.int64), epoch


def shuffled_place(position: int, count: int, seeds: tuple[int, ...], number: int) -> int:
    """As `shuffles`, in another order, and fast also where the count is small."""
    if count <= _SMALL:
        return int(_order(seeds, number, count)[position])
    return shuffles(position, count, seeds, number)


@functools.lru_cache(maxsize=64)
def _order(seeds: tuple[int, ...], number: int, count: int) -> np.ndarray:
    return np.argsort(random_bits(count, *seeds, 4, number), kind="stable")


def random_bits(count: int, *seeds: int) -> np.ndarray:
    """[count] uint64. Raw bits: numpy keeps these from version to version, unlike its permutations."""
    return np.random.Philox(np.random.SeedSequence(seeds)).random_raw(count)


def shuffles(position: int, count: int, seeds: tuple[int, ...], number: int) -> int:
    """Where a position of 0..count - 1 is in the order `number` of those by some seeds.

    Two shuffles, one after the other: grain's permutation is a cipher of four rounds, and with some seeds,
    one in a few hundred, it leaves neighbours together: 3.3 times as many in one batch of 32 as chance
    puts there.
    """
    for seed in _seeds(seeds):
        own = (seed + number) % 2**32
        position = index_shuffle(position, max_index=count - 1, seed=own, rounds=4)
    return position


@functools.cache
def _seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Of the two shuffles.

    With one seed they are those of `grain.MapDataset.range(n).seed(seed).shuffle().shuffle()`, of which
    this is the order, without its cost for every example.
    """
    return tuple(int(np.random.SeedSequence([*seeds, k]).generate_state(1)[0]) for k in (2, 1))
