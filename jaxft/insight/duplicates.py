"""Rows that are there more than once, within a split and across splits, and those labelled differently."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from jaxft.insight.finding import SHOWN, Finding, cut, graded, percent
from jaxft.insight.parts import Part

# What is the same text for a reader: letters and digits count, not case, marks and white space.
_BETWEEN = re.compile(r"[\W_]+")
# Texts of fewer words ("thank you") come again by themselves, and in two splits prove nothing.
_FEWEST_WORDS = 4


def normalised(text: str) -> str:
    """
    >>> normalised("  It's  GREAT!! ")
    'it s great'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return _BETWEEN.sub(" ", text).strip() or " ".join(text.split())


def text_keys(part: Part, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(keys [n] 'S16', equal where all normalised texts of two rows are; [n] bool: is a short text).

    exact: where the texts are, mark for mark.
    """
    keys, short = [], []
    for chunk in part.chunks():
        for texts in chunk:
            plain = list(texts) if exact else [normalised(text) for text in texts]
            keys.append(hashlib.blake2b("\0".join(plain).encode(), digest_size=16).digest())
            short.append(sum(len(text.split()) for text in plain) < _FEWEST_WORDS)
    return np.array(keys, "V16"), np.array(short, bool)


class Groups:
    """Rows of all parts with equal keys.

    Attributes:
      part, position: [N] of each row of all parts, one part after the other.
      group: [N] int, equal where the keys are.
      distinct: indices of the first row of each group, ascending.
    """

    def __init__(self, parts: Sequence[Part], keys: Sequence[np.ndarray]):
        self.parts = parts
        self.part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.position = np.concatenate([np.arange(len(part)) for part in parts])
        _, first, self.group = np.unique(
            np.concatenate(keys), return_index=True, return_inverse=True
        )
        self.distinct = np.sort(first)

    def repeats(self, part: int) -> np.ndarray:
        """Indices of rows of a part that an earlier row of it equals."""
        own = np.flatnonzero(self.part == part)
        _, first = np.unique(self.group[own], return_index=True)
        return np.setdiff1d(own, own[first])

    def also_in(self, part: int, other: int) -> np.ndarray:
        """Indices of rows of `part` that are in `other`, too."""
        there = np.unique(self.group[self.part == other])
        return np.flatnonzero((self.part == part) & np.isin(self.group, there))

    def twin(self, index: int, part: int) -> int:
        """The first row of `part` that equals this one and is another."""
        same = np.flatnonzero((self.group == self.group[index]) & (self.part == part))
        return int(next(i for i in same if i != index))

    def place(self, index: int) -> tuple[Part, int]:
        return self.parts[self.part[index]], int(self.position[index])

    def where(self, index: int) -> str:
        part, position = self.place(index)
        return part.where(position)


def exact(groups: Groups, short: np.ndarray) -> list[Finding]:
    """Findings on equal rows: within each part, and between the training rows and the others."""
    found = []
    for number, part in enumerate(groups.parts):
        again = groups.repeats(number)
        if len(again):
            found.append(
                Finding(
                    "duplicates",
                    graded(len(again) / len(part), 0.05),
                    f"{part.name}: {percent(len(again), len(part))} rows repeat an earlier one",
                    "they count several times in loss and metrics; leave them out unless that is meant",
                    *_pairs(groups, again, number),
                    details={"split": part.name, "rows": _rows(groups, again)},
                )
            )
    for number, part in enumerate(groups.parts[1:], start=1):
        shared = groups.also_in(number, 0)
        if not len(shared):
            continue
        telling = shared[~short[shared]]
        level = graded(len(telling) / len(part), 0.0075, 0.015) if len(telling) > 1 else "note"
        brief = len(shared) - len(telling)
        found.append(
            Finding(
                "duplicates across splits",
                level,
                f"{part.name}: {percent(len(shared), len(part))} rows are training rows, too"
                + (f"; {brief} of them have fewer than {_FEWEST_WORDS} words" if brief else ""),
                f"metrics of {part.name} count what was learned by heart; leave these rows out of one split",
                *_pairs(groups, telling if len(telling) else shared, 0),
                details={"split": part.name, "rows": _rows(groups, shared)},
            )
        )
    return found


def _rows(groups: Groups, indices: np.ndarray) -> list[int]:
    return [int(part.rows[position]) for part, position in map(groups.place, indices)]


def _pairs(
    groups: Groups, indices: np.ndarray, other: int
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Heads and rows of a table of rows and the first one of part `other` that each equals."""
    rows = []
    for index in indices[:SHOWN]:
        part, position = groups.place(index)
        rows.append(
            (groups.where(index), groups.where(groups.twin(index, other)), _shown(part, position))
        )
    return ("row", "is also", "input"), tuple(rows)


def _shown(part: Part, position: int) -> str:
    """The input of one row, without holding those of all."""
    return "" if part.are_images else cut(part.take(np.array([position])).shown(0))


def conflicts(groups: Groups) -> list[Finding]:
    """A finding on equal rows whose targets differ."""
    numbers = groups.parts[0].numbers is not None
    known = [part.numbers if numbers else part.codes for part in groups.parts]
    if any(own is None for own in known):
        return []
    targets: np.ndarray = np.concatenate(known)  # type: ignore[arg-type]
    order = np.argsort(groups.group, kind="stable")
    starts = np.flatnonzero(np.diff(groups.group[order], prepend=-1))
    low = np.minimum.reduceat(targets[order], starts)
    high = np.maximum.reduceat(targets[order], starts)
    apart = high - low > (0.5 * targets.std() if numbers else 0)
    if not apart.any():
        return []
    ends = np.append(starts[1:], len(order))
    chosen = [order[starts[i] : ends[i]] for i in np.flatnonzero(apart)]
    chosen.sort(key=lambda members: -len(members))
    involved = sum(map(len, chosen))
    rows = []
    one_each = numbers or groups.parts[0].classes is not None
    for members in chosen[:SHOWN]:
        part, position = groups.place(members[0])
        told = dict.fromkeys(p.target(i) for p, i in map(groups.place, members))
        said = (", " if one_each else " ‖ ").join(cut(one, 100) for one in told)
        places = ", ".join(groups.where(i) for i in members[:3]) + ("…" if len(members) > 3 else "")
        rows.append((places, said, _shown(part, position)))
    return [
        Finding(
            "conflicting labels",
            graded(involved / len(targets), 0.01, 0.05),
            f"{percent(involved, len(targets))} rows have the input of another row and another label",
            "no model can have both right; settle which label holds",
            ("rows", "labels", "input"),
            tuple(rows),
            details={
                "groups": [
                    [[p.name, int(p.rows[i])] for p, i in map(groups.place, members)]
                    for members in chosen
                ]
            },
        )
    ]
