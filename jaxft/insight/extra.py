"""Libraries of the extra `jaxft[check]`, imported when a check needs them."""

from __future__ import annotations

import importlib
from typing import Any


def needed(name: str) -> Any:
    """The module.

    Raises ValueError: it is not installed; in one line how to.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ValueError(
            f"check_data needs {package}, which is not installed: pip install 'jaxft[check]'"
        ) from None
