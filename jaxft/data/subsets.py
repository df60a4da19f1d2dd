"""Which examples of each class: a stratified held-out share, or a few of each. O(n log n)."""

from __future__ import annotations

import numpy as np


def few_per_class(ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted positions of `count` random examples of each class present in ids [n]."""
    if count < 1:
        raise ValueError(f"examples per class must be at least 1, got {count}")
    sizes = np.bincount(ids)
    smallest = sizes[sizes > 0].min()
    if smallest < count:
        raise ValueError(
            f"{count} examples per class are wanted, but the smallest class has {smallest}"
        )
    groups = _shuffled_classes(ids, np.random.default_rng(seed))
    return np.sort(np.concatenate([group[:count] for group in groups]))


def holdout(ids: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits positions 0..n-1 into (kept, held out), both sorted, with each class's share alike.

    round(n * fraction) positions are held out, at least 1, as long as one example of each class can
    be kept. A class's share is within one example of its part by the method of largest remainders
    (Hamilton), equal remainders in random order: of 500 classes of three, a tenth is one example of
    150 classes. Classes too small to give their part leave the rest to the others.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    generator = np.random.default_rng(seed)
    groups = _shuffled_classes(ids, generator)
    sizes = np.array([len(group) for group in groups])
    total = min(max(round(len(ids) * fraction), 1), int((sizes - 1).sum()))
    if total < 1:
        raise ValueError("nothing can be held out: every class has a single example")
    counts = _apportion(sizes, total, generator)
    held = np.zeros(len(ids), bool)
    held[np.concatenate([g[:count] for g, count in zip(groups, counts, strict=True)])] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _apportion(sizes: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """How many of each class [C]: in proportion to its size, at most its size - 1, `total` in all.

    sizes [100, 40, 7, 2, 1], total 15 -> [10, 4, 1, 0, 0]
    """
    order = np.argsort(sizes)
    size, room = sizes[order], sizes[order] - 1
    # The share of all larger classes if exactly the classes before this one give all they can; the
    # small ones are the first that run out.
    share = (total - (np.cumsum(room) - room)) / np.cumsum(size[::-1])[::-1]
    first = np.flatnonzero(share * size <= room + 1e-9)[:1]
    quota = room.astype(float)
    for k in first:
        quota[k:] = share[k] * size[k:]
    whole = np.floor(quota + 1e-9).astype(np.int64)
    rest = np.where(whole < room, np.round(quota - whole, 9), -1.0)
    extra = np.lexsort((generator.random(len(sizes)), -rest))[: total - int(whole.sum())]
    whole[extra] += 1
    counts = np.empty_like(whole)
    counts[order] = whole
    return counts


def _shuffled_classes(ids: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """The positions of each class present, in a random order; classes by their number."""
    # The smallest type that holds the ids: numpy sorts 16-bit integers by radix, in linear time.
    order = np.argsort(ids.astype(np.min_scalar_type(int(ids.max(initial=0)))), kind="stable")
    ends = np.cumsum(np.bincount(ids))
    starts = np.concatenate([[0], ends[:-1]])
    return [generator.permutation(order[a:b]) for a, b in zip(starts, ends, strict=True) if b > a]
