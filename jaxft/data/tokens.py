"""`Tokens`: the token ids of the texts of a split, in memory or in mapped files."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxft.data import packing
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
class Answers:
    """The texts that a model is to give for others.

    tokens: an entry for each of the others', its end included.
    start: the token that the model reads before the first.
    ratio: tokens that a row has for these, for each one that it has for the others.
    longest: where they are cut.
    """

    tokens: Tokens
    start: int
    ratio: float
    longest: int

    def row_length(self, length: int) -> int:
        """Of the row for these beside one of `length` tokens for the others."""
        return packing.row_length(math.ceil(length * self.ratio))


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, one after the other.

    ids [total] uint16 or int32: the tokens of entry j are ids[offsets[j]:offsets[j + 1]]. An entry is an
      example or, where `windows` is given, a part of one that is a row of its own to the model.
    offsets [n + 1] int64.
    second [n] int32: where in entry j token type 1 begins (its length if it never does); [n, G] of
      each of its G texts, where `parts` is given.
    cached: read from the disk rather than made now.
    fingerprint: of all of the above, in hexadecimal; from the header where it is cached.
    largest: the largest id, -1 of no tokens.
    extra: by name, what else is known of each token: [total] int32, at least -1. 'words' is the number
      in its example of the word that a token begins, -1 for one that begins none (words.py).
    cut: words, or other things, that were left out because their example is too long.
    cut_things: what they are.
    parts [n, G] int32: lengths of the G texts that an entry is made of, which do not see each other;
      None: it is one text.
    even: each of the G texts begins at a multiple of a G-th of the row, for models that read it alone.
    windows [e + 1] int64: the entries of example i are windows[i]..windows[i + 1]; None: one each.
    answers: the texts to be given for these, which lie in rows of their own; None: there are none.
    """

    ids: np.ndarray | Joined
    offsets: np.ndarray
    second: np.ndarray
    cached: bool
    fingerprint: str = ""
    largest: int = -1
    extra: Mapping[str, np.ndarray | Joined] = dataclasses.field(default_factory=dict)
    cut: int = 0
    cut_things: str = "words"
    parts: np.ndarray | None = None
    even: bool = False
    windows: np.ndarray | None = None
    answers: Answers | None = None

    def __len__(self) -> int:
        return len(self.second)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each entry, special tokens included: [n] int32."""
        return np.diff(self.offsets).astype(np.int32)

    @property
    def room(self) -> np.ndarray:
        """Tokens of a row that each entry takes, where its answer lies in the row beside it, or its texts are
        `even`: [n] int32."""
        if self.even and self.parts is not None:
            return self.texts * self.parts.max(1)
        if self.answers is None:
            return self.lengths
        beside = np.ceil(self.answers.tokens.lengths / self.answers.ratio)
        return np.maximum(self.lengths, beside).astype(np.int32)

    def shaped_like(self, other: Tokens) -> Tokens:
        """The same, in rows that are as long for answers as those of `other` are."""
        if self.answers is None or other.answers is None:
            return self
        answers = dataclasses.replace(self.answers, ratio=other.answers.ratio)
        return dataclasses.replace(self, answers=answers)

    @property
    def texts(self) -> int:
        """G, the texts of an entry."""
        return 1 if self.parts is None else self.parts.shape[1]

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self) if self.windows is None else len(self.windows) - 1

    def example_of(self, entries: np.ndarray) -> np.ndarray:
        """Which example each of some entries is of."""
        if self.windows is None:
            return entries
        return np.searchsorted(self.windows, entries, side="right") - 1


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
    return Tokens(
        Joined([part.ids for part in parts if isinstance(part.ids, np.ndarray)]),
        offsets_of(np.concatenate([part.lengths for part in parts])),
        np.concatenate([part.second for part in parts]),
        cached=all(part.cached for part in parts),
        fingerprint=digest.hexdigest(),
        largest=max(part.largest for part in parts),
        extra={
            name: Joined(
                [array for part in parts if isinstance(array := part.extra[name], np.ndarray)]
            )
            for name in parts[0].extra
        },
        cut=sum(part.cut for part in parts),
        cut_things=parts[0].cut_things,
    )


def grouped(tokens: Tokens, texts: int) -> Tokens:
    """Each `texts` entries as one, whose texts they are: [n * G] -> [n]."""
    return dataclasses.replace(
        tokens,
        offsets=tokens.offsets[::texts],
        second=tokens.second.reshape(-1, texts),
        parts=tokens.lengths.reshape(-1, texts),
    )


def windowed(tokens: Tokens, begins: str) -> Tokens:
    """Each example's entries, which lie in it one after the other, as entries of their own.

    begins: name in `extra` of what is 0 at the first token of each, and -1 at the others. Every example
      has one entry at least. `second` of an example is where type 1 begins in each of its entries.
    """
    marks = tokens.extra[begins]
    first = np.flatnonzero(marks[np.arange(len(marks))] == 0)
    offsets = np.append(first, tokens.offsets[-1])
    windows = np.searchsorted(offsets, tokens.offsets)
    return dataclasses.replace(
        tokens,
        offsets=offsets,
        # Where the example's own lies in each of them; it may lie behind all tokens of a short one.
        second=np.minimum(np.repeat(tokens.second, np.diff(windows)), np.diff(offsets)),
        extra={name: array for name, array in tokens.extra.items() if name != begins},
        windows=windows,
    )


def checksum(parts: Iterable[np.ndarray]) -> bytes:
    """Of the numbers as int32, whatever type they are stored in."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for start in range(0, len(part), _BLOCK):
            digest.update(np.ascontiguousarray(part[start : start + _BLOCK], np.int32).data)
    return digest.digest()
