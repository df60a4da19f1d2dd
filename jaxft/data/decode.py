"""One image, from a file, bytes or an array: upright, of 1 or 3 channels, in 8 bits.

Files may come from anyone: only regular files in raster formats that Pillow decodes itself are
opened, and Pillow's warnings are collected instead of printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# Left to itself Pillow would try all it knows, among them PostScript, for which it starts the
# program `gs`, whatever the file's name ends in.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_ORIENTATION = 0x0112  # EXIF


def decode(value: Any, channels: int, *, at_least: int = 0) -> Image.Image:
    """A path, encoded bytes, a Pillow image or a uint8 array -> an image of 1 or 3 channels.

    Turned upright by its EXIF orientation; transparency is laid over white, as transformers does;
    16 bits are scaled to 8; of an animation the first picture.
    at_least: pixels that both sides of a JPEG keep if it is decoded at a half, a quarter or an
      eighth of its size, which is faster; 0: it never is.

    Raises ValueError, OSError and what else Pillow raises on a file that is damaged.
    """
    if isinstance(value, dict):  # undecoded images of Hugging Face Parquet files
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | str | Path):
        with _open(value) as image:
            if at_least and image.format == "JPEG":
                image.draft(None, (at_least, at_least))
            return _converted(image, channels)
    if isinstance(value, np.ndarray):
        return _converted(from_array(value), channels)
    if not isinstance(value, Image.Image):
        raise ValueError(f"a {type(value).__name__} is not an image")
    if value.format not in (None, "MPO", *FORMATS):
        raise ValueError(f"{value.format} is not one of {', '.join(FORMATS)}")
    return _converted(value, channels)


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if not all(image.size):
        raise ValueError("it has no pixels")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(image))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def check_file(path: str | Path) -> os.stat_result:
    """Its status; ValueError for what is no regular file: a named pipe would be waited for."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    return status


def reason(error: Exception) -> str:
    """The error in a few words, on one line, without the path that the caller names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:300] or type(error).__name__


def from_array(array: np.ndarray) -> Image.Image:
    """uint8 [H, W] or [H, W, 1, 3 or 4]."""
    if array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 (0..255), got {array.dtype}")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[-1] not in (3, 4)):
        raise ValueError(f"an image array must be [H, W] or [H, W, 1, 3 or 4], got {array.shape}")
    return Image.fromarray(array)


def _open(value: bytes | str | Path) -> Image.Image:
    if not isinstance(value, bytes):
        check_file(value)
    try:
        return Image.open(io.BytesIO(value) if isinstance(value, bytes) else value, formats=FORMATS)
    except Image.UnidentifiedImageError:  # its message names an object in memory
        raise ValueError(f"it is none of {', '.join(FORMATS)}, or damaged") from None


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Pillow itself would clip 16-bit values at 255, which leaves an almost white image."""
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if image.mode == "F" or low < 0 or high > 65535:
        raise ValueError(
            f"its pixels are {pixels.dtype} from {low} to {high}, whose black and white are "
            "unknown; save it with 8 or 16 bits"
        )
    return (pixels / 257).astype(np.uint8)


# Warnings


class _Heard(threading.local):
    """What Pillow said in this thread; None outside of `heard`."""

    messages: list[str] | None = None


_heard, _lock, _listeners = _Heard(), threading.Lock(), 0
_show: Any = None


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collects the warnings of this thread, without printing them.

    `warnings.catch_warnings` is of the whole process: images are decoded in several threads, and
    a warning would be taken for one of another file. Warnings of other threads are shown as ever.
    """
    global _listeners, _show
    with _lock:
        if warnings.showwarning is not _listen:
            _show, warnings.showwarning = warnings.showwarning, _listen
        _listeners += 1
    messages: list[str] = []
    _heard.messages = messages
    try:
        yield messages
    finally:
        _heard.messages = None
        with _lock:
            _listeners -= 1
            if _listeners == 0 and warnings.showwarning is _listen:
                warnings.showwarning = _show


def _listen(message: Warning | str, *args: Any, **options: Any) -> None:
    if _heard.messages is None:
        _show(message, *args, **options)
    else:
        _heard.messages.append(" ".join(str(message).split()))
