"""CIFAR-like pictures made of real ones: a scanned digit in some colour somewhere on a piece of a
photograph.

    python benchmarks/digit_photos.py FOLDER [--train 2000] [--test 1000] [--classes 0123456789]

32 x 32 RGB, FOLDER/train/CLASS/….png and FOLDER/test/…, for benchmarks where CIFAR-10 itself cannot be
had. The digits are scikit-learn's 1,797 scans of 8 x 8, the backgrounds pieces of its two photographs
(china.jpg and flower.jpg, 640 x 427), which differ in place, scale, colours and sharpness. A digit is 20
to 27 pixels high, turned by up to 15 degrees, within three pixels of the middle, in a colour lighter than
what is behind it. Training and test pictures share neither a scan nor a pixel of a photograph: 70 % of
the scans of each class, and the left 60 % of each photograph, are for training. Everything follows from
`--seed`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits, load_sample_images

SIDE = 32
_SHARE_OF_SCANS, _SHARE_OF_PHOTO = 0.7, 0.6  # for training
_CONTRAST = (
    0.2  # by which each channel of a digit's colour is lighter, at least, than what is behind it
)


def write(folder: Path, classes: str, counts: dict[str, int], seed: int = 0) -> None:
    """`counts` pictures of 'train' and 'test', as many of each class as of the others, or one more."""
    scans, labels = load_digits(return_X_y=True)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number, (part, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        pools = {c: _of_part(np.flatnonzero(labels == int(c)), part == "train") for c in classes}
        regions = [_region(photo, part == "train") for photo in photos]
        for index in range(count):
            name = classes[index % len(classes)]
            scan = scans[rng.choice(pools[name])].reshape(8, 8) / 16
            image = _picture(scan, regions[rng.integers(len(regions))], rng)
            path = folder / part / name / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def _of_part(rows: np.ndarray, training: bool) -> np.ndarray:
    cut = round(_SHARE_OF_SCANS * len(rows))
    return rows[:cut] if training else rows[cut:]


def _region(photo: Image.Image, training: bool) -> Image.Image:
    cut = round(_SHARE_OF_PHOTO * photo.width)
    left, right = (0, cut) if training else (cut, photo.width)
    return photo.crop((left, 0, right, photo.height))


def _picture(scan: np.ndarray, region: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A digit [8, 8] in 0 to 1 on a piece of the photograph."""
    background = _background(region, rng)
    side = int(rng.integers(20, 28))
    left, top = np.clip((SIDE - side) // 2 + rng.integers(-3, 4, 2), 0, SIDE - side)
    ink = Image.fromarray(np.uint8(255 * scan)).resize((side, side), Image.Resampling.BICUBIC)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(ink, (int(left), int(top)))
    middle = (left + side / 2, top + side / 2)
    mask = mask.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, center=middle)
    share = np.clip(np.asarray(mask, np.float64) / 160, 0, 1)[..., None] * rng.uniform(0.7, 1)
    behind = background[top : top + side, left : left + side].mean((0, 1))
    colour = rng.uniform(np.minimum(behind + _CONTRAST, 1), 1)
    mixed = (1 - share) * background + share * colour + rng.normal(0, 0.02, background.shape)
    return Image.fromarray(np.uint8(255 * np.clip(mixed, 0, 1)))


def _background(region: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """[32, 32, 3] in 0 to 1."""
    size = int(rng.integers(24, 129))
    left = int(rng.integers(0, region.width - size + 1))
    top = int(rng.integers(0, region.height - size + 1))
    box = (left, top, left + size, top + size)
    piece = region.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        piece = change(piece).enhance(rng.uniform(0.6, 1.4))
    return rng.uniform(0.4, 0.7) * np.asarray(piece, np.float64) / 255


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--classes", default="0123456789")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, args.classes, {"train": args.train, "test": args.test}, args.seed)


if __name__ == "__main__":
    main()
