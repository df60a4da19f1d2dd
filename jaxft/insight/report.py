"""data_report.html and data_report.json: all findings, the worst first, with the rows that show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.analysis.page import Html, element, figure, has_title, is_by, join, page, table
from jaxft.analysis.pictures import thumbnail
from jaxft.insight.finding import LEVELS, Finding, worst

TITLE = "jaxft: what is in the data"
WRITER = "jaxft check_data"  # of data_report.json, under the key 'written by'


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
      data: what to call the training data.
      rows: (split, rows looked at, rows of the split).
      findings: the worst first.
      notes: on how the data were opened.
    """

    task: str
    data: str
    rows: tuple[tuple[str, int, int], ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> str:
        return worst(self.findings)

    def count(self, level: str) -> int:
        return sum(finding.level == level for finding in self.findings)


def ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first; of one level in the order in which they were found."""
    return tuple(sorted(findings, key=lambda finding: -LEVELS.index(finding.level)))


def to_json(report: Report) -> dict[str, Any]:
    """data_report.json: of every finding all rows, by split and number of the row in its source from 0 on."""
    return {
        "written by": WRITER,
        "task": report.task,
        "data": report.data,
        "rows": {name: {"looked at": n, "of": whole} for name, n, whole in report.rows},
        "worst": report.worst,
        "findings": [
            {
                "check": finding.check,
                "level": finding.level,
                "summary": finding.summary,
                "advice": finding.advice,
                **finding.details,
            }
            for finding in report.findings
        ],
        "notes": list(report.notes),
    }


def render(report: Report) -> str:
    """data_report.html."""
    looked = "; ".join(
        f"{name}: {n:,} rows" if n == whole else f"{name}: {n:,} of {whole:,} rows, at random"
        for name, n, whole in report.rows
    )
    tiles = [
        element("div", element("dt", level), element("dd", str(report.count(level))))
        for level in reversed(LEVELS)
    ]
    parts: list[Html] = [
        element("p", f"jaxft · {report.task}", attributes={"class": "kicker"}),
        element("h1", report.data),
        element("p", looked, attributes={"class": "note"}),
        element("dl", *tiles, attributes={"class": "tiles"}),
        *(_section(finding) for finding in report.findings),
        element("h2", "How the data were read"),
        *(element("p", note, attributes={"class": "note"}) for note in report.notes),
        element("footer", "Written by jaxft."),
    ]
    return page(TITLE, element("main", join(parts)))


def _section(finding: Finding) -> Html:
    parts = [
        element("h2", f"{finding.check} ({finding.level})"),
        element("p", finding.summary),
    ]
    if finding.advice:
        parts.append(element("p", finding.advice, attributes={"class": "note"}))
    if finding.figure:
        parts.append(
            figure(finding.figure, f"{finding.check}: how many examples have which length")
        )
    if finding.rows:
        pictured = len(finding.pictures[0]) if finding.pictures else 0
        rows = [
            (*map(_image, finding.pictures[number]), *row) if pictured else row
            for number, row in enumerate(finding.rows)
        ]
        heads = ("",) * pictured + finding.heads
        kinds = "t" * pictured + "".join("w" if len(head) > 3 else "t" for head in finding.heads)
        parts.append(table(heads, rows, kinds=kinds))
    return join(parts)


def _image(source: str) -> Html:
    found = thumbnail(source)
    if found is None:
        return Html("")
    uri, tiny = found
    style = "width:9rem;image-rendering:pixelated" if tiny else "max-width:9rem"
    return element("img", attributes={"src": uri, "alt": "", "style": style})


def is_page(path: Path) -> bool:
    """Whether a file is an earlier data_report.html."""
    return has_title(path, TITLE)


def is_json(path: Path) -> bool:
    """Whether a file is an earlier data_report.json."""
    return is_by(path, WRITER)
