"""Mixing training images with each other: mixup and CutMix, as timm's `Mixup` does it in its mode 'elem'.

Zhang et al. 2018, arXiv:1710.09412, and Yun et al. 2019, arXiv:1905.04899. Of the n images of a global batch
image i is mixed with image i + 1, the last with the first: their order is random already, and a process
needs one image more than its own. How it is mixed is drawn by (seed, epoch, example). So neither depends on
how the batch is cut.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from jaxft.data.augment import Box
from jaxft.data.targets import Batch

# Of the generators, so that they are not those of other changes of the same examples.
_STREAM = 1
# Before the names of arrays of the other image.
OTHER = "other_"


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How images are mixed.

    mixup, cutmix: a of the Beta(a, a) distribution of the share that an image keeps; 0: not done.
    probability: of an image to be mixed at all.
    switch: where both are done, the probability of CutMix.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    seed: int = 0

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def mix(
        self, pixels: np.ndarray, after: np.ndarray, rows: Iterable[int], epoch: int
    ) -> np.ndarray:
        """Mixes images [n, H, W, C] float32 in place, each with the next, the last with `after` [H, W, C].

        rows: the source's row of each.

        Returns:
          [n] float32: the share that each has of its result.
        """
        shares = np.ones(len(pixels), np.float32)
        for i, row in enumerate(rows):
            generator = np.random.default_rng([self.seed, epoch, int(row), _STREAM])
            other = pixels[i + 1] if i + 1 < len(pixels) else after
            shares[i] = self._mix(pixels[i], other, generator)
        return shares

    def _mix(self, image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> float:
        """Changes an image [H, W, C], and returns its share."""
        if generator.random() >= self.probability:
            return 1.0
        both = bool(self.mixup and self.cutmix)
        cut = generator.random() < self.switch if both else bool(self.cutmix)
        alpha = self.cutmix if cut else self.mixup
        share = float(np.float32(generator.beta(alpha, alpha)))
        if not cut:
            image *= np.float32(share)
            image += np.float32(1 - share) * other
            return share
        (height, width), box = image.shape[:2], cut_box(image.shape[:2], share, generator)
        left, top, right, bottom = box
        image[top:bottom, left:right] = other[top:bottom, left:right]
        # Its true area: the box may have been cut off at the border.
        return 1 - (right - left) * (bottom - top) / (height * width)


def cut_box(size: tuple[int, ...], share: float, generator: np.random.Generator) -> Box:
    """A box of 1 - share of the area of an image of size (height, width), and of its form, around a random
    point of it, cut off where it reaches beyond; it may be empty."""
    height, width = size
    side = math.sqrt(1 - share)
    h, w = int(height * side), int(width * side)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    left, right = (min(max(at, 0), width) for at in (x - w // 2, x + w // 2))
    top, bottom = (min(max(at, 0), height) for at in (y - h // 2, y + h // 2))
    return left, top, right, bottom


def mixed_targets(own: Batch, other: Batch, shares: np.ndarray) -> Batch:
    """The arrays that the loss of mixed images reads, of those of both images (see `tasks/mixed.py`).

    'index' is the image's own; 'weight' what both weigh by their shares; 'share' [B] float32 that of the
    image in it; what else the targets filled in is there twice, that of the other image as 'other_…'.

    shares: [B] of the image in its pixels; 1 where there is none.
    """
    weights, others = shares * own["weight"], (1 - shares) * other["weight"]
    both = weights + others
    # Where one of the classes weighs more, its share of the loss is larger than of the pixels.
    counted = np.divide(weights, both, out=np.array(shares, np.float32), where=both > 0)
    rest = {OTHER + name: x for name, x in other.items() if name not in ("weight", "index")}
    return own | rest | {"weight": both.astype(np.float32), "share": counted}
