"""Files that are made once and kept: what was unpacked or downloaded, in a folder under a hash.

A file appears by a rename, when it is whole, so that a kill leaves none that is cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

# Room on the disk that is left to others, and how often it is looked at.
_SPARE, _LOOK = 1 << 26, 1 << 26


def kept_folder(cache: str | None) -> Path:
    """Where such files are kept: in the folder of the run, else in the user's own cache."""
    if cache is not None:
        return Path(cache).expanduser() / "files"
    own = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own).expanduser() / "jaxft" / "files"


def place_of(folder: Path, key: Sequence[str], name: str) -> Path:
    """Where the file made of what `key` says is kept. Its name stays, since messages say it."""
    digest = hashlib.blake2b("\0".join(key).encode(), digest_size=16)
    return folder / digest.hexdigest() / name


def keep(path: Path, blocks: Iterable[bytes], what: str) -> None:
    """Writes a file of these blocks; after a failure nothing is left of it.

    what: for messages: 'unpacking train.csv.gz'.

    Raises ValueError: the disk has too little room; OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
    written = looked = 0
    try:
        with os.fdopen(handle, "wb") as file:
            for block in blocks:
                if written + len(block) > looked:
                    looked = written + len(block) + _LOOK
                    check_room(path.parent, len(block) + _LOOK, written, what)
                file.write(block)
                written += len(block)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # where there is nothing else
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def check_room(folder: Path, wanted: int, written: int, what: str) -> None:
    """ValueError if the disk of `folder` has no room for `wanted` bytes more; `written` are there by now."""
    free = shutil.disk_usage(folder).free
    if free < wanted + _SPARE:
        raise ValueError(
            f"{what} needs more room than {str(folder)!r} has: {free / 1e6:,.0f} MB are left after "
            f"{written / 1e6:,.0f} MB; name another place by config.data.cache"
        )
