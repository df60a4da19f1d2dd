"""Entries that were tokenised once: kept on the disk with all that is known of their tokens, or in memory.

What makes the entries stands with each kind of inputs (text.py, words.py, …).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.text import check_vocabulary
from jaxft.data.tokens import Tokens, make_tokens


class Encoded(NamedTuple):
    """Some entries after the other, int32.

    Attributes:
      lengths, second: [k], see `Tokens`.
      ids: [tokens].
      extra: by name, [tokens] each.
    """

    lengths: np.ndarray
    second: np.ndarray
    ids: np.ndarray
    extra: Mapping[str, np.ndarray]


def kept(
    encoded: Callable[[], Iterator[Encoded]],
    names: Sequence[str],
    key: str,
    entries: int,
    tokenizer: tokenizers.Tokenizer,
    *,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """What `encoded` gives, or what an earlier call kept of it.

    Args:
      encoded: makes `entries` entries, a few at a time.
      names: of their `extra`.
      key: 32 hexadecimal digits, a hash of everything that they follow from.
      cache_dir: made if missing; None keeps the tokens in memory.

    Raises:
      ValueError: a token that is not below vocab_size.
    """
    if cache_dir is None:
        return _gathered(encoded(), names)
    folder = Path(cache_dir)
    paths = {name: folder / f"{_of(key, name) if name else key}.npy" for name in ("", *names)}
    if found := _load(paths, entries):
        check_vocabulary(found.largest, tokenizer, vocab_size)  # of what was made for another model
        return found
    with ExitStack() as stack:
        to = {
            name: stack.enter_context(token_cache.writing(path, entries, 0 if name else vocab_size))
            for name, path in paths.items()
        }
        for part in encoded():
            to[""].append(part.lengths, part.second, part.ids)
            for name in names:
                to[name].append(part.lengths, part.second, part.extra[name])
    made = _load(paths, entries)
    return dataclasses.replace(made, cached=False) if made else _gathered(encoded(), names)


def _load(paths: Mapping[str, Path], entries: int) -> Tokens | None:
    """The files of one layout together; None where one is missing or damaged."""
    found = {}
    for name, path in paths.items():
        if (tokens := token_cache.load(path, entries)) is None:
            return None
        found[name] = tokens
    return _together(found.pop(""), found)


def _together(ids: Tokens, extra: Mapping[str, Tokens]) -> Tokens:
    return dataclasses.replace(
        ids,
        extra={name: tokens.ids for name, tokens in extra.items()},
        fingerprint=ids.fingerprint + "".join(tokens.fingerprint for tokens in extra.values()),
    )


def _gathered(parts: Iterator[Encoded], names: Sequence[str]) -> Tokens:
    every = list(parts)
    lengths = np.concatenate([part.lengths for part in every])
    second = np.concatenate([part.second for part in every])

    def tokens(of: Callable[[Encoded], np.ndarray]) -> Tokens:
        return make_tokens(lengths, second, np.concatenate([of(part) for part in every]))

    return _together(
        tokens(lambda part: part.ids),
        {name: tokens(lambda part, name=name: part.extra[name]) for name in names},  # type: ignore[misc]
    )


def _of(key: str, name: str) -> str:
    """A name for what belongs to a key, of the form that the cache's files have."""
    return hashlib.blake2b(f"{key} {name}".encode(), digest_size=16).hexdigest()
