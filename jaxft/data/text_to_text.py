"""Texts with a text to be given for each: their columns, and the tokens of both sides.

The two are tokenised apart, each cut at its own length, and stay apart: `Tokens.answers` are those of the
texts to be given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.data.checks import check_inputs, text_fault
from jaxft.data.decoder_tokens import around, decoder_tokenizer
from jaxft.data.files import Column, Source
from jaxft.data.labels import find_column
from jaxft.data.targets import Batch, places
from jaxft.data.text import tokenize
from jaxft.data.tokenizer import load_tokenizer
from jaxft.data.tokens import Answers, Tokens

# (what is read, what is to be given): both must be there.
PAIRS = (
    ("source", "target"),
    ("input", "output"),
    ("input_text", "target_text"),
    ("article", "highlights"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
)


def find_target_column(source: Source, given: str) -> str:
    """The column of the texts to be given: as given, of a usual pair, or the second of two."""
    if given:
        return find_column(source, given, (), "target", option="label")
    for pair in PAIRS:
        if all(name in source.columns for name in pair):
            return pair[1]
    if len(source.columns) == 2:
        return source.columns[1]
    raise ValueError(
        f"{source.name} has none of the usual pairs of columns ({', '.join(map(' / '.join, PAIRS))}) but "
        f"{', '.join(source.columns)}; name what is read by config.data.text, what is to be given by "
        "config.data.label"
    )


def find_source_column(source: Source, given: Sequence[str], label: str) -> tuple[str]:
    """The column of the texts that are read: as given, of a usual pair, or the other of two.

    label: the column of the texts to be given, '' where there is none.
    """
    if len(given) > 1:
        raise ValueError(
            f"one text is read, got {len(given)} columns: {', '.join(given)}; the text to be given is "
            "named by config.data.label"
        )
    usual = tuple(dict.fromkeys(one for one, other in PAIRS if label in ("", other)))
    others = [name for name in source.columns if name != label]
    if not given and len(others) == 1:
        return (others[0],)
    return (find_column(source, given[0] if given else "", usual, "text", option="text"),)


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts to be given, one an example, read whenever they are gone through. See `Targets`."""

    texts: Column
    dropped: np.ndarray
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def rows(self) -> np.ndarray:
        return self.texts.rows

    @property
    def offsets(self) -> np.ndarray:
        return np.arange(len(self) + 1)

    def take(self, positions: np.ndarray) -> Texts:
        return dataclasses.replace(self, texts=self.texts.take(positions))

    def strata(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)

    def said_of_strata(self) -> str:
        return "at random"

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """'weight' [R, M] is 1 for each token to be given; 'labels' came with the inputs."""
        weight = (inputs["decoder_segment_ids"] > 0).astype(np.float32)
        return {"weight": weight, "index": places(self.rows, slots)["index"]}

    def contents(self) -> tuple[np.ndarray, ...]:
        """The rows; of the texts, their tokens have a fingerprint."""
        return (self.rows,)


def read_texts(source: Source, column: str, *, drop: bool, advice: str) -> Texts:
    """The texts to be given of the rows that have one. Empty ones are texts.

    Raises:
      ValueError: a row has none, or nothing that is one, unless `drop`; or no row has one.
    """
    rows = np.arange(len(source))
    faults = check_inputs(source, (column,), rows, inputs="text", fault=text_fault).faults
    if faults and not drop:
        row, fault = next(iter(faults.items()))
        more = f"; {len(faults)} rows in all ({source.numbered(list(faults))})"
        raise ValueError(
            f"{source.where(row)}: {fault}{more if len(faults) > 1 else ''}: mend them, or leave them "
            f"out{advice}"
        )
    dropped = np.array(list(faults), np.int64)
    kept = np.setdiff1d(rows, dropped)
    if not len(kept):
        raise ValueError(f"{source.name}: no row has a text in column {column!r}")
    return Texts(Column(source, column, kept, as_text), dropped)


def as_text(value: Any) -> str:
    """What is tokenised of a value without a fault."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def tokenize_both(
    source: Source,
    rows: np.ndarray,
    columns: Sequence[str],
    directory: str,
    *,
    prefix: str,
    max_length: int,
    max_target_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokens of the first of `columns` and, where there is a second, as their answers those of that.

    Args:
      directory: the checkpoint's: its tokenizer, and files with the tokens around an answer.
      prefix: stands before every text that is read.
      max_length, max_target_length: longer texts are cut.

    Raises:
      ValueError: as `text.tokenize`.
    """
    whole: dict[str, Any] = {"vocab_size": vocab_size, "cache_dir": cache_dir}
    read = prefixed(source, columns[0], prefix) if prefix else source
    tokenizer = load_tokenizer(directory)
    tokens = tokenize(read, rows, columns[:1], tokenizer, max_length=max_length, **whole)
    if len(columns) == 1:
        return tokens
    start, tokenizer = around(directory).start, decoder_tokenizer(directory)
    given = tokenize(source, rows, columns[1:], tokenizer, max_length=max_target_length, **whole)
    ratio = row_ratio(tokens.lengths, given.lengths)
    return dataclasses.replace(
        tokens,
        answers=Answers(given, start, ratio, max_target_length),
        fingerprint=tokens.fingerprint + given.fingerprint,
        cached=tokens.cached and given.cached,
    )


def prefixed(source: Source, column: str, prefix: str) -> Source:
    """The source with a prefix before every text of a column."""

    def read(columns: Sequence[str], rows: np.ndarray) -> list[Sequence[Any]]:
        return [
            [prefix + as_text(value) if not text_fault(value) else value for value in values]
            if name == column
            else values
            for name, values in zip(columns, source.read(columns, rows), strict=True)
        ]

    # Of the file itself, not of these texts.
    return dataclasses.replace(source, read=read, facts=None)


def row_ratio(lengths: np.ndarray, answers: np.ndarray) -> float:
    """Tokens that a row has for answers, for each one that it has for the texts, for the least padding.

    An example takes as much of a row as the fuller of its two sides does.
    """
    steps = slice(None, None, max(1, len(lengths) // 65536))
    lengths, answers = lengths[steps].astype(np.float64), answers[steps].astype(np.float64)

    def work(ratio: float) -> float:
        return float(np.maximum(lengths, np.ceil(answers / ratio)).sum() * (1 + ratio))

    return min((2.0 ** (k / 4) for k in range(-24, 13)), key=work)
