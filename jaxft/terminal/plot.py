"""A curve for the terminal, in characters."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

import numpy as np

Values = Sequence[float] | np.ndarray

_ROWS = 14
_COLUMNS = 68
_BAND, _LINE = ("·", "•")
_PLAIN = {"·": ".", "•": "*", "│": "|", "└": "+", "─": "-", "┬": "+"}


def curve_lines(
    x: Values, y: Values, *, low: Values, high: Values,
    marks: Mapping[str, float],
) -> list[str]:  # fmt: skip
    """A curve over a logarithmic axis, a line of text a row.

    Args:
      x: [T], positive and growing.
      y, low, high: [T], finite: the curve, and the band about it.
      marks: one letter -> where on the x axis it stands; of two at one place the first is shown.
    """
    ends = np.log([x[0], x[-1]])
    places = np.interp(np.log(x), ends, [0, _COLUMNS - 1]).round().astype(int)
    bottom, top = float(np.min(low)), float(np.max(high))
    if top == bottom:
        top = bottom + 1.0
    heights = [
        np.interp(values, [bottom, top], [_ROWS - 1, 0]).round().astype(int)
        for values in (y, low, high)
    ]
    cells = [[" "] * _COLUMNS for _ in range(_ROWS)]
    for column, at, under, over in zip(places, *heights, strict=True):
        for row in range(over, under + 1):
            if cells[row][column] == " ":
                cells[row][column] = _BAND
        cells[at][column] = _LINE
    numbers = {
        0: top,
        _ROWS // 2: top + (bottom - top) * (_ROWS // 2) / (_ROWS - 1),
        _ROWS - 1: bottom,
    }
    lines = [
        f"{numbers.get(row, ''):>9{'.4g' if row in numbers else ''}} │{''.join(cells[row])}".rstrip()
        for row in range(_ROWS)
    ]
    return [*lines, *_axis(x, marks)]


def _axis(x: Values, marks: Mapping[str, float]) -> list[str]:
    """Powers of ten below the curve, and the marks below those."""
    ends = np.log10([x[0], x[-1]])

    def column(value: float) -> int:
        return int(np.interp(np.log10(value), ends, [0, _COLUMNS - 1]).round())

    rule, names, letters = ["─"] * _COLUMNS, [" "] * (_COLUMNS + 8), [" "] * _COLUMNS
    for power in range(int(np.ceil(ends[0])), int(np.floor(ends[1])) + 1):
        at = column(10.0**power)
        rule[at] = "┬"
        names[at : at + len(f"1e{power}")] = f"1e{power}"
    for letter, value in reversed(list(marks.items())):
        letters[column(value)] = letter
    margin = " " * 11
    lines = [" " * 10 + "└" + "".join(rule), margin + "".join(names), margin + "".join(letters)]
    return [line.rstrip() for line in lines]


def show_lines(lines: Sequence[str], *, stream: TextIO | None = None) -> None:
    """Print them, where the stream has no such characters by those of ASCII."""
    stream = stream or sys.stdout
    try:
        "".join(lines).encode(stream.encoding or "ascii")
    except UnicodeError:
        lines = ["".join(_PLAIN.get(letter, letter) for letter in line) for line in lines]
    print("\n".join(lines), file=stream)
