"""A file that is there whole, or not at all, however its writer ends."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """What is written within the block lies beside its place, and is renamed after it.

    After a failure nothing is left. Several processes may write the same. The folder is made.

    Raises OSError naming the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Before the first dot is the digest: data/token_cache.py removes leftovers of such names.
    prefix = f"{path.name.split('.')[0]}."
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write, unlike an open, does not say of what
        raise
