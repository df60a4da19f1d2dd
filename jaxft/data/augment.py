"""Random changes of training images, each drawn from the generator of its (seed, epoch, example)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance

from jaxft.data.decode import from_array
from jaxft.data.policies import POLICIES

Box = tuple[int, int, int, int]  # left, top, right, bottom

_JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclasses.dataclass(frozen=True)
class Augment:
    """What may be done to an image, in this order.

    crop_scale: the area of a random crop as a share of the image, (least, most), or None: no crop.
    crop_ratio: its width / height, (least, most), uniform in the logarithm.
    flip: mirror left and right, every second time.
    policy: 'randaugment' or 'trivialaugment' (policies.py); '': neither.
    jitter: brightness, contrast and saturation, in any order, are multiplied by factors from 1 - jitter to
      1 + jitter each (torchvision's ColorJitter without hue, which is timm's default).
    erase: probability of a rectangle without content (Zhong et al. 2020, arXiv:1708.04896), that is of the
      checkpoint's mean, after normalising.
    erase_scale, erase_ratio: of the rectangle, as of a crop but height / width; those of torchvision.
    """

    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    policy: str = ""
    jitter: float = 0.0
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 1 / 3)
    erase_ratio: tuple[float, float] = (0.3, 3.3)

    def __bool__(self) -> bool:
        return bool(self.crop_scale or self.flip or self.policy or self.jitter or self.erase)


def augmented(
    pixels: np.ndarray, augment: Augment, size: tuple[int, int], resample: Image.Resampling,
    fill: tuple[int, ...], generator: np.random.Generator,
) -> tuple[np.ndarray, Box | None]:  # fmt: skip
    """The image changed, and the rectangle that is to be erased once it is normalised.

    Args:
      pixels: [H, W, C] uint8, of the model's size but where there is a crop.
      size: (width, height) of the model's images.
      fill: [C] what is put where an operation moves the image away.
    """
    if augment.crop_scale is not None:
        box = crop_box(pixels.shape[:2], augment.crop_scale, augment.crop_ratio, generator)
        # Cut out first, as torchvision does: Pillow's `resize(…, box=box)` reads pixels beside the box, too.
        pixels = _array(from_array(pixels).crop(box).resize(size, resample))
    if augment.flip and generator.random() < 0.5:
        pixels = pixels[:, ::-1]
    if augment.policy or augment.jitter:
        image = from_array(np.ascontiguousarray(pixels))
        if augment.policy:
            image = POLICIES[augment.policy](image, fill, generator)
        if augment.jitter:
            image = jittered(image, augment.jitter, generator)
        pixels = _array(image)
    if augment.erase and generator.random() < augment.erase:
        return pixels, erase_box(
            pixels.shape[:2], augment.erase_scale, augment.erase_ratio, generator
        )
    return pixels, None


def jittered(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Of another brightness, contrast and saturation."""
    for number in generator.permutation(len(_JITTERED)):
        factor = generator.uniform(max(0.0, 1 - strength), 1 + strength)
        image = _JITTERED[number](image).enhance(factor)
    return image


def crop_box(
    size: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float],
    generator: np.random.Generator,
) -> Box:  # fmt: skip
    """A random box within an image of size (height, width).

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


def erase_box(
    size: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float],
    generator: np.random.Generator,
) -> Box | None:  # fmt: skip
    """A random box smaller than an image of size (height, width), as torchvision's RandomErasing: ten
    attempts, then none."""
    height, width = size
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        shape = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < h < height and 0 < w < width:
            top = int(generator.integers(0, height - h + 1))
            left = int(generator.integers(0, width - w + 1))
            return left, top, left + w, top + h
    return None


def _array(image: Image.Image) -> np.ndarray:
    """[H, W, C] uint8."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]
