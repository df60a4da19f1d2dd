"""Which tensors an export has, under which names and dtypes, and where each comes from."""

import functools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from jaxft.models.checkpoint import tensors
from jaxft.models.checkpoint.names import match
from jaxft.models.contract import Architecture
from jaxft.models.tree import Params, by_path


def to_write(
    architecture: Architecture,
    params: Params,
    source: str | None,
    unchanged: Collection[str],
    *,
    dtype: str,
    fetch: Callable[[Any], Any],
) -> dict[str, tensors.Pending]:
    """What is to be written, by name; of tensors nothing is read, fetched or converted yet.

    Args:
        params, source, unchanged, dtype, fetch: as of `hf.write_checkpoint`. What is copied from `source` is
            never fetched.

    Raises:
        ValueError: `source` has not the tensors of `architecture`.
    """
    kept, leaves = copied(architecture, source, unchanged, dtype), by_path(architecture.whole)
    pending = {}
    for path, given in by_path(params).items():
        stored, leaf = architecture.stored[path], leaves[path]
        if path in kept:
            name, entry = kept[path]
            read = functools.partial(tensors.read, entry, name)
            pending[stored.name] = tensors.Pending(entry.shape, entry.dtype, read)
        else:
            pending[stored.name] = tensors.Pending(
                stored.reordered(leaf.shape),
                "I64" if _counts(leaf) else dtype or "F32",
                functools.partial(_fetched, fetch, given, stored.axes),
                functools.partial(fetch, given),
            )
    return pending


def copied(
    architecture: Architecture, source: str | None, unchanged: Collection[str], dtype: str
) -> dict[str, tuple[str, tensors.Entry]]:
    """Of the `unchanged` paths those whose tensors are copied from `source`: (name, where) there."""
    same = frozenset(unchanged) - architecture.grown.keys()
    if not source or not same:
        return {}
    leaves = by_path(architecture.whole)
    return {
        path: (name, entry)
        for path, (name, entry) in match(source, architecture).sources.items()
        if path in same and (dtype in ("", entry.dtype) or _counts(leaves[path]))
    }


def _counts(leaf: Any) -> bool:
    """Whether it holds whole numbers."""
    return np.issubdtype(leaf.dtype, np.integer)


def _fetched(fetch: Callable[[Any], Any], given: Any, axes: tuple[int, ...]) -> np.ndarray:
    """As the file has it, but for the dtype; where the axes are others, a view."""
    return np.asarray(fetch(given)).transpose(np.argsort(axes).astype(int))
