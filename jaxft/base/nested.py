"""Nested sections of values, as a config has them, and the dotted names of their fields."""

from __future__ import annotations

from typing import Any


def flatten(nested: Any) -> dict[str, Any]:
    """Values by dotted name; tuples, lists and None are values.

    >>> flatten({'task': 'x', 'optim': {'lr': 0.1, 'betas': (0.9, 0.99)}})
    {'task': 'x', 'optim.lr': 0.1, 'optim.betas': (0.9, 0.99)}

    Args:
      nested: what has `items()`: a mapping, or a ConfigDict, which is none.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if hasattr(value, "items"):
            flat |= {f"{key}.{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def as_tuples(value: Any) -> Any:
    """Lists, at any depth of lists and tuples, as tuples; anything else as it is."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value
