"""A digest of the contents of a split's images, to notice that they have been replaced."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxft.data.decode import check_file, reason

# A file up to this size is read whole; of a larger one evenly spaced pieces, among them its first and
# its last bytes. Images are compressed: an edit changes nearly every byte after it.
WHOLE = 64 * 1024
PIECES, PIECE = 8, 4 * 1024
# Threads wait for the disk or the network, not for a processor.
_THREADS, _BLOCK = 16, 256


def fingerprint(value: Callable[[int], Any], where: Callable[[int], str], count: int) -> str:
    """Hexadecimal digest of the images value(0), …, value(count - 1), in this order.

    Of a file its name (without folders), its size and its content: all of it up to 64 KiB, else
    eight pieces of 4 KiB at its beginning, at its end and evenly between; times do not count. Of
    bytes and arrays all of the content, with shape and type. So images that were replaced, renamed,
    added, removed or put in another order change it; an edit of a larger file that keeps its size
    and those pieces does not.

    value: given a position, a path, bytes, an array, a Pillow image, or a dict with 'bytes' or
      'path'. Called in several threads. where(position) names the image.

    Raises ValueError if images cannot be read: how many, and which is the first.
    """
    digest = hashlib.blake2b(f"{count} ".encode(), digest_size=16)
    failures = 0
    first = ""

    def block(start: int) -> list[bytes | str]:
        return [_one(value, where, i) for i in range(start, min(start + _BLOCK, count))]

    with ThreadPoolExecutor(_THREADS) as threads:
        for found in threads.map(block, range(0, count, _BLOCK)):
            for part in found:
                if isinstance(part, str):
                    failures += 1
                    first = first or part
                else:
                    digest.update(part)
    if failures:
        others = f"; so are {failures - 1:,} more of {count:,} images" if failures > 1 else ""
        raise ValueError(f"{first}{others}")
    return digest.hexdigest()


def _one(value: Callable[[int], Any], where: Callable[[int], str], position: int) -> bytes | str:
    """The digest of one image, or what is wrong with it."""
    try:
        return _digest(value(position))
    except (OSError, ValueError) as error:
        return f"{where(position)}: not a readable image ({reason(error)})"


def _digest(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str | Path):
        return _file(value)
    if isinstance(value, Image.Image):
        value = np.asarray(value.convert("RGBA") if value.mode == "P" else value)
    if isinstance(value, np.ndarray):
        head, content = f"{value.dtype.str} {value.shape}", np.ascontiguousarray(value).data
    elif isinstance(value, bytes):
        head, content = f"bytes {len(value)}", memoryview(value)
    else:
        raise ValueError(f"a {type(value).__name__} is not an image")
    digest = hashlib.blake2b(f"{head}\0".encode(), digest_size=16)
    digest.update(content)
    return digest.digest()


def _file(path: str | Path) -> bytes:
    size = check_file(path).st_size
    name = os.fsencode(os.path.basename(path))
    digest = hashlib.blake2b(b"%s\0%d\0" % (name, size), digest_size=16)
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if size <= WHOLE:
            digest.update(os.read(file, WHOLE))
        else:
            for number in range(PIECES):
                digest.update(os.pread(file, PIECE, (size - PIECE) * number // (PIECES - 1)))
    finally:
        os.close(file)
    return digest.digest()
