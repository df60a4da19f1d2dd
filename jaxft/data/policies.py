"""Random changes of images by a list of operations: RandAugment and TrivialAugment.

Cubuk et al. 2020, arXiv:1909.13719, and Müller & Hutter 2021, arXiv:2103.10158; operations and ranges are
those of torchvision's RandAugment (two of them, magnitude 9 of 30) and TrivialAugmentWide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Fill = tuple[int, ...]
# (image, magnitude, what is put where nothing is) -> image
Operation = Callable[[Image.Image, float, Fill], Image.Image]
# of a share of the way from the least magnitude to the most, and the width and height -> magnitude
Range = Callable[[float, tuple[int, int]], float]

_BINS = 30  # steps between the least magnitude and the most
_RAND_OPERATIONS, _RAND_MAGNITUDE = 2, 9


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    """The matrix maps a place of the result to one of the image."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor=_colour(fill),
    )


def _colour(fill: Fill) -> Fill | int:
    return fill if len(fill) > 1 else fill[0]


def _enhanced(kind: Callable[[Image.Image], Any]) -> Operation:
    return lambda image, magnitude, fill: kind(image).enhance(1 + magnitude)


OPERATIONS: Mapping[str, Operation] = {
    "identity": lambda image, magnitude, fill: image,
    "shear_x": lambda image, m, fill: _affine(image, (1, m, 0, 0, 1, 0), fill),
    "shear_y": lambda image, m, fill: _affine(image, (1, 0, 0, m, 1, 0), fill),
    "translate_x": lambda image, m, fill: _affine(image, (1, 0, -m, 0, 1, 0), fill),
    "translate_y": lambda image, m, fill: _affine(image, (1, 0, 0, 0, 1, -m), fill),
    "rotate": lambda image, m, fill: image.rotate(
        m, Image.Resampling.BILINEAR, fillcolor=_colour(fill)
    ),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": lambda image, bits, fill: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold, fill: ImageOps.solarize(image, math.ceil(threshold)),
    "autocontrast": lambda image, magnitude, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, magnitude, fill: ImageOps.equalize(image),
}
# Those whose magnitude is taken with either sign.
_SIGNED = frozenset(
    "shear_x shear_y translate_x translate_y rotate brightness color contrast sharpness".split()
)


def _ranges(
    shear: float, move: Range, turn: float, enhance: float, bits: int
) -> Mapping[str, Range]:
    def upto(most: float) -> Range:
        return lambda share, size: most * share

    return {
        "identity": upto(0), "autocontrast": upto(0), "equalize": upto(0),
        "shear_x": upto(shear), "shear_y": upto(shear), "rotate": upto(turn),
        "translate_x": move, "translate_y": lambda share, size: move(share, size[::-1]),
        "brightness": upto(enhance), "color": upto(enhance), "contrast": upto(enhance),
        "sharpness": upto(enhance),
        "posterize": lambda share, size: 8 - round(share * bits),
        "solarize": lambda share, size: 255 * (1 - share),
    }  # fmt: skip


RAND = _ranges(0.3, lambda share, size: 150 / 331 * size[0] * share, 30, 0.9, 4)
TRIVIAL = _ranges(0.99, lambda share, size: 32 * share, 135, 0.99, 6)


def rand_augment(image: Image.Image, fill: Fill, generator: np.random.Generator) -> Image.Image:
    """Two operations, drawn with replacement, at the same magnitude."""
    for number in generator.integers(len(RAND), size=_RAND_OPERATIONS):
        image = _changed(image, list(RAND)[number], RAND, _RAND_MAGNITUDE, fill, generator)
    return image


def trivial_augment(image: Image.Image, fill: Fill, generator: np.random.Generator) -> Image.Image:
    """One operation, at a magnitude drawn from all."""
    number, step = generator.integers(len(TRIVIAL)), int(generator.integers(_BINS + 1))
    return _changed(image, list(TRIVIAL)[number], TRIVIAL, step, fill, generator)


def _changed(
    image: Image.Image, name: str, ranges: Mapping[str, Range], step: int, fill: Fill,
    generator: np.random.Generator,
) -> Image.Image:  # fmt: skip
    magnitude = ranges[name](step / _BINS, image.size)
    if name in _SIGNED and generator.random() < 0.5:
        magnitude = -magnitude
    return OPERATIONS[name](image, magnitude, fill)


POLICIES = {"randaugment": rand_augment, "trivialaugment": trivial_augment}
