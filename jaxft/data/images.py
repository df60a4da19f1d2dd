"""Images: decode, resize and normalise as the checkpoint's image processor does, and augment.

The processor is transformers' ViT one (its Pillow form); what it cannot do is refused here.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxft.data.files import Source
from jaxft.data.labels import find_column

IMAGE_COLUMNS = ("image", "img", "picture", "pixels", "file", "path")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes an array [height, width, channels]; fields as in the processor."""

    height: int
    width: int
    channels: int
    do_resize: bool = True
    resample: Image.Resampling = Image.Resampling.BILINEAR
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @classmethod
    def from_checkpoint(cls, directory: str, *, image_size: Any, channels: int) -> Preprocess:
        """Reads preprocessor_config.json; without one: resize to image_size, mean and std 0.5.

        image_size, channels: what the model takes; image_size is an integer or (height, width).
        Raises ValueError if the processor does something else than resize, rescale, normalise, or
        gives images of another size than the model takes.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        file = Path(directory) / "preprocessor_config.json"
        if not file.exists():
            return cls(height, width, channels)
        try:
            raw = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not readable JSON ({error})") from None
        size = raw.pop("size", {"height": 224, "width": 224})
        if isinstance(size, int):
            size = {"height": size, "width": size}
        do_resize = raw.pop("do_resize", True)
        if do_resize and size != {"height": height, "width": width}:
            raise ValueError(
                f"{file}: images are resized to {size}, but the model takes {height} x {width}"
            )
        rescale = raw.pop("rescale_factor", 1 / 255)
        rescale = rescale if raw.pop("do_rescale", True) else 1.0
        mean, std = raw.pop("image_mean", [0.5] * 3), raw.pop("image_std", [0.5] * 3)
        if not raw.pop("do_normalize", True):
            mean, std = [0.0] * channels, [1.0] * channels
        resample = Image.Resampling(raw.pop("resample", Image.Resampling.BILINEAR))
        other = [k for k in raw if k.startswith("do_") and raw[k] and k != "do_convert_rgb"]
        if other:
            raise ValueError(f"{file}: {', '.join(other)} is not supported")
        return cls(
            height,
            width,
            channels,
            do_resize,
            resample,
            rescale,
            _per_channel(mean, channels, f"{file}: image_mean"),
            _per_channel(std, channels, f"{file}: image_std"),
        )

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., channels] -> float32."""
        # In this order, and in float64 before the first rounding, as transformers does it.
        scaled = (pixels.astype(np.float64) * self.rescale).astype(np.float32)
        return (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def _per_channel(values: Any, channels: int, what: str) -> tuple[float, ...]:
    values = tuple(values) if isinstance(values, list | tuple) else (values,)
    if len(values) == channels:
        return values
    if len(set(values)) == 1:
        return values[:1] * channels
    raise ValueError(f"{what} has {len(values)} values; the model takes {channels} channels")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of training images.

    crop_scale: the area of a random crop as a share of the image, (least, most), or None: no crop.
    crop_ratio: its width / height, (least, most), uniform in the logarithm.
    flip: mirror left and right, every second time.
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def __bool__(self) -> bool:
        return self.crop_scale is not None or self.flip


def find_image_column(source: Source, given: str = "") -> str:
    """The image column: as given, or one with a usual name."""
    return find_column(source, given, IMAGE_COLUMNS, "image", option="text")


def decode(value: Any, channels: int) -> Image.Image:
    """A path, encoded bytes, a Pillow image or a uint8 array -> an image of 1 or 3 channels.

    Turned upright by its EXIF orientation; transparency is laid over white.
    """
    if isinstance(value, dict):  # undecoded images of Hugging Face Parquet files
        value = value.get("bytes") or value.get("path")
    if isinstance(value, np.ndarray):
        image = _from_array(value)
    elif isinstance(value, Image.Image):
        image = value
    elif isinstance(value, bytes | str | Path):
        image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
    else:
        raise ValueError(f"a {type(value).__name__} is not an image")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow would clip 16-bit values at 255, which leaves an almost white image.
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 (0..255), got {array.dtype}")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[-1] not in (3, 4)):
        raise ValueError(f"an image array must be [H, W] or [H, W, 1, 3 or 4], got {array.shape}")
    return Image.fromarray(array)


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

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.preprocess.height, self.preprocess.width, self.preprocess.channels

    def pixels(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Normalised images [n, height, width, channels] float32.

        The random changes depend on (seed, epoch, row in the source) and on nothing else.
        Raises ValueError naming the file or row that cannot be decoded.
        """
        images = [self._one(int(position), epoch) for position in positions]
        return self.preprocess.normalise(np.stack(images) if images else self._none())

    def _none(self) -> np.ndarray:
        return np.zeros((0, *self.shape), np.uint8)

    def _one(self, position: int, epoch: int) -> np.ndarray:
        pixels = self._kept.get(position)
        if pixels is None:
            pixels = self._read(position)
            with self._lock:  # batches are made in several threads
                if position not in self._kept and self._room >= pixels.nbytes:
                    self._room -= pixels.nbytes
                    self._kept[position] = pixels
        if self.augment:
            generator = np.random.default_rng([self.seed, epoch, int(self.rows[position])])
            pixels = self._augmented(pixels, generator)
        return pixels

    def _read(self, position: int) -> np.ndarray:
        row = int(self.rows[position])
        value = self.source[row][self.column]
        try:
            image = decode(value, self.preprocess.channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            place = f"{value}" if isinstance(value, str) else self.source.where(row)
            raise ValueError(f"{place}: not a readable image ({error})") from None
        if self.augment.crop_scale is None:
            image = self._resized(image, place=lambda: self.source.where(row))
        return _array(image)

    def _resized(self, image: Image.Image, place: Callable[[], str]) -> Image.Image:
        size = (self.preprocess.width, self.preprocess.height)
        if image.size == size:
            return image
        if not self.preprocess.do_resize:
            raise ValueError(
                f"{place()}: the image is {image.size[0]} x {image.size[1]}, the model takes "
                f"{size[0]} x {size[1]}, and the checkpoint says not to resize"
            )
        return image.resize(size, self.preprocess.resample)

    def _augmented(self, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if self.augment.crop_scale is not None:
            box = crop_box(
                pixels.shape[:2], self.augment.crop_scale, self.augment.crop_ratio, generator
            )
            size = (self.preprocess.width, self.preprocess.height)
            # Resampling from the box itself reads no pixel outside it and copies nothing.
            pixels = _array(_from_array(pixels).resize(size, self.preprocess.resample, box=box))
        if self.augment.flip and generator.random() < 0.5:
            pixels = pixels[:, ::-1]
        return pixels


def _array(image: Image.Image) -> np.ndarray:
    """[H, W, C] uint8."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def crop_box(
    size: tuple[int, ...],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A random (left, top, right, bottom) within an image of size (height, width).

    Szegedy et al. 2015, as torchvision's RandomResizedCrop: ten attempts, then the whole image
    cut to the nearest allowed ratio.
    """
    height, width = size
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        shape = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left = int(generator.integers(0, width - w + 1))
            top = int(generator.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
