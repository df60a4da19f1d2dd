"""Texts that are nearly the same: MinHash finds the candidates, their exact overlap decides.

Broder, "On the resemblance and containment of documents", 1997; locality-sensitive hashing by datasketch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxft.insight.duplicates import normalised
from jaxft.insight.extra import needed
from jaxft.insight.parts import Part

# Of single characters, so that a changed letter costs little, also in scripts without spaces.
_SHINGLE = 4
_RESEMBLE = 0.7  # share of all shingles of two texts that both have
_CANDIDATES = 0.55  # what the hashes look for: lower, since they only estimate
_PERMUTATIONS = 64
_MOST = 5_000  # characters of a text that are compared
# Of a text that resembles so many others (a form letter), further ones are not looked at.
_NEIGHBOURS = 50
_FEWEST = 20  # characters, below which one changed word is another text


def near_pairs(parts: Sequence[Part], unique: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """(earlier, later, resemblance) of texts that are nearly but not exactly the same.

    Args:
      unique: indices, over the rows of all parts one after the other, of the texts that are compared.

    Raises ValueError: the library is not installed.
    """
    datasketch = needed("datasketch")
    texts = [texts for part in parts for texts in part.texts]
    plain = {int(i): tuple(normalised(text)[:_MOST] for text in texts[i]) for i in unique}
    index = datasketch.MinHashLSH(threshold=_CANDIDATES, num_perm=_PERMUTATIONS)
    for key, row in plain.items():
        if sum(map(len, row)) < _FEWEST:
            continue
        digest = datasketch.MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
        digest.update_batch(_marked(row))
        earlier = sorted(index.query(digest))
        for other in earlier[:_NEIGHBOURS]:
            if (found := resemblance(row, plain[other])) >= _RESEMBLE:
                yield other, key, found
        index.insert(key, digest, check_duplication=False)


def resemblance(first: Sequence[str], second: Sequence[str]) -> float:
    """The least overlap (intersection over union of shingles) of the texts of two rows, column by column.

    Of two pairs that share one text, the other one decides.
    """
    return min(
        len(a & b) / max(len(a | b), 1)
        for a, b in zip(map(_shingles, first), map(_shingles, second), strict=True)
    )


def _shingles(text: str) -> set[str]:
    return {text[i : i + _SHINGLE] for i in range(max(1, len(text) - _SHINGLE + 1))}


def _marked(row: Sequence[str]) -> list[bytes]:
    """The shingles of all texts of a row, each with the number of its column."""
    return [f"{n}{shingle}".encode() for n, text in enumerate(row) for shingle in _shingles(text)]
