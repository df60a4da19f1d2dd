"""Libraries of the extra `jaxft[sweep]`, imported when a sweep needs them."""

from __future__ import annotations

import importlib


def needed(name: str) -> None:
    """Raises ValueError: the library is not installed; in one line how to."""
    try:
        importlib.import_module(name)
    except ImportError:
        raise ValueError(
            f"sweep needs {name}, which is not installed: pip install 'jaxft[sweep]'"
        ) from None
