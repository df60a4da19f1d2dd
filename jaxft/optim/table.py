"""A plain-text table of every parameter and what was decided for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxft.optim.paths import Tree, align, by_path


def summary(params: Tree, columns: Mapping[str, Tree]) -> str:
    """One line a parameter: path, shape, size, and the value of each column at that path.

    >>> import jax.numpy as jnp
    >>> params = {'body': {'kernel': jnp.ones((2, 3))}, 'head': {'bias': jnp.ones(3)}}
    >>> print(summary(params, {'lr scale': {'body': {'kernel': 0.25}, 'head': {'bias': 1.0}}}))
    path         shape  size  lr scale
    body/kernel  2x3       6      0.25
    head/bias    3         3         1
    total                  9

    Args:
      params: arrays or `jax.ShapeDtypeStruct`.
      columns: header to values at the paths of `params`.

    Raises:
      ValueError: a column has no value for a parameter.
    """
    values = [by_path(align(column, params)) for column in columns.values()]
    rows = [("path", "shape", "size", *columns)]
    total = 0
    for path, leaf in by_path(params).items():
        size = math.prod(leaf.shape)
        total += size
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append((path, shape, f"{size:,}", *(_text(column[path]) for column in values)))
    rows.append(("total", "", f"{total:,}", *("" for _ in columns)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    # Names to the left, numbers to the right.
    cells = [
        text.ljust(width) if i < 2 else text.rjust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
