"""Answers as targets: where in its context each question is answered, and what is no answer."""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.data.files import Column, Source
from jaxft.data.labels import find_column
from jaxft.data.questions import text_of
from jaxft.data.targets import Batch, places

# Names under which columns of answers are commonly found, the likeliest first.
ANSWER_COLUMNS = ("answers", "answer", "label")
_NUMBERS = int | np.integer


@dataclasses.dataclass(frozen=True)
class Answers:
    """contexts[j][begins[j]:ends[j]] answers the question in the source's row rows[j]; see `Targets`.

    rows [n] int64; begins, ends [n] int32, both -1 of a question without an answer; texts [n]: the lists
    of all its answers, and contexts [n], read when they are asked for; dropped [m] int64.
    """

    rows: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    texts: Column
    contexts: Column
    dropped: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def offsets(self) -> np.ndarray:
        return np.arange(len(self) + 1)

    @property
    def answered(self) -> np.ndarray:
        """[n] bool: there is an answer."""
        return self.begins >= 0

    def take(self, positions: np.ndarray) -> Answers:
        return dataclasses.replace(
            self,
            rows=self.rows[positions],
            begins=self.begins[positions],
            ends=self.ends[positions],
            texts=self.texts.take(positions),
            contexts=self.contexts.take(positions),
        )

    def strata(self) -> np.ndarray:
        """Questions without an answer, and those with one."""
        return self.answered.astype(np.int64)

    def said_of_strata(self) -> str:
        return "of questions with and without an answer alike" if len(set(self.answered)) > 1 else (
            "at random"
        )  # fmt: skip

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """'first' and 'last' [R, K] int32: columns of the answer's tokens in a row, 'weight', 'index'.

        Of a window that does not hold the whole answer both are its first token, as of a question without
        one.
        """
        begins, ends = inputs["begins"], inputs["ends"]
        row, column = np.nonzero(begins >= 0)  # tokens of contexts, one number each from here on
        slot = inputs["segment_ids"][row, column] - 1
        begin, end = begins[row, column], ends[row, column]
        example = slots[row, slot]
        wanted = self.begins[example], self.ends[example]
        width = begins.shape[1]

        def lowest(values: np.ndarray, which: np.ndarray) -> np.ndarray:
            """The least of the values in each slot; `width` and more where there is none."""
            found = np.full(slots.shape, np.iinfo(np.int32).max)
            np.minimum.at(found, (row[which], slot[which]), values[which])
            return found

        # The last token that begins no later than the answer, the first that ends no earlier.
        first = -lowest(-column, begin <= wanted[0])
        last = lowest(column, end >= wanted[1])
        held = (self.begins[slots] >= 0) & (slots >= 0) & (first >= 0) & (last < width)
        start = inputs["starts"]
        return {
            "first": np.where(held, first, start).astype(np.int32),
            "last": np.where(held, last, start).astype(np.int32),
            **places(self.rows, slots),
        }

    def contents(self) -> tuple[np.ndarray, ...]:
        return self.rows, self.begins, self.ends


def find_answer_column(source: Source, given: str = "") -> str:
    """The column of the answers: as given, or one with a usual name."""
    return find_column(source, given, ANSWER_COLUMNS, "answers", option="label")


def read_answers(
    source: Source, column: str, context: str, *, drop_bad: bool = False, advice: str = ""
) -> Answers:
    """Reads the answers to each question, in one of the forms that `answers_of` knows.

    context: the column of the texts that they are in. The first answer of several is trained on.
    drop_bad: leave out rows whose answers cannot be used, rather than raise.
    advice: how the user can ask for that, for the message of this error.

    Raises ValueError: answers that are none, or not where they are said to be (the first such row, and how
    many).
    """
    rows, begins, ends, faulty = array("q"), array("i"), array("i"), array("q")
    fault = ""
    for part, (given, contexts) in source.chunks((column, context)):
        for row, value, text in zip(part.tolist(), given, contexts, strict=True):
            try:
                begin, end = _place(answers_of(value), text)
            except ValueError as error:
                faulty.append(row)
                fault = fault or f"column {column!r} {error}"
                continue
            rows.append(row)
            begins.append(begin)
            ends.append(end)
    dropped = np.array(faulty, np.int64)
    if len(dropped) and not (drop_bad and len(rows)):
        more = f"; {len(dropped)} rows are like this ({source.numbered(dropped)})"
        said = f"{source.where(int(dropped[0]))}: {fault}{more if len(dropped) > 1 else ''}"
        raise ValueError(f"{said}: mend them, or leave them out{advice}")
    usable = np.array(rows, np.int64)
    return Answers(
        usable, np.array(begins, np.int32), np.array(ends, np.int32),
        Column(source, column, usable, lambda value: [text for text, _ in answers_of(value)]),
        Column(source, context, usable, text_of), dropped,
    )  # fmt: skip


