"""How parameters are cut over a mesh: by a family's rules over 'tensor', then over 'fsdp'.

The rules are those of Shoeybi et al., 2019, arXiv:1909.08053: columns of the layers that widen, rows of the
layer after them, so that a half block has one sum over devices; attention by whole heads; tables of
embeddings by rows of the vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from jaxft.models.tree import by_path

TENSOR, FSDP = "tensor", "fsdp"
# Cutting a small parameter costs a gather at each use and saves nothing: 2**16 elements = 256 KiB.
MIN_FSDP_SIZE = 2**16


class Cut(NamedTuple):
    """How the tensor axis cuts a parameter.

    Attributes:
        spec: with 'tensor' at the dimension that is cut.
        parts: pieces of that dimension which must stay whole, such as heads; 0: it has none.
    """

    spec: PartitionSpec
    parts: int = 0


Rules = tuple[tuple[str, Cut], ...]  # (path pattern, cut), the first that matches decides


def columns(layer: str, parts: int = 0) -> Rules:
    """Of linear layers whose path `layer` matches: their outputs."""
    return (
        (f"(?:{layer})/kernel", Cut(PartitionSpec(None, TENSOR), parts)),
        (f"(?:{layer})/bias", Cut(PartitionSpec(TENSOR), parts)),
    )


def rows(layer: str, parts: int = 0) -> Rules:
    """Of linear layers: their inputs. The bias is added after the sum over devices."""
    return ((f"(?:{layer})/kernel", Cut(PartitionSpec(TENSOR, None), parts)),)


def table(module: str) -> Rules:
    """Of embeddings and unembeddings: their rows."""
    return ((f"(?:{module})/embedding", Cut(PartitionSpec(TENSOR, None))),)


def encoder(heads: int) -> Rules:
    """Of a block with the attribute names that BERT and ViT share, and BERT's table."""
    return (
        *columns(r".*/layer/\d+/.*(query|key|value)", heads),
        *columns(r".*/layer/\d+/.*intermediate/dense"),
        *rows(r".*/layer/\d+/attention/output/dense", heads),
        *rows(r".*/layer/\d+/output/dense"),
        *table(r".*embeddings/word_embeddings|cls/predictions/decoder"),
    )


def param_specs(abstract: Any, rules: Sequence[tuple[str, Cut]], *, fsdp: int, tensor: int) -> Any:
    """How each parameter is cut: by its rule over 'tensor', then a free dimension over 'fsdp'.

    A function of shapes and sizes: no device is asked.

    Args:
        abstract: a tree of things with `.shape`.
        rules: what none matches is cut over fsdp alone.
        fsdp, tensor: sizes of the mesh; an axis of one device cuts nothing.

    Returns:
        A tree of PartitionSpec with one entry a dimension.
    """
    specs = [
        spec_of(path, leaf.shape, rules, fsdp=fsdp, tensor=tensor)
        for path, leaf in by_path(abstract).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(abstract), specs)


def left_whole(
    abstract: Any, rules: Sequence[tuple[str, Cut]], tensor: int
) -> dict[str, tuple[int, ...]]:
    """Paths of what has a rule and is not cut into `tensor`, and the numbers up to it that would cut it."""
    found = {}
    for path, leaf in by_path(abstract).items():
        cut = _rule(path, rules)
        if TENSOR not in cut.spec:
            continue
        size = leaf.shape[cut.spec.index(TENSOR)]
        if not _divides(tensor, size, cut.parts):
            found[path] = tuple(n for n in range(2, tensor) if _divides(n, size, cut.parts))
    return found


def _rule(path: str, rules: Sequence[tuple[str, Cut]]) -> Cut:
    matching = (cut for pattern, cut in rules if re.fullmatch(pattern, path))
    return next(matching, Cut(PartitionSpec()))


def _divides(tensor: int, size: int, parts: int) -> bool:
    return size % tensor == 0 and parts % tensor == 0


def spec_of(
    path: str,
    shape: tuple[int, ...],
    rules: Sequence[tuple[str, Cut]],
    *,
    fsdp: int,
    tensor: int,
) -> PartitionSpec:
    """The same of one: its rule, with fsdp on a free dimension that it divides, the largest."""
    cut = _rule(path, rules)
    axes = [*cut.spec, *[None] * (len(shape) - len(cut.spec))]
    for i, axis in enumerate(axes):
        if axis is not None and not _divides(tensor, shape[i], cut.parts):
            axes[i] = None  # e.g. 3 heads over 2 devices: kept whole
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % fsdp == 0]
    if fsdp > 1 and free and math.prod(shape) >= MIN_FSDP_SIZE:
        # A table by its columns: those of a few tokens are then sent, and not the table.
        looked_up = path.endswith("embedding") and free[-1] == len(shape) - 1
        axes[free[-1] if looked_up else max(free, key=lambda i: shape[i])] = FSDP
    return PartitionSpec(*(None if axis == TENSOR and tensor == 1 else axis for axis in axes))
