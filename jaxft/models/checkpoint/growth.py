"""Tables of a checkpoint with rows for more tokens than it has, as a tokenizer has that was added to."""

import math
import zlib
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models.checkpoint import tensors
from jaxft.models.checkpoint.names import match
from jaxft.models.contract import Architecture
from jaxft.models.tree import Params, by_path

_BLOCK = 256  # new rows at a time: their weights are [_BLOCK, old rows]


def read_grown(
    directory: str,
    architecture: Architecture,
    key: jax.Array,
    shardings: Params | None = None,
    leave: Collection[str] = (),
) -> dict[str, jax.Array]:
    """The leaves of `architecture.grown` that the checkpoint has: its rows, and after them new ones.

    Rows lie along the axis that is longer. New ones are computed on the host, so on any number of devices
    they are the same.

    Args:
        key, shardings: as of `hf.read_params`; each table has draws of its own.
        leave: paths that are not wanted.

    Raises:
        ValueError: as `hf.read_params`.
    """
    if not architecture.grown:
        return {}
    sources, leaves = match(directory, architecture).sources, by_path(architecture.whole)
    places = dict.fromkeys(leaves) if shardings is None else by_path(shardings)
    found = {}
    # A head that the checkpoint lacks is initialised as a whole.
    for path in (p for p in architecture.grown if p in sources and p not in leave):
        (name, entry), leaf, place = sources[path], leaves[path], places[path]
        old = tensors.read(entry, name).transpose(architecture.stored[path].axes)
        axis = next(i for i, size in enumerate(old.shape) if size != leaf.shape[i])
        seed = [*jax.random.key_data(key).tolist(), zlib.crc32(path.encode())]
        rows = np.moveaxis(old.astype(leaf.dtype), axis, 0)
        if path in architecture.statistics:  # never trained: as transformers has it, zeros
            table = np.zeros((leaf.shape[axis], *rows.shape[1:]), leaf.dtype)
            table[: len(rows)] = rows
        else:
            table = grow(rows, leaf.shape[axis], np.random.default_rng(seed))
        table = np.moveaxis(table, 0, axis)
        found[path] = (
            jnp.asarray(table)
            if place is None
            else jax.make_array_from_callback(leaf.shape, place, table.__getitem__)
        )
    return found


def grow(old: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """`old` [V, ...] fp32 with rows after its own, up to [rows, ...].

    They are drawn from the normal distribution with the mean and the covariance of the old ones
    (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"), so that new tokens
    take little probability from the old ones at first. Sums of the centred old rows, with independent weights
    of variance 1 / V, have that covariance, be it singular or not, and no [D, D] matrix is factored.
    """
    count = len(old)
    mean = old.mean(0, dtype=np.float64).astype(old.dtype)
    centred = (old - mean).reshape(count, -1)
    table = np.empty((rows, *old.shape[1:]), old.dtype)
    table[:count] = old
    for start in range(count, rows, _BLOCK):
        part = table[start : start + _BLOCK]
        weights = rng.standard_normal((len(part), count), np.float32) / math.sqrt(count)
        part[...] = mean + (weights @ centred).reshape(part.shape)
    return table
