"""Plain text files: a row is a line, a paragraph, or the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.files import Source
from jaxft.data.records import FileBytes, Lines, Records, check_encoding

SAMPLE_BY = ("auto", "line", "paragraph", "document")
_LINE_END = re.compile(r"\r\n|\n|\r")
# Lines of a paragraph on the average of a file, at most: a file of lines may have a stray blank one.
_LONGEST = 20


def read_text(path: Path, sample_by: str = "auto") -> Source:
    r"""Rows {'text': …} of a text in UTF-8. Blank lines are no rows.

    sample_by: 'line': a line. 'paragraph': lines up to a blank one. 'document': the file. 'auto':
      paragraphs where blank lines separate texts of at most 20 lines on the average, else lines; the
      source's notes say which.

    Lines of a row are separated by \n; white space at its end is left out.

    Raises ValueError, naming the line: nothing but blank lines, bytes that are not UTF-8, a NUL byte.
    """
    file = FileBytes(path)
    check_encoding(file)
    lines = Lines(file)
    found = {kind: Records(file) for kind in SAMPLE_BY[1:]}
    counts = dict.fromkeys(found, 0)
    start, blank = lines.position, True
    for line in lines:
        if line.strip():
            for kind in ("line", *("paragraph",) * blank, *("document",) * (not counts["line"])):
                found[kind].add(start, lines.number)
                counts[kind] += 1
        blank = not line.strip()
        start = lines.position
    if not counts["line"]:
        raise ValueError(f"{path.name}: the file is empty")
    notes: tuple[str, ...] = ()
    if sample_by == "auto":
        paragraphs = 1 < counts["paragraph"] and counts["line"] <= _LONGEST * counts["paragraph"]
        sample_by = "paragraph" if paragraphs else "line"
        notes = (f"{path.name}: a row is a {sample_by} (config.data.sample_by chooses)",)
    records = found[sample_by]
    records.end()

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        texts = ["\n".join(_LINE_END.split(raw.decode())).rstrip() for raw in records.each(rows)]
        return [texts for _ in columns]

    return Source(path.name, ("text",), len(records), read, lines=records.lines, notes=notes)
