"""A float32 array that takes a pass over the data to make, kept beside the tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxft.base.whole_file import whole_file


def kept_array(path: Path | None, rows: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What is in `path`, else what `make` gives, which is written there.

    Args:
      path: named by all that the array is a function of; None: it is made, and not kept.
      rows: its length; a file of another one, or without an end, is made again.
      make: gives the array, float32. All processes call it, or none does.
    """
    found = _read(path, rows)
    if not _everywhere(found is not None) or found is None:
        found = make()
        _write(path, found)
    return found


def _everywhere(here: bool) -> bool:
    """Whether it is so in every process."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).all())


def _read(path: Path | None, rows: int) -> np.ndarray | None:
    """None where it is missing or damaged."""
    try:
        found = None if path is None else np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if found is None or found.dtype != np.float32 or not found.ndim or len(found) != rows:
        return None
    return found


def _write(path: Path | None, found: np.ndarray) -> None:
    """The file is there whole, or not at all; several processes may write the same."""
    if path is None:
        return
    with whole_file(path) as file:
        np.save(file, found, allow_pickle=False)
