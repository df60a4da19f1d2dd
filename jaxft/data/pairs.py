"""Pairs of labelled examples, alike where their labels are: which make step i.

The pairs and the ways to draw them are those of SetFit (Tunstall et al. 2022, arXiv:2209.11055; its library's
`ContrastiveDataset`). There are quadratically many, so none is stored: a pair is decoded from its number.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxft.data.sampler import shuffled_place, steps_per_epoch
from jaxft.data.targets import Targets

SAMPLING = ("oversampling", "undersampling", "unique")
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Pairing:
    """The pairs of n examples, by number: alike ones (p of them, each example with itself among them), and
    unlike ones (q). Made by `pairing_of`.

    Attributes:
      order: [n] int64, the examples by class.
      starts: [C] int64, of each class, where it begins in `order`.
      ends: [n] int64, of each place in `order`, where its class ends.
      before_alike: [C + 1] int64, pairs of the classes before each, and of all.
      before_unlike: [n + 1] int64, pairs of the places before each with later classes, and of all.
      drawn: (alike, unlike): how many an epoch has of each.
    """

    order: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    before_alike: np.ndarray
    before_unlike: np.ndarray
    drawn: tuple[int, int]

    @property
    def there(self) -> tuple[int, int]:
        """(p, q)."""
        return int(self.before_alike[-1]), int(self.before_unlike[-1])

    @property
    def count(self) -> int:
        """Pairs of an epoch."""
        return sum(self.drawn)

    def alike(self, numbers: np.ndarray) -> np.ndarray:
        """Pairs [k, 2] of examples, the first not behind the second, of numbers [k] in 0..p - 1."""
        which = np.searchsorted(self.before_alike, numbers, side="right") - 1
        within = numbers - self.before_alike[which]
        # Of a class pair number j (j + 1) / 2 + i is (i, j); the root is exact to one for such numbers.
        second = ((np.sqrt(8.0 * within + 1) - 1) / 2).astype(np.int64)
        second -= second * (second + 1) // 2 > within
        second += (second + 1) * (second + 2) // 2 <= within
        first = within - second * (second + 1) // 2
        return self._examples(self.starts[which] + first, self.starts[which] + second)

    def unlike(self, numbers: np.ndarray) -> np.ndarray:
        """The same of numbers in 0..q - 1."""
        first = np.searchsorted(self.before_unlike, numbers, side="right") - 1
        second = self.ends[first] + numbers - self.before_unlike[first]
        return self._examples(first, second)

    def _examples(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.sort(np.stack([self.order[first], self.order[second]], axis=-1), axis=-1)


def pairing_of(targets: Targets, sampling: str, iterations: int | None) -> Pairing:
    """The pairs of labelled examples.

    Args:
      sampling: one of SAMPLING. 'unique': an epoch has every pair once; 'oversampling': as many of both
        kinds as there are of the more frequent one; 'undersampling': as of the less frequent one.
      iterations: an epoch has so many pairs of each kind for each example; None: as `sampling` says.

    Raises:
      ValueError: a label has no example, there is one label only, or more pairs than can be counted.
    """
    ids = targets.strata()
    counts = np.bincount(ids, minlength=len(targets.names))
    if not counts.all():
        absent = [name for name, count in zip(targets.names, counts, strict=True) if not count]
        more = f", nor for {len(absent) - 1} others" if absent[1:] else ""
        raise ValueError(
            f"there is no training example for the label {absent[0]!r}{more}: nothing can be learned of it; "
            "leave it out by naming the others in config.data.classes"
        )
    if len(counts) < 2:
        raise ValueError(
            f"all {len(ids)} training examples have the label {targets.names[0]!r}: two are needed"
        )
    ends = np.repeat(np.cumsum(counts), counts)
    alike, unlike = _before(counts * (counts + 1) // 2), _before(len(ids) - ends)
    there = int(alike[-1]), int(unlike[-1])
    if iterations is not None:
        drawn = (iterations * len(ids),) * 2
    else:
        drawn = {"unique": there, "oversampling": (max(there),) * 2, "undersampling": (min(there),) * 2}[
            sampling
        ]  # fmt: skip
    if max(*there, sum(drawn)) > _MOST:
        raise ValueError(
            f"{len(ids)} training examples make {sum(there)} pairs, of which {sum(drawn)} an epoch: more "
            f"than {_MOST} cannot be counted; give config.data.examples_per_class, as 64"
        )
    order = np.argsort(ids, kind="stable")
    return Pairing(order, np.cumsum(counts) - counts, ends, alike, unlike, drawn)


def _before(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


@dataclasses.dataclass(frozen=True)
class PairSampler:
    """Batches of pairs, epoch after epoch, in an order of its own each.

    A pair of n examples is first * n + second. Pairs of one kind are gone through in a random order, then in
    another, from epoch to epoch: up to any step none has come twice more than another of its kind.
    """

    pairing: Pairing
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.pairing.count, self.batch_size)

    def __call__(self, step: int) -> tuple[np.ndarray, int]:
        """The pairs of a step [<= batch_size] int64, and its epoch, from 0; access is random."""
        pairing = self.pairing
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.batch_size
        last = min(first + self.batch_size, pairing.count)
        draws = np.array(
            [shuffled_place(i, pairing.count, (self.seed, 0), epoch) for i in range(first, last)],
            np.int64,
        )
        is_alike = draws < pairing.drawn[0]
        found = np.empty((len(draws), 2), np.int64)
        found[is_alike] = pairing.alike(self._numbers(0, epoch, draws[is_alike]))
        found[~is_alike] = pairing.unlike(
            self._numbers(1, epoch, draws[~is_alike] - pairing.drawn[0])
        )
        return found[:, 0] * len(pairing.order) + found[:, 1], epoch

    def _numbers(self, kind: int, epoch: int, draws: np.ndarray) -> np.ndarray:
        """Which pairs of a kind some draws of an epoch are."""
        there, drawn = self.pairing.there[kind], self.pairing.drawn[kind]
        found = []
        for draw in draws.tolist():
            number, position = divmod(epoch * drawn + draw, there)
            found.append(shuffled_place(position, there, (self.seed, 1 + kind), number))
        return np.array(found, np.int64)


@dataclasses.dataclass(frozen=True)
class PairLengths:
    """Lengths of pairs of n examples, as if it were an array [n * n].

    own: [n], of each.
    """

    own: np.ndarray

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, pairs: Any) -> np.ndarray:
        first, second = np.divmod(pairs, len(self.own))
        return self.own[first] + self.own[second]

    def min(self) -> int:
        return int(2 * self.own.min())

    def max(self) -> int:
        return int(2 * self.own.max())
