"""Inputs that are handed to a model from memory, as the columns that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.choices import choice_fault
from jaxft.data.words import words_fault, words_of


def as_list(inputs: Iterable[Any]) -> list[Any]:
    """The inputs. ValueError for a single one: a text is also a sequence, and an array one of rows."""
    single = isinstance(inputs, str | bytes | Path | Mapping) or not isinstance(inputs, Iterable)
    if single or (isinstance(inputs, np.ndarray) and inputs.ndim in (2, 3)):
        raise ValueError(f"give a list of inputs, not one {type(inputs).__name__}: [it]")
    return list(inputs)


def as_columns(inputs: str, given: Sequence[Any]) -> Mapping[str, list[Any]]:
    """The inputs of a model as columns of a table.

    inputs: kind of the model's (inputs.py). given: at least one.

    Raises ValueError, naming its number: an input that is none.
    """
    if inputs == "text":
        return _text_columns(given)
    if inputs in ("document", "masked text", "text to text", "texts"):
        columns = _text_columns(given)
        if len(columns) > 1:
            raise ValueError("the model reads single texts, not pairs")
        return columns
    if inputs == "choices":
        return _choice_columns(given)
    if inputs == "conversation":
        return {"messages": list(given)}
    if inputs == "preference":
        return _preference_columns(given)
    if inputs == "question":
        pairs = list(_text_columns(given).values())
        if len(pairs) != 2:
            raise ValueError("give pairs of texts: a question and its context")
        return {"question": pairs[0], "context": pairs[1]}
    if inputs == "image":
        return {"image": _images(given)}
    for number, entry in enumerate(given, start=1):
        if fault := words_fault(entry):
            raise ValueError(f"input {number} {fault}")
    return {"tokens": [words_of(entry) for entry in given]}


def _text_columns(given: Sequence[Any]) -> dict[str, list[str]]:
    """One column of texts or, for pairs, two."""
    width = 1 if isinstance(given[0], str) else 2
    columns: list[list[str]] = [[] for _ in range(width)]
    for number, entry in enumerate(given, start=1):
        texts = [entry] if isinstance(entry, str) else entry
        pair = isinstance(texts, tuple | list) and len(texts) in (1, 2)
        if not pair or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"input {number} is no text and no pair of texts: {entry!r:.40}")
        if len(texts) != width:
            raise ValueError(f"input {number}: texts and pairs of texts cannot be mixed")
        for column, text in zip(columns, texts, strict=True):
            if not text.isascii() and text.encode("utf-8", "ignore").decode() != text:
                raise ValueError(f"input {number} holds half of a surrogate pair: {text!a:.40}")
            column.append(text)
    return dict(zip(("first", "second"), columns, strict=False))


def _preference_columns(given: Sequence[Any]) -> dict[str, list[Any]]:
    """Prompts, preferred and other answers."""
    for number, entry in enumerate(given, start=1):
        if not isinstance(entry, tuple | list) or len(entry) != 3:
            raise ValueError(
                f"input {number} is no (prompt, preferred answer, other answer): {entry!r:.60}"
            )
    names = ("prompt", "chosen", "rejected")
    return {name: [entry[i] for entry in given] for i, name in enumerate(names)}


def _choice_columns(given: Sequence[Any]) -> dict[str, list[Any]]:
    """The one or two texts that choices are for, and the lists of choices."""
    for number, entry in enumerate(given, start=1):
        whole = (
            isinstance(entry, tuple | list) and len(entry) == len(given[0]) and len(entry) in (2, 3)
        )
        if not whole or not isinstance(entry[-1], tuple | list):
            raise ValueError(f"input {number} is no (text, list of choices): {entry!r:.60}")
        if fault := next(filter(None, map(choice_fault, entry)), ""):
            raise ValueError(f"input {number} {fault}")
    names = ("first", "second")[: len(given[0]) - 1]
    return {name: [entry[i] for entry in given] for i, name in enumerate((*names, "choices"))}


def _images(given: Sequence[Any]) -> list[Any]:
    """Paths as text, so that a message can name them; the rest as it is."""
    for number, entry in enumerate(given, start=1):
        if isinstance(entry, str | Path) and not Path(entry).expanduser().is_file():
            raise ValueError(f"input {number}: there is no file {str(entry)!r}")
    return [str(Path(x).expanduser()) if isinstance(x, str | Path) else x for x in given]
