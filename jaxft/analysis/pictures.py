"""Small pictures that live inside a text file: data URIs, for predictions and for the report."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

_PREFIX = "data:image/png;base64,"
_TINY = (
    32  # pixels; as PNG below 3 kB, so that ten thousand of them do not burden predictions/*.jsonl
)
_THUMBNAIL = 144  # pixels of the longer side
# Only these are opened, as where images are trained on (data/decode.py): left to itself Pillow would
# start the program `gs` for a file of PostScript, whatever the file's name ends in.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def inline(pixels: np.ndarray) -> str:
    """A data URI of an image that has no file of its own; '' if it is larger than 32 pixels.

    Args:
      pixels: [H, W], [H, W, 1] or [H, W, 3], uint8.
    """
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    if max(pixels.shape[:2]) > _TINY or pixels.dtype != np.uint8:
        return ""
    return _uri(Image.fromarray(pixels))


def thumbnail(source: str) -> tuple[str, bool] | None:
    """Data URI of a small version of an image, and whether the original is tiny.

    Args:
      source: an image file, or a data URI as `inline` gives it.

    Returns:
      None when it cannot be read. The picture is always decoded and encoded again: nothing of the
      source's bytes gets into the page.
    """
    try:
        if source.startswith(_PREFIX):
            file: Path | io.BytesIO = io.BytesIO(base64.b64decode(source.removeprefix(_PREFIX)))
        elif source and Path(source).is_file():
            file = Path(source)
        else:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said where the image is trained on
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                tiny = max(image.size) <= _TINY
                image.thumbnail((_THUMBNAIL, _THUMBNAIL))
                return _uri(image.convert("RGB")), tiny
    except Exception:  # whatever a broken or hostile file raises in a decoder: it has no thumbnail
        return None


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _PREFIX + base64.b64encode(buffer.getvalue()).decode()
