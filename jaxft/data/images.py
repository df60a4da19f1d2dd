"""The images of a split: decoded, resized and normalised as the checkpoint says, and augmented."""

from __future__ import annotations

import logging
import math
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxft.data.augment import Augment, Box, augmented
from jaxft.data.decode import decode, heard, reason
from jaxft.data.files import Source
from jaxft.data.fingerprint import fingerprint
from jaxft.data.labels import find_column
from jaxft.data.preprocess import Preprocess

__all__ = ["Augment", "Images", "Preprocess", "decode", "find_image_column"]

_log = logging.getLogger(__name__)

# JPEGs are decoded at a half, a quarter or an eighth of their size while both sides keep this many
# times the model's size, so only where the shorter one is at least six times as large: images of
# usual size are those of transformers to the last bit. Measured on photographs (bilinear and
# bicubic): 12 megapixels for 224 x 224 are read 2.7 times as fast, 99 % of the values within 1 of
# 255, the mean difference 0.14; 640 x 427 for 48 x 48, 99 % within 6 and the mean 0.8, nearly all
# of it in colour, which such a file keeps at half the resolution.
_REDUCED = 3

IMAGE_COLUMNS = (
    "image", "img", "picture", "pixels", "file", "path", "file_name", "filename", "image_path",
)  # fmt: skip


def find_image_column(source: Source, given: str = "") -> str:
    """The image column: as given, or one with a usual name."""
    return find_column(source, given, IMAGE_COLUMNS, "image", option="text")


