"""Texts that come as words: the column they are in, and their token ids with the word each belongs to.

A word is a unit of the data, such as a token of a CoNLL file; the checkpoint's tokenizer cuts it into
one token, several, or none.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.encode import Encoded, kept
from jaxft.data.files import Source
from jaxft.data.labels import find_column
from jaxft.data.text import check_vocabulary, lone_surrogate, set_truncation
from jaxft.data.tokenizer import attempt
from jaxft.data.tokens import Tokens, joined

WORD_COLUMNS = ("tokens", "words", "text", "sentence")


def find_words_column(source: Source, given: Sequence[str] = ()) -> tuple[str]:
    """The column of words: as given, or one with a usual name."""
    if len(given) > 1:
        raise ValueError(f"words are in one column, got {len(given)}: {', '.join(given)}")
    name = given[0] if given else ""
    return (find_column(source, name, WORD_COLUMNS, "words", option="text"),)


def words_of(value: Any) -> list[str]:
    """The words of a row: its list, or a text cut at white space."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return value.split() if isinstance(value, str) else list(value)


def words_fault(value: Any) -> str:
    """What keeps a value from being words, or ''. An empty list is one."""
    if not isinstance(value, str | list | tuple | np.ndarray):
        return f"has no words ({value!r:.40})"
    for number, word in enumerate(words_of(value), start=1):
        if not isinstance(word, str):
            return f"holds {word!r:.40} as word {number}, which is no text"
        if found := lone_surrogate(word):
            return f"holds half of a surrogate pair ({found!a}) in word {number}, which is no character"
    return ""


def tokenize_words(
    source: Source,
    rows: np.ndarray,
    column: str,
    tokenizer: tokenizers.Tokenizer,
    *,
    max_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises the words of the given rows, or maps what an earlier call made of the same.

    Arguments, cache and errors as of `text.tokenize`. 'words' of `Tokens.extra` says which word each
    token begins, and `Tokens.cut` how many words lie beyond max_length.
    """
    set_truncation(tokenizer, max_length)
    _separate(tokenizer)

    def part(rows: np.ndarray) -> Tokens:
        tokens = kept(
            lambda: _encoded(source, rows, column, tokenizer, vocab_size), ("words",),
            _key(source, rows, column, tokenizer) if cache_dir else "", len(rows), tokenizer,
            vocab_size=vocab_size, cache_dir=cache_dir,
        )  # fmt: skip
        return dataclasses.replace(tokens, cut=_cut(source, rows, column, tokens, max_length))

    return joined([part(shard) for shard in token_cache.shards(rows)])


def _separate(tokenizer: tokenizers.Tokenizer) -> None:
    """A byte-level tokenizer takes a word for the rest of another unless a space stands before it."""
    before = tokenizer.pre_tokenizer
    if isinstance(before, tokenizers.pre_tokenizers.ByteLevel):
        # As transformers asks of such a tokenizer before it takes words.
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
            add_prefix_space=True, use_regex=before.use_regex
        )


def _encoded(
    source: Source, rows: np.ndarray, column: str, tokenizer: tokenizers.Tokenizer, vocab_size: int
) -> Iterator[Encoded]:
    """Of some rows after the other."""
    for sentences in _sentences(source, rows, column):
        # (The `fast` variant forgets which word a token is of.)
        encodings = attempt(
            functools.partial(tokenizer.encode_batch, sentences, is_pretokenized=True),
            f"the checkpoint's tokenizer fails on the words of {source.name}",
        )
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int32)
        ids = np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])
        check_vocabulary(int(ids.max(initial=-1)), tokenizer, vocab_size)
        begun = np.concatenate([_begun(encoding.word_ids) for encoding in encodings])
        # One text: the second of a pair, which has another token type, never begins.
        yield Encoded(lengths, lengths, ids, {"words": begun})


def _begun(word_ids: Sequence[int | None]) -> np.ndarray:
    """[None, 0, 0, 1, None] -> [-1, 0, -1, 1, -1]."""
    numbers = np.array([-1 if word is None else word for word in word_ids], np.int32)
    again = np.append(False, numbers[1:] == numbers[:-1])
    return np.where(again, -1, numbers).astype(np.int32)


def _cut(source: Source, rows: np.ndarray, column: str, tokens: Tokens, max_length: int) -> int:
    """Words after the last one that has a token, in all sentences that reach the limit."""
    # (A tokenizer may have nothing for a word, so a missing one was not always cut.)
    words = tokens.extra["words"]
    full = np.flatnonzero(tokens.lengths == max_length)
    counts = (len(own) for chunk in _sentences(source, rows[full], column) for own in chunk)
    lost = 0
    for j, count in zip(full.tolist(), counts, strict=True):
        own = words[np.arange(*tokens.offsets[j : j + 2])]
        lost += count - 1 - int(own.max(initial=-1))
    return lost


def _sentences(source: Source, rows: np.ndarray, column: str) -> Iterator[list[list[str]]]:
    """The words of some rows after the other."""
    for _, (values,) in source.chunks((column,), rows):
        yield [words_of(value) for value in values]


def _key(source: Source, rows: np.ndarray, column: str, tokenizer: tokenizers.Tokenizer) -> str:
    digest = hashlib.blake2b(f"words {token_cache.VERSION} {len(rows)} ".encode(), digest_size=16)
    digest.update(tokenizer.to_str().encode())  # holds max_length as well: truncation is set
    for sentences in _sentences(source, rows, column):
        digest.update(json.dumps(sentences).encode())
    return digest.hexdigest()
