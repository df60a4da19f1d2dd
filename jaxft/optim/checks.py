"""Checks of numbers that may not be known yet.

Every numeric hyperparameter of `jaxft.optim` may be an array that a compiled program receives: under
`jit`, `vmap` over trials, or `optax.inject_hyperparams`. Its value is unknown while the program is
traced, and a comparison would raise; so a check of a value runs where the value is known.
"""

from __future__ import annotations

from typing import Any

import jax

Scalar = float | jax.Array  # a number, or a traced or concrete array without dimensions


def known(*values: Any) -> bool:
    """Whether none of the values is traced: only then can they be compared in Python.

    >>> known(0.5, None), jax.jit(lambda x: int(known(x)))(0.5).item()
    (True, 0)
    """
    return not any(isinstance(value, jax.core.Tracer) for value in values)
