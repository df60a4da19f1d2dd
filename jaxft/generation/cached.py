"""The sequences of a native decoder, whose keys and values are kept."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxft.generation import programs
from jaxft.generation.sampling import Sampling
from jaxft.models.architecture import Architecture
from jaxft.models.tree import Params

_ROW = 512  # tokens of prompts that are read together, where the longest is not longer
_LEAST = 64  # lengths of rows are powers of two from here, those of caches multiples


class Kept:
    """See `decoding.Sequences`.

    Args:
        longest: tokens of the longest prompt.
    """

    def __init__(
        self,
        architecture: Architecture,
        params: Params,
        *,
        count: int,
        sampling: Sampling,
        most: int,
        ends: np.ndarray,
        dtype: jax.typing.DTypeLike,
        longest: int,
    ):
        self._count, self._row = count, max(_ROW, _power(longest))
        slots = -(-(longest + most) // _LEAST) * _LEAST
        structure = sampling.structure
        self._fixed = {
            "architecture": architecture,
            "structure": structure,
            "dtype": np.dtype(dtype),
        }
        self._params, self._most, self._ends = params, np.int32(most), ends
        self._numbers = sampling.numbers
        self._state = programs.first(architecture, count, slots, dtype, structure.penalty)

    def begin(
        self, free: Sequence[int], waiting: Sequence[tuple[int, Sequence[int]]]
    ) -> list[list[int]]:
        """As many as fit a row; the first token of each."""
        taken: list[tuple[int, Sequence[int]]] = []
        tokens = 0
        for number, prompt in waiting[: len(free)]:
            tokens += len(prompt)
            if tokens > self._row:
                break
            taken.append((number, prompt))
        row = _packed([prompt for _, prompt in taken], [n for n, _ in taken], free, self._count)
        self._state, first = programs.begin(
            self._params, self._state, row, self._numbers, **self._fixed
        )
        return [[int(token)] for token in np.asarray(first)[: len(taken)]]

    def go_on(self, live: np.ndarray) -> list[list[int]]:
        """Up to `programs.CHUNK` more tokens of each that is live."""
        self._state, tokens = programs.go_on(
            self._params, self._state, live, self._most, self._ends, self._numbers, **self._fixed
        )
        return [row[row >= 0].tolist() for row in np.asarray(tokens)]


def _packed(
    prompts: Sequence[Sequence[int]], numbers: Sequence[int], free: Sequence[int], count: int
) -> dict[str, np.ndarray]:
    """Prompts in one row, and [K] for each of at most `count`: whose it is, where it begins and ends."""
    length = _power(sum(map(len, prompts)))
    row = {
        name: np.zeros((1, length), np.int32) for name in ("input_ids", "segment_ids", "positions")
    }
    each = {
        name: np.zeros(count, np.int32) for name in ("sequences", "starts", "lengths", "prompts")
    }
    start = 0
    for n, prompt in enumerate(prompts):
        here = slice(start, start + len(prompt))
        row["input_ids"][0, here] = prompt
        row["segment_ids"][0, here] = n + 1
        row["positions"][0, here] = np.arange(len(prompt))
        each["sequences"][n], each["prompts"][n] = free[n], numbers[n]
        each["starts"][n], each["lengths"][n] = start, len(prompt)
        start = here.stop
    return {**row, **each, "count": np.asarray(len(prompts), np.int32)}


def _power(length: int) -> int:
    return max(_LEAST, 1 << (length - 1).bit_length())
