"""Folds and held-out shares of whole groups: every class alike, as far as the groups allow. O(n log n)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from jaxft.data.files import Source
from jaxft.data.labels import find_column


def group_keys(source: Source, column: str, rows: np.ndarray) -> np.ndarray:
    """[n] uint64: equal for rows whose values in `column` are equal, a hash of them.

    By 64 bits of BLAKE2b: of 10^7 groups, two are taken for one with probability 3e-6.

    Raises ValueError: there is no such column; a row has no value there, or one that is no text, number or
    truth.
    """
    find_column(source, column, (), "group", option="group")
    keys = np.empty(len(rows), np.uint64)
    done = 0
    for part, (values,) in source.chunks((column,), rows):
        for row, value in zip(part.tolist(), values, strict=True):
            keys[done] = _key(source, row, column, value)
            done += 1
    return keys


def _key(source: Source, row: int, column: str, value: Any) -> int:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value == "" or value != value:
        raise ValueError(
            f"{source.where(row)}: column {column!r} has no group ({value!r:.40}); name the groups of all "
            "rows, or leave config.data.group empty"
        )
    if not isinstance(value, str | int | float | bytes):
        raise ValueError(
            f"{source.where(row)}: column {column!r} holds {value!r:.40}, which is no group"
        )
    data = f"{type(value).__name__} {value!r}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def fold_of(ids: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """[n] int64: the fold of each example, 0..folds - 1, all about equally large and with each class alike.

    Without groups the sizes differ by one at most, and so do those of each class. With groups [n], each
    is in one fold as a whole, see `_dealt`.

    ids: [n], the class of each. Raises ValueError: fewer examples, or groups, than folds.
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        return _dealt(ids, groups, np.full(folds, 1 / folds), generator, f"{folds} folds")
    if len(ids) < folds:
        raise ValueError(f"{len(ids)} examples cannot be cut into {folds} folds")
    order = generator.permutation(len(ids))
    by_class = order[np.argsort(ids[order], kind="stable")]
    found = np.empty(len(ids), np.int64)
    found[by_class] = np.arange(len(ids)) % folds
    return found


def hold_out_groups(
    ids: np.ndarray, groups: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out): positions of examples, sorted; of each group all are in the same. See `_dealt`."""
    generator = np.random.default_rng(seed)
    shares = np.array([1 - fraction, fraction])
    held = _dealt(ids, groups, shares, generator, "a part to train on and one to hold out") == 1
    return np.flatnonzero(~held), np.flatnonzero(held)


def _dealt(
    ids: np.ndarray,
    groups: np.ndarray,
    shares: np.ndarray,
    generator: np.random.Generator,
    what: str,
) -> np.ndarray:
    """[n]: the part of each example. Groups go whole, the largest first, equal ones in random order, each
    to the part that would then be the least full of the group's most frequent class, for its share."""
    names, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups)
    if len(names) < len(shares):
        raise ValueError(f"{len(names)} groups cannot be cut into {what}")
    classes, ids = np.unique(ids, return_inverse=True)
    pairs, counts = np.unique(groups * len(classes) + ids, return_counts=True)
    # Of the pairs of each group the one with most examples, which is the last of them in this order.
    order = np.lexsort((counts, pairs // len(classes)))
    last = order[np.cumsum(np.bincount(pairs // len(classes))) - 1]
    largest = (pairs[last] % len(classes)).tolist()
    shuffled = generator.permutation(len(names))
    by_size = shuffled[np.argsort(-sizes[shuffled], kind="stable")].tolist()
    of_group = np.zeros(len(names), np.int64)
    full = [[0.0] * len(shares) for _ in classes]
    whole = [0.0] * len(shares)
    scale, numbers = (1 / shares).tolist(), range(len(shares))
    for group in by_size:
        own, size = full[largest[group]], int(sizes[group])
        part = min(
            numbers, key=lambda k: ((own[k] + size) * scale[k], (whole[k] + size) * scale[k])
        )  # noqa: B023
        own[part] += size
        whole[part] += size
        of_group[group] = part
    for part in numbers:  # of few groups, a small share may get none: the smallest group then
        if not whole[part]:
            spare = next(
                g for g in reversed(by_size) if np.count_nonzero(of_group == of_group[g]) > 1
            )
            of_group[spare] = part
    return of_group[groups]


def shared_group(first: np.ndarray, second: np.ndarray) -> tuple[int, int] | None:
    """(a position in the second whose group is in the first, how many groups are in both); None: none."""
    both = np.intersect1d(first, second)
    if not len(both):
        return None
    return int(np.flatnonzero(np.isin(second, both))[0]), len(both)
