"""What a check says: how bad it is, one line, what to do, and the rows that show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

# From what is only told to what makes the numbers of a run untrue.
LEVELS = ("note", "warning", "serious")
SHOWN = 20  # rows of an example table


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding of one check.

    Attributes:
      check: what was looked at, as 'near duplicates'.
      level: of LEVELS.
      summary: one line, with the numbers.
      advice: what to do about it; '' where there is nothing to do.
      heads, rows: a table of examples, the first `SHOWN` of `items`.
      details: plain JSON: all of what was found, with the rows of the sources.
      pictures: of each row of the table, the images it is about: paths or data URIs.
      figure: SVG.
    """

    check: str
    level: str
    summary: str
    advice: str = ""
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pictures: tuple[tuple[str, ...], ...] = ()
    figure: str = ""


def graded(value: float, warning: float, serious: float = float("inf")) -> str:
    """The level of a share or a distance: from `warning` on it is one, from `serious` on serious."""
    return LEVELS[int(value >= warning) + int(value >= serious)]


def worst(findings: Sequence[Finding]) -> str:
    """The highest level, 'note' of none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="note")


def percent(part: int, whole: int) -> str:
    """'12 of 400 (3.0 %)'."""
    return f"{part:,} of {whole:,} ({part / max(whole, 1):.1%})"


def cut(text: str, limit: int = 200) -> str:
    """A text for a table, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
