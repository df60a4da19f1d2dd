"""`Tokens`: the token ids of the texts of a split, in memory or in mapped files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxft.data.targets import offsets_of

_BLOCK = 1 << 20  # numbers that a checksum looks at at a time


class Joined:
    """Arrays [n_i] of one dtype that are read by index as if they were one; nothing is copied."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self._parts = parts
        self._starts = offsets_of(np.array([len(part) for part in parts]))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """The numbers at index [n] int64."""
        part = np.searchsorted(self._starts, index, side="right") - 1
        found = np.empty(len(index), self._parts[0].dtype)
        for number in np.unique(part).tolist():
            own = part == number
            found[own] = self._parts[number][index[own] - self._starts[number]]
        return found


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, one after the other.

    ids [total] uint16 or int32: the tokens of example j are ids[offsets[j]:offsets[j + 1]].
    offsets [n + 1] int64.
    second [n] int32: where in example j token type 1 begins (its length if it never does).
    cached: read from the disk rather than made now.
    fingerprint: of all of the above, in hexadecimal; from the header where it is cached.
    largest: the largest id, -1 of no tokens.
    words [total] int32: the number in its example of the word that a token begins, -1 for one that
      begins none; None where texts are not given as words (words.py).
    cut: words that were left out because their example is too long.
    """

    ids: np.ndarray | Joined
    offsets: np.ndarray
    second: np.ndarray
    cached: bool
    fingerprint: str = ""
    largest: int = -1
    words: np.ndarray | Joined | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.second)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, special tokens included: [n] int32."""
        return np.diff(self.offsets).astype(np.int32)


def make_tokens(lengths: np.ndarray, second: np.ndarray, ids: np.ndarray) -> Tokens:
    """Tokens in memory, from int32 arrays; computes what the header of a file keeps."""
    body = [np.ascontiguousarray(part, np.int32) for part in (lengths, second, ids)]
    return Tokens(
        body[2], offsets_of(body[0]), body[1], cached=False,
        fingerprint=checksum(body).hex(), largest=int(ids.max(initial=-1)),
    )  # fmt: skip


def gathered(parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Tokens:
    """Tokens in memory, of parts that are (lengths, second, ids)."""
    columns = zip(*parts, strict=True)
    return make_tokens(*(np.concatenate(column) for column in columns))


def joined(parts: Sequence[Tokens]) -> Tokens:
    """The examples of some tokens, at least one, one after the other."""
    if len(parts) == 1:
        return parts[0]
    digest = hashlib.blake2b("".join(part.fingerprint for part in parts).encode(), digest_size=16)
    words = [part.words for part in parts if isinstance(part.words, np.ndarray)]
    return Tokens(
        Joined([part.ids for part in parts if isinstance(part.ids, np.ndarray)]),
        offsets_of(np.concatenate([part.lengths for part in parts])),
        np.concatenate([part.second for part in parts]),
        cached=all(part.cached for part in parts),
        fingerprint=digest.hexdigest(),
        largest=max(part.largest for part in parts),
        words=Joined(words) if words else None,
        cut=sum(part.cut for part in parts),
    )


def checksum(parts: Iterable[np.ndarray]) -> bytes:
    """Of the numbers as int32, whatever type they are stored in."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for start in range(0, len(part), _BLOCK):
            digest.update(np.ascontiguousarray(part[start : start + _BLOCK], np.int32).data)
    return digest.digest()