class Images:
    """The images of some rows of a source, decoded when first used and kept while they fit.

    keep_bytes: memory for decoded images (uint8; at the model's size, or their own size if they
    are augmented); beyond it images are decoded again each time.
    """

    def __init__(
        self,
        source: Source,
        rows: np.ndarray,
        column: str,
        preprocess: Preprocess,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        keep_bytes: int = 1 << 30,
    ):
        self.source, self.rows, self.column = source, rows, column
        self.preprocess, self.augment, self.seed = preprocess, augment or Augment(), seed
        self._kept: dict[int, np.ndarray] = {}
        self._room = keep_bytes
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.preprocess.height, self.preprocess.width, self.preprocess.channels

    def fingerprint(self) -> str:
        """Of the contents of all images, in their order; see `fingerprint.fingerprint`."""
        return fingerprint(self._value, self.where, len(self))

    def where(self, position: int) -> str:
        """The image as a user finds it: its file, or the row of its source."""
        value = self._value(position)
        if isinstance(value, dict):
            value = None if value.get("bytes") else value.get("path")
        if not isinstance(value, str | Path) or not str(value):
            return self.source.where(int(self.rows[position]))
        return str(value) if str(value).isprintable() else repr(str(value))

    def _value(self, position: int) -> Any:
        return self.source[int(self.rows[position])][self.column]

    def pixels(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Normalised images [n, height, width, channels] float32.

        The random changes depend on (seed, epoch, row in the source) and on nothing else.
        Raises ValueError naming the file or row that cannot be decoded.
        """
        if not len(positions):
            return self.preprocess.normalise(np.zeros((0, *self.shape), np.uint8))
        images, erased = zip(*(self._one(int(p), epoch) for p in positions), strict=True)
        pixels = self.preprocess.normalise(np.stack(images))
        for image, box in zip(pixels, erased, strict=True):
            if box is not None:
                left, top, right, bottom = box
                image[top:bottom, left:right] = 0
        return pixels

    def _one(self, position: int, epoch: int) -> tuple[np.ndarray, Box | None]:
        """[height, width, channels] uint8, and what of it is erased once it is normalised."""
        pixels = self._kept.get(position)
        if pixels is None:
            pixels = self._read(position)
            with self._lock:  # batches are made in several threads
                if position not in self._kept and self._room >= pixels.nbytes:
                    self._room -= pixels.nbytes
                    self._kept[position] = pixels
        if not self.augment:
            return pixels, None
        generator = np.random.default_rng([self.seed, epoch, int(self.rows[position])])
        size = (self.preprocess.width, self.preprocess.height)
        return augmented(
            pixels, self.augment, size, self.preprocess.resample, self._fill(), generator
        )

    def _fill(self) -> tuple[int, ...]:
        """What becomes 0 when it is normalised, or nearly: the mean, in 8 bits."""
        p = self.preprocess
        means = p.mean * p.channels if len(p.mean) == 1 else p.mean
        return tuple(int(min(max(round(mean / p.rescale), 0), 255)) for mean in means)

    def _read(self, position: int) -> np.ndarray:
        with heard() as messages:
            try:
                value, channels = self._value(position), self.preprocess.channels
                image = decode(value, channels, at_least=self._least_side())
            except MemoryError:
                raise
            # Decoders of damaged files raise what they stumble on: struct.error, IndexError, …
            except Exception as error:
                place = self.where(position)
                raise ValueError(f"{place}: not a readable image ({reason(error)})") from None
            if self.augment.crop_scale is None:
                image = self._resized(image, position)
        for message in messages:
            self._warn(position, message)
        return _array(image)

    def _least_side(self) -> int:
        """How small a JPEG may be decoded: so that hardly a pixel changes, see `_REDUCED`."""
        if not self.preprocess.do_resize or self.preprocess.resample == Image.Resampling.NEAREST:
            return 0  # of nearest neighbours every pixel is one of the original
        size = self.preprocess.cover or (self.preprocess.height, self.preprocess.width)
        shown = self.preprocess.shortest_edge or max(size)
        least = float(_REDUCED) * shown
        if self.augment.crop_scale is not None:  # the smallest crop must have as many pixels
            narrowest = min(self.augment.crop_ratio[0], 1 / self.augment.crop_ratio[1], 1.0)
            least /= math.sqrt(self.augment.crop_scale[0] * narrowest)
        return math.ceil(least)

    def _warn(self, position: int, message: str) -> None:
        """Once for each kind of message: of a hundred thousand images many may have the same."""
        kind = re.sub(r"\d+", "#", message)
        with self._lock:
            if kind in self._said:
                return
            self._said.add(kind)
        _log.warning(
            "%s: %s (further images with this are not named)", self.where(position), message
        )

    def _resized(self, image: Image.Image, position: int) -> Image.Image:
        size, edge = (self.preprocess.width, self.preprocess.height), self.preprocess.shortest_edge
        if edge is not None:
            return _middle(image, edge, size, self.preprocess.resample)
        if self.preprocess.cover is not None:
            return _covering(image, self.preprocess.cover, size, self.preprocess.resample)
        if image.size == size:
            return image
        if not self.preprocess.do_resize:
            raise ValueError(
                f"{self.where(position)}: the image is {image.size[0]} x {image.size[1]}, the model takes "
                f"{size[0]} x {size[1]}, and the checkpoint says not to resize"
            )
        return image.resize(size, self.preprocess.resample)


def _middle(
    image: Image.Image, edge: int, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """The middle of `size` (width, height), after the shorter side has become `edge`."""
    short = min(image.size)
    width, height = (edge if side == short else int(edge * side / short) for side in image.size)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    resized = image.resize((width, height), resample)
    return resized.crop((left, top, left + size[0], top + size[1]))


def _covering(
    image: Image.Image,
    cover: tuple[int, int],
    size: tuple[int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """The middle of `size` (width, height), after the image just covers `cover` (height, width).

    With torchvision's rounding, and for a `cover` that is no square timm's.
    """
    if cover[0] == cover[1]:
        short = min(image.size)
        sides = [cover[0] if side == short else int(cover[0] * side / short) for side in image.size]
    else:
        ratio = min(image.size[0] / cover[1], image.size[1] / cover[0])
        sides = [round(side / ratio) for side in image.size]
    left, top = (round((side - kept) / 2) for side, kept in zip(sides, size, strict=True))
    resized = image.resize((sides[0], sides[1]), resample)
    return resized.crop((left, top, left + size[0], top + size[1]))


def _array(image: Image.Image) -> np.ndarray:
    """[H, W, C] uint8."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
