"""Documents, of which a model learns every next token: one column of texts, cut into windows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.encode import Encoded, kept
from jaxft.data.files import Source
from jaxft.data.labels import find_column
from jaxft.data.targets import Unlabelled, offsets_of, unlabelled
from jaxft.data.text import TEXT_COLUMNS, check_vocabulary, chunked, texts_key, texts_of
from jaxft.data.tokenizer import attempt
from jaxft.data.tokens import Tokens, joined, windowed


def find_document_column(
    source: Source, given: Sequence[str] = (), label: str = ""
) -> tuple[str, ...]:
    """The column of texts: as given, the only one, or one with a usual name."""
    if len(given) > 1:
        raise ValueError(f"the texts are in one column, got {len(given)}: {', '.join(given)}")
    if not given and len(source.columns) == 1 and isinstance(source[0][source.columns[0]], str):
        return (source.columns[0],)
    return (find_column(source, given[0] if given else "", TEXT_COLUMNS, "text", option="text"),)


@dataclasses.dataclass(frozen=True)
class Documents(Unlabelled):
    """Texts that are themselves what is learned; see `Targets`.

    sizes [n] int64: bytes of each as UTF-8; of no document where they are not known.
    """

    sizes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def take(self, positions: np.ndarray) -> Documents:
        sizes = self.sizes[positions] if len(self.sizes) else self.sizes
        rows = self.rows[positions]
        return Documents(rows, np.arange(len(rows) + 1), sizes=sizes)


def read_documents(source: Source, column: str) -> Documents:
    """Every row of a source; a value that is no text has no size, and is found when inputs are checked."""
    sizes = np.zeros(len(source), np.int64)
    for rows, (values,) in source.chunks((column,)):
        sizes[rows] = [_size(value) for value in values]
    return Documents(np.arange(len(source)), unlabelled(len(source)).offsets, sizes=sizes)


def _size(value: object) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    return len(value) if isinstance(value, bytes) else 0


def tokenize_documents(
    source: Source,
    rows: np.ndarray,
    column: str,
    tokenizer: tokenizers.Tokenizer,
    *,
    end: int | None,
    max_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises documents whole, or maps what an earlier call made of the same.

    One that is longer than max_length becomes several windows, each of which begins with the last token
    of the one before: so every token but a document's first is predicted once.

    Args:
      end: the token that ends a document, added where the tokenizer does not; None: nothing is added.
      max_length: of a window, at least 2.

    Other arguments, cache and errors as of `text.tokenize`.
    """

    def part(rows: np.ndarray) -> Tokens:
        return kept(
            lambda: _encoded(source, rows, column, tokenizer, end, max_length, vocab_size),
            ("begins",),
            texts_key(source, rows, (column,), tokenizer, f"documents {end} {max_length} ")
            if cache_dir else "",
            len(rows), tokenizer, vocab_size=vocab_size, cache_dir=cache_dir,
        )  # fmt: skip

    tokens = joined([part(shard) for shard in token_cache.shards(rows)])
    if (empty := np.flatnonzero(tokens.lengths == 0)).size:
        raise ValueError(
            f"{source.where(int(rows[empty[0]]))}: the tokenizer makes no token of its text, and there is "
            f"none that ends a text; {len(empty)} such in all: leave them out"
        )
    return windowed(tokens, "begins")


def _encoded(
    source: Source, rows: np.ndarray, column: str, tokenizer: tokenizers.Tokenizer,
    end: int | None, max_length: int, vocab_size: int,
) -> Iterator[Encoded]:  # fmt: skip
    for texts in texts_of(source, rows, (column,)):
        for chunk in chunked(texts):
            encodings = attempt(
                functools.partial(tokenizer.encode_batch_fast, chunk),
                f"the checkpoint's tokenizer fails on the texts of {source.name}",
            )
            own = [windows(_ended(encoding.ids, end), max_length) for encoding in encodings]
            ids = np.concatenate([part[0] for part in own])
            check_vocabulary(int(ids.max(initial=-1)), tokenizer, vocab_size)
            lengths = np.array([len(part[0]) for part in own], np.int32)
            yield Encoded(lengths, lengths, ids, {"begins": np.concatenate([p[1] for p in own])})


def _ended(ids: list[int], end: int | None) -> np.ndarray:
    if end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    return np.array(ids, np.int32)


def windows(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens of the windows one after the other, 0 at the first token of each and -1 at the others).

    >>> windows(np.array([1, 2, 3, 4, 5]), 3)
    (array([1, 2, 3, 3, 4, 5], dtype=int32), array([ 0, -1, -1,  0, -1, -1], dtype=int32))
    """
    count = max(1, -(-(len(ids) - 1) // (length - 1))) if len(ids) else 0
    starts = np.arange(count) * (length - 1)
    sizes = np.minimum(starts + length, len(ids)) - starts
    within = np.arange(sizes.sum()) - np.repeat(offsets_of(sizes)[:-1], sizes)
    begins = np.where(within == 0, 0, -1).astype(np.int32)
    return ids[np.repeat(starts, sizes) + within].astype(np.int32), begins
