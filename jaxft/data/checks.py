"""Finds when a source is opened, before any compute, what would otherwise fail when a row is used."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxft.data.facts import digest_of, packed, unpacked
from jaxft.data.files import Source

# (value of a column) -> what keeps it from being used, or ''
Fault = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What was found in the inputs of some rows of a source.

    faults: row -> what is wrong with its input, by row.
    empty: the rows of which one text holds nothing but blanks, [m] int64.
    """

    faults: dict[int, str]
    empty: np.ndarray


def check_inputs(
    source: Source, columns: Sequence[str], rows: np.ndarray, *, inputs: str, fault: Fault | None
) -> Inputs:
    """Looks at the input of each of `rows` [n], which are at least one.

    inputs: the kind (inputs.py). Of 'image', paths are of regular files; images in memory are looked at
      when they are decoded.
    fault: what keeps a value from being used, or ''; None: nothing is looked at. Nothing is tokenised.
    """
    if fault is None:
        return Inputs({}, np.zeros(0, np.int64))
    if source.facts is None or inputs == "image":  # files of images may go at any time
        return _looked_at(source, columns, rows, inputs, fault)

    def make() -> dict[str, np.ndarray]:
        found = _looked_at(source, columns, rows, inputs, fault)
        return {"faults": packed(list(found.faults.items())), "empty": found.empty}

    kept = source.facts.known(("inputs", inputs, *columns, digest_of(rows)), make)
    return Inputs(dict(unpacked(kept["faults"])), kept["empty"])


def _looked_at(
    source: Source, columns: Sequence[str], rows: np.ndarray, inputs: str, fault_of: Fault
) -> Inputs:
    faults: dict[int, str] = {}
    empty: set[int] = set()
    if inputs == "image":
        first = source[int(rows[0])]
        # Paths that were listed from a folder a moment ago are there; other values are images.
        columns = [
            column
            for column in columns
            if not source.paths and (first[column] is None or isinstance(first[column], str))
        ]
    for part, found in source.chunks(columns, rows) if columns else ():
        for column, values in zip(columns, found, strict=True):
            if fault_of is text_fault and _sound_texts(values):
                continue
            for row, value in zip(part.tolist(), values, strict=True):
                fault = fault_of(value)
                if fault:
                    faults.setdefault(row, f"column {column!r} {fault}")
                elif (isinstance(value, str | bytes) and not value.strip()) or (
                    isinstance(value, list | tuple) and not value
                ):
                    empty.add(row)
    return Inputs(dict(sorted(faults.items())), np.array(sorted(empty - set(faults)), np.int64))


def _sound_texts(values: Sequence[Any]) -> bool:
    """Whether all are texts without a fault, and none is blank: the usual case, in a fifth of the time."""
    if set(map(type, values)) != {str} or not all(map(str.strip, values)):
        return False
    try:
        "".join(values).encode()
        return True
    except UnicodeEncodeError:
        return False


def text_fault(value: Any) -> str:
    """What keeps a value from being a text, or ''. An empty text is a text."""
    if isinstance(value, str):
        if value.isascii():  # the usual case, in a twentieth of the time
            return ""
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"holds half of a surrogate pair ({value[error.start]!a}), which is no character"
        return ""
    if isinstance(value, bytes):
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as error:
            return f"holds byte 0x{value[error.start]:02x}, which is not UTF-8"
        return ""
    if not isinstance(value, int | float) or value != value:
        return f"has no text ({value!r:.40})"
    return ""


def path_fault(value: Any) -> str:
    """What keeps a value from being the path of an image, or ''; images in memory have none."""
    if value is None or value == "":
        return f"has no image ({value!r})"
    if not isinstance(value, str):
        return ""
    try:
        if stat.S_ISREG(os.stat(value).st_mode):
            return ""
    except (OSError, ValueError):  # ValueError: a NUL character, or a name that is not UTF-8
        return f"names {value!a:.200}, which is not there"
    return f"names {value!r:.200}, which is no regular file"
