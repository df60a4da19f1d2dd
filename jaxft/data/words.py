"""Texts that come as words: the column they are in, and their token ids with the word of each.

A word is a unit of the data, such as a token of a CoNLL file; the checkpoint's tokenizer cuts it into
one token, several, or none.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.files import Source
from jaxft.data.labels import find_column
from jaxft.data.text import check_vocabulary, lone_surrogate, set_truncation
from jaxft.data.token_cache import Tokens, make_tokens
from jaxft.data.tokenizer import attempt

WORD_COLUMNS = ("tokens", "words", "text", "sentence")
CHUNK = 1024  # sentences given to the tokenizer at a time


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

    Arguments, cache and errors as of `text.tokenize`. `Tokens.words` says which word each token
    begins, and `Tokens.cut` how many words lie beyond max_length.
    """
    set_truncation(tokenizer, max_length)
    _separate(tokenizer)
    values = source.column(column)
    sentences = [words_of(values[row]) for row in rows.tolist()]
    key = _key(sentences, tokenizer)
    # Two files of one layout: the ids, and in place of each the word that it begins.
    paths = [Path(cache_dir) / f"{name}.npy" for name in (key, _reverse(key))] if cache_dir else []
    found = [token_cache.load(path, len(rows)) for path in paths]
    if not found or None in found:
        found = list(_encode_all(sentences, tokenizer, source.name))
        for path, part in zip(paths, found, strict=False):
            assert part is not None
            token_cache.save(path, part)
    ids, words = found
    assert ids is not None and words is not None
    check_vocabulary(ids, tokenizer, vocab_size)
    return dataclasses.replace(
        ids, words=words.ids, fingerprint=ids.fingerprint + words.fingerprint,
        cut=_cut(sentences, words, max_length),
    )  # fmt: skip


def _separate(tokenizer: tokenizers.Tokenizer) -> None:
    """A byte-level tokenizer takes a word for the rest of another unless a space stands before it."""
    before = tokenizer.pre_tokenizer
    if isinstance(before, tokenizers.pre_tokenizers.ByteLevel):
        # As transformers asks of such a tokenizer before it takes words.
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
            add_prefix_space=True, use_regex=before.use_regex
        )


def _encode_all(
    sentences: list[list[str]], tokenizer: tokenizers.Tokenizer, name: str
) -> tuple[Tokens, Tokens]:
    """The tokens, and the same with the numbers of words for ids."""
    lengths, ids, words = ([np.zeros(0, np.int32)] for _ in range(3))
    for chunk in _chunks(sentences):
        # (The `fast` variant forgets which word a token is of.)
        encodings = attempt(
            functools.partial(tokenizer.encode_batch, chunk, is_pretokenized=True),
            f"the checkpoint's tokenizer fails on the words of {name}",
        )
        lengths.append(np.array([len(encoding.ids) for encoding in encodings], np.int32))
        ids += [np.array(encoding.ids, np.int32) for encoding in encodings]
        words += [_begun(encoding.word_ids) for encoding in encodings]
    sizes = np.concatenate(lengths)
    # One text: the second of a pair, which has another token type, never begins.
    return tuple(make_tokens(sizes, sizes, np.concatenate(part)) for part in (ids, words))  # type: ignore[return-value]


def _begun(word_ids: Sequence[int | None]) -> np.ndarray:
    """[None, 0, 0, 1, None] -> [-1, 0, -1, 1, -1]."""
    numbers = np.array([-1 if word is None else word for word in word_ids], np.int32)
    again = np.append(False, numbers[1:] == numbers[:-1])
    return np.where(again, -1, numbers).astype(np.int32)


def _cut(sentences: list[list[str]], words: Tokens, max_length: int) -> int:
    """Words after the last one that has a token, in all sentences that reach the limit."""
    # (A tokenizer may have nothing for a word, so a missing one was not always cut.)
    lost = 0
    for j in np.flatnonzero(words.lengths == max_length).tolist():
        own = words.ids[words.offsets[j] : words.offsets[j + 1]]
        lost += len(sentences[j]) - 1 - int(own.max(initial=-1))
    return lost


def _key(sentences: list[list[str]], tokenizer: tokenizers.Tokenizer) -> str:
    digest = hashlib.blake2b(
        f"words {token_cache.VERSION} {len(sentences)} ".encode(), digest_size=16
    )
    digest.update(tokenizer.to_str().encode())  # holds max_length as well: truncation is set
    for chunk in _chunks(sentences):
        digest.update(json.dumps(chunk).encode())
    return digest.hexdigest()


def _reverse(key: str) -> str:
    """A name for what belongs to a key, of the form that the cache's files have."""
    return key[::-1]


def _chunks(sentences: list[list[str]]) -> Iterator[list[list[str]]]:
    for start in range(0, len(sentences), CHUNK):
        yield sentences[start : start + CHUNK]
