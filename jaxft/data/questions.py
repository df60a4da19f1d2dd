"""Questions about contexts: their columns, and their tokens in windows that overlap.

A context that is longer than a row is read in several windows, each with the question before it, as in
transformers' recipe for SQuAD (Rajpurkar et al. 2016).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.encode import Encoded, kept
from jaxft.data.files import Source
from jaxft.data.labels import find_column
from jaxft.data.text import check_vocabulary
from jaxft.data.tokenizer import attempt
from jaxft.data.tokens import Tokens, joined, windowed

QUESTION_COLUMNS = ("question", "query")
CONTEXT_COLUMNS = ("context", "passage", "paragraph", "document", "text")
# Given to the tokenizer at a time: a context has hundreds of tokens, each some ten Python objects.
_PAIRS = 64


def find_question_columns(source: Source, given: Sequence[str] = ()) -> tuple[str, str]:
    """The columns of the question and of the context: as given, or with usual names."""
    if len(given) not in (0, 2):
        raise ValueError(
            f"two columns are needed, the question and the context, got {len(given)}: "
            f"{', '.join(given)}"
        )
    question, context = given or ("", "")
    return (
        find_column(source, question, QUESTION_COLUMNS, "question", option="text"),
        find_column(source, context, CONTEXT_COLUMNS, "context", option="text"),
    )


def text_of(value: object) -> str:
    """A value in which `text_fault` finds none, as it is tokenised: offsets count its characters."""
    return value.decode() if isinstance(value, bytes) else str(value)


def tokenize_questions(
    source: Source,
    rows: np.ndarray,
    columns: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    *,
    max_length: int,
    stride: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises questions and contexts, the two columns, or maps what an earlier call made of the same.

    Arguments and cache as of `text.tokenize`. `Tokens.extra` has 'begins' and 'ends': of each token of
    the context the characters of it that it stands for, begins..ends; -1 of all other tokens.

    stride: tokens of the context that two windows which follow one another have in common.

    Raises ValueError: a question so long that no window could go on in its context, naming the row.
    """

    def part(rows: np.ndarray) -> Tokens:
        made = functools.partial(
            _encoded, source, rows, columns, tokenizer, max_length, stride, vocab_size
        )
        key = _key(source, rows, columns, tokenizer, max_length, stride) if cache_dir else ""
        return kept(
            made, ("window", "begins", "ends"), key, len(rows), tokenizer, vocab_size=vocab_size,
            cache_dir=cache_dir,
        )  # fmt: skip

    return windowed(joined([part(shard) for shard in token_cache.shards(rows)]), "window")


class Pair(NamedTuple):
    """A question and its whole context, as tokens.

    Attributes:
      ids: [n] int32.
      first, last: the context's tokens are first..last of them; an empty context has none.
      second: where token type 1 begins, n if it never does.
      begins, ends: [n] int32, see `tokenize_questions`.
    """

    ids: np.ndarray
    first: int
    last: int
    second: int
    begins: np.ndarray
    ends: np.ndarray


def pair_of(encoding: tokenizers.Encoding) -> Pair:
    """What the tokenizer made of a question and a context, in this order."""
    ids = np.array(encoding.ids, np.int32)
    # Not by token types, which some tokenizers do not write.
    own = np.array([part == 1 for part in encoding.sequence_ids], bool)
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    begins, ends = (np.where(own, column, -1).astype(np.int32) for column in offsets.T)
    found = np.flatnonzero(own)
    first, last = (int(found[0]), int(found[-1]) + 1) if len(found) else (len(ids), len(ids))
    types = encoding.type_ids
    return Pair(ids, first, last, types.index(1) if 1 in types else len(ids), begins, ends)


def window_ranges(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Which of `count` tokens each window holds, as tokenizers cuts them.

    >>> window_ranges(10, 6, 2), window_ranges(0, 6, 2)
    ([(0, 6), (4, 10)], [(0, 0)])
    """
    ranges = [(0, min(room, count))]
    while ranges[-1][1] < count:
        start = ranges[-1][0] + room - stride
        ranges.append((start, min(start + room, count)))
    return ranges


def _encoded(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokenizer: tokenizers.Tokenizer,
    max_length: int, stride: int, vocab_size: int,
) -> Iterator[Encoded]:  # fmt: skip
    for part, pairs in _pairs(source, rows, columns):
        encodings = attempt(
            functools.partial(tokenizer.encode_batch, pairs),
            f"the checkpoint's tokenizer fails on the texts of {source.name}",
        )
        made = [
            _cut(pair_of(encoding), max_length, stride, source, row)
            for row, encoding in zip(part.tolist(), encodings, strict=True)
        ]
        whole = made[0] if len(made) == 1 else _one_after_the_other(made)
        check_vocabulary(int(whole.ids.max(initial=-1)), tokenizer, vocab_size)
        yield whole


def _cut(pair: Pair, max_length: int, stride: int, source: Source, row: int) -> Encoded:
    """The windows of a pair, as one entry."""
    room = max_length - (len(pair.ids) - (pair.last - pair.first))
    if room < 0 or (room <= stride and pair.last - pair.first > room):
        raise ValueError(
            f"{source.where(row)}: the question has so many tokens that {max(room, 0)} of "
            f"config.data.max_length={max_length} are left for the context, and windows overlap by "
            f"config.data.stride={stride}: give more of the one or less of the other"
        )
    places = [
        np.r_[: pair.first, pair.first + start : pair.first + stop, pair.last : len(pair.ids)]
        for start, stop in window_ranges(pair.last - pair.first, room, stride)
    ]
    number = [np.where(np.arange(len(own)), -1, 0) for own in places]
    every = np.concatenate(places)
    length = np.array([len(every)], np.int32)
    second = np.minimum(length, pair.second if pair.second < len(pair.ids) else len(every))
    extra = {
        "window": np.concatenate(number).astype(np.int32),
        "begins": pair.begins[every],
        "ends": pair.ends[every],
    }
    return Encoded(length, second.astype(np.int32), pair.ids[every], extra)


def _one_after_the_other(parts: Sequence[Encoded]) -> Encoded:
    lengths, second, ids = (np.concatenate([part[column] for part in parts]) for column in range(3))
    extra = {name: np.concatenate([p.extra[name] for p in parts]) for name in parts[0].extra}
    return Encoded(lengths, second, ids, extra)


def _pairs(
    source: Source, rows: np.ndarray, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, list[tuple[str, str]]]]:
    """Some rows after the other, with their questions and contexts."""
    for part, values in source.chunks(columns, rows):
        for start in range(0, len(part), _PAIRS):
            some = slice(start, start + _PAIRS)
            questions, contexts = (map(text_of, column[some]) for column in values)
            # Blanks before a question are no part of it, though byte-level tokenizers make tokens of them.
            given = [(q.lstrip(), c) for q, c in zip(questions, contexts, strict=True)]
            yield part[some], given


def _key(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokenizer: tokenizers.Tokenizer,
    max_length: int, stride: int,
) -> str:  # fmt: skip
    made_by = f"questions {token_cache.VERSION} {len(rows)} {max_length} {stride} "
    digest = hashlib.blake2b(made_by.encode(), digest_size=16)
    digest.update(tokenizer.to_str().encode())
    for _, pairs in _pairs(source, rows, columns):
        for texts in pairs:
            for text in texts:
                digest.update(f"{len(text)} ".encode())
                digest.update(text.encode())
    return digest.hexdigest()
