"""Findings on rows that are nearly the same, whether they are texts or images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxft.insight.duplicates import Groups
from jaxft.insight.finding import SHOWN, Finding, cut, graded, percent
from jaxft.insight.parts import Part, said_of_sample

Pairs = Sequence[tuple[int, int, float]]  # (earlier, later, resemblance) of rows of all parts

_KEPT = 10_000  # pairs in the JSON, the closest


def findings(groups: Groups, pairs: Pairs) -> list[Finding]:
    """Within each split, across splits, and with different labels.

    Args:
      groups: of the rows that were compared.
      pairs: indices as in `groups`, each row but once of equal ones.
    """
    found = []
    parts = list(groups.parts)
    for number, part in enumerate(parts):
        inside = [p for p in pairs if groups.part[p[0]] == groups.part[p[1]] == number]
        # Those with other labels are told apart: their difference may be what is to be learned.
        inside = [p for p in inside if _target(groups, p[0]) == _target(groups, p[1])]
        later = np.unique([b for _, b, _ in inside])
        if len(later):
            found.append(
                Finding(
                    "near duplicates",
                    graded(len(later) / len(part), 0.05),
                    f"{part.name}: {percent(len(later), len(part))} rows are nearly another of their label"
                    f"{said_of_sample(parts)}",
                    "" if len(later) < 0.05 * len(part) else "they say little that is new",
                    *_table(groups, inside),
                )
            )
        across = [_ordered(groups, p) for p in pairs if number in groups.part[list(p[:2])]]
        across = [p for p in across if groups.part[p[0]] == 0 and groups.part[p[1]] == number > 0]
        if across:
            found.append(_across(groups, part, number, across))
    return found + _in_conflict(groups, pairs)


def _across(groups: Groups, part: Part, number: int, pairs: Pairs) -> Finding:
    count = len({b for _, b, _ in pairs})
    return Finding(
        "near duplicates across splits",
        graded(count / len(part), 0.01, 0.03) if count > 1 else "note",
        f"{part.name}: {percent(count, len(part))} rows are nearly training rows"
        f"{said_of_sample(list(groups.parts))}",
        f"metrics of {part.name} count what was nearly learned by heart; leave these rows out of one "
        "of the two, or split by what they have in common",
        *_table(groups, pairs),
    )


def _in_conflict(groups: Groups, pairs: Pairs) -> list[Finding]:
    """Nearly the same, and labelled differently: few, so each is told, and none is an alarm."""
    if any(part.codes is None for part in groups.parts):
        return []
    apart = [p for p in pairs if _target(groups, p[0]) != _target(groups, p[1])]
    if not apart:
        return []
    return [
        Finding(
            "near duplicates with other labels",
            "note",
            f"{len(apart):,} pairs of nearly equal rows have different labels",
            "the difference may be the point; if it is not, one of the labels is wrong",
            *_table(groups, apart),
        )
    ]


def _ordered(groups: Groups, pair: tuple[int, int, float]) -> tuple[int, int, float]:
    """The row of the earlier split first."""
    a, b, found = pair
    return (a, b, found) if groups.part[a] <= groups.part[b] else (b, a, found)


def _target(groups: Groups, index: int) -> str:
    part, position = groups.place(index)
    return part.target(position)


def _table(groups: Groups, pairs: Pairs) -> tuple:
    """Heads, rows, details and pictures of a finding on pairs."""
    closest = sorted(pairs, key=lambda pair: -pair[2])
    rows: list[tuple[str, ...]] = []
    pictures = []
    for a, b, found in closest[:SHOWN]:
        (first, i), (second, j) = groups.place(a), groups.place(b)
        cells = (
            groups.where(a),
            groups.where(b),
            f"{found:.2f}",
            cut(_target(groups, a), 60),
            cut(_target(groups, b), 60),
        )
        if first.are_images:
            pictures.append((first.picture(i), second.picture(j)))
            rows.append(cells)
        else:
            rows.append((*cells, cut(first.shown(i), 160), cut(second.shown(j), 160)))
    heads = ("row", "and row", "alike", "label", "label")
    images = bool(pictures)
    details = {
        "pairs": [
            [p.name, int(p.rows[i]), q.name, int(q.rows[j]), round(found, 3)]
            for a, b, found in closest[:_KEPT]
            for (p, i), (q, j) in [(groups.place(a), groups.place(b))]
        ]
    }
    return heads if images else (*heads, "input", "input"), tuple(rows), details, tuple(pictures)