def answers_of(value: Any) -> list[tuple[str, int | None]]:
    """The answers in a value, and the character of the context at which each begins, if it says.

    >>> answers_of({"text": ["a", "b"], "answer_start": [3, 7]}), answers_of({"text": [], "answer_start": []})
    ([('a', 3), ('b', 7)], [])
    >>> answers_of([{"text": "a", "answer_start": 3}]), answers_of(["a"]), answers_of("a"), answers_of("")
    ([('a', 3)], [('a', None)], [('a', None)], [])

    The same as the text of a JSON object or list, as a CSV file may have it.

    Raises ValueError: it is none of these; what it is, to be put after the column's name.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        if value.lstrip()[:1] in ("{", "["):
            try:
                return answers_of(json.loads(value))
            except (ValueError, RecursionError):
                pass  # an answer that begins with a bracket
        return [(value, None)] if value else []
    if isinstance(value, Mapping):
        texts, starts = _items(value.get("text")), _items(value.get("answer_start"))
        if texts is None or starts is None or len(texts) != len(starts):
            raise ValueError(
                f"holds {value!r:.60}, where 'text' and 'answer_start' are not as many as each other"
            )
        return [_answer(*pair, value) for pair in zip(texts, starts, strict=True)]
    items = _items(value) if not isinstance(value, _NUMBERS) else None
    if items is None:
        raise ValueError(f"has no answers ({value!r:.40})")
    found = []
    for item in items:
        if isinstance(item, Mapping):
            found.append(_answer(item.get("text"), item.get("answer_start"), value))
        else:
            found.append(_answer(item, None, value))
    return found


def _items(value: Any) -> list[Any] | None:
    """A list or array as a list, a single text or number as one of one; None of anything else."""
    if isinstance(value, np.ndarray):
        return list(value.tolist())
    if isinstance(value, str | _NUMBERS) and not isinstance(value, bool):
        return [value]
    return list(value) if isinstance(value, list | tuple) else None


def _answer(text: Any, start: Any, value: Any) -> tuple[str, int | None]:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"holds {text!r:.40} as an answer, which is no text; a question without one has an empty "
            "list"
        )
    if start is not None and (not isinstance(start, _NUMBERS) or isinstance(start, bool)):
        raise ValueError(f"holds {start!r:.40} as a place in the context, which is no whole number")
    return text, None if start is None else int(start)


def _place(answers: Sequence[tuple[str, int | None]], given: Any) -> tuple[int, int]:
    """Where the first answer begins and ends; (-1, -1) without one."""
    if not answers or not isinstance(given, str | bytes):  # said when the inputs are looked at
        return -1, -1
    context = text_of(given)
    for text, start in answers:
        if start is None:
            _count(text, context)
        elif start < 0 or context[start : start + len(text)] != text:
            there = context[max(start, 0) : max(start, 0) + len(text)]
            raise ValueError(
                f"says that {text!r:.40} is at character {start} of the context, where "
                f"{there!r:.40} is{_elsewhere(text, context)}"
            )
    text, start = answers[0]
    begin = context.index(text) if start is None else start
    return begin, begin + len(text)


def _count(text: str, context: str) -> None:
    if (count := context.count(text)) != 1:
        what = "not in the context" if not count else f"{count} times in the context"
        hint = "" if not count else ": give 'answer_start' with it"
        raise ValueError(f"holds {text!r:.40}, which is {what}{hint}")


def _elsewhere(text: str, context: str) -> str:
    found = context.find(text)
    return "" if found < 0 else f" (it is at {found}; characters are counted, from 0)"
