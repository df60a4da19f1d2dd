"""Texts of which a model guesses masked tokens: one column, cut into windows with their special tokens."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.encode import Encoded, kept
from jaxft.data.files import Source
from jaxft.data.text import check_vocabulary, chunked, set_truncation, texts_key, texts_of
from jaxft.data.tokenizer import attempt
from jaxft.data.tokens import Tokens, joined, windowed


def tokenize_masked(
    source: Source,
    rows: np.ndarray,
    column: str,
    tokenizer: tokenizers.Tokenizer,
    *,
    max_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises texts whole; a long one becomes several windows, each with the special tokens of a text.

    'word' of `Tokens.extra` is the number of the word that a token is of, as the tokenizer's
    pre-tokenizer divides the text; -1 of special tokens. Arguments, cache and errors as of
    `text.tokenize`.
    """
    set_truncation(tokenizer, max_length)

    def part(rows: np.ndarray) -> Tokens:
        return kept(
            lambda: _encoded(source, rows, column, tokenizer, vocab_size), ("begins", "word"),
            texts_key(source, rows, (column,), tokenizer, "masked ") if cache_dir else "",
            len(rows), tokenizer, vocab_size=vocab_size, cache_dir=cache_dir,
        )  # fmt: skip

    tokens = joined([part(shard) for shard in token_cache.shards(rows)])
    if (empty := np.flatnonzero(tokens.lengths == 0)).size:
        raise ValueError(
            f"{source.where(int(rows[empty[0]]))}: the tokenizer makes no token of its text, and it adds "
            f"none of its own; {len(empty)} such in all: leave them out"
        )
    return windowed(tokens, "begins")


def _encoded(
    source: Source, rows: np.ndarray, column: str, tokenizer: tokenizers.Tokenizer, vocab_size: int
) -> Iterator[Encoded]:
    added = tokenizer.get_added_tokens_decoder()
    special = np.array([number for number, token in added.items() if token.special], np.int32)
    for texts in texts_of(source, rows, (column,)):
        for chunk in chunked(texts):
            # (The `fast` variant forgets which word a token is of.)
            encodings = attempt(
                functools.partial(tokenizer.encode_batch, chunk),
                f"the checkpoint's tokenizer fails on the texts of {source.name}",
            )
            windows = [[one, *one.overflowing] for one in encodings]
            every = [window for own in windows for window in own]
            ids = np.concatenate([np.array(window.ids, np.int32) for window in every])
            check_vocabulary(int(ids.max(initial=-1)), tokenizer, vocab_size)
            word = np.concatenate([_words(window.word_ids) for window in every])
            begins = np.concatenate([-np.minimum(np.arange(len(w.ids)), 1) for w in every])
            lengths = np.array([sum(len(w.ids) for w in own) for own in windows], np.int32)
            # What stands for a special token in the text itself is none to be guessed either.
            extra = {
                "begins": begins.astype(np.int32),
                "word": np.where(np.isin(ids, special), -1, word).astype(np.int32),
            }
            yield Encoded(lengths, lengths, ids, extra)


def _words(word_ids: list[int | None]) -> np.ndarray:
    return np.array([-1 if word is None else word for word in word_ids], np.int32)
