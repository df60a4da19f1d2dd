"""Augmentation: each operation is what it says, and all of it is drawn from (seed, epoch, example)."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxft.data import policies
from jaxft.data.augment import Augment, augmented, erase_box, jittered
from jaxft.data.files import table
from jaxft.data.images import Images
from jaxft.data.preprocess import Preprocess

GREY = (128, 128, 128)


def picture(size=(40, 30), seed=0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "name, magnitude, expected",
    [
        ("identity", 0, lambda image: image),
        ("brightness", 0.4, lambda image: ImageEnhance.Brightness(image).enhance(1.4)),
        ("contrast", -0.3, lambda image: ImageEnhance.Contrast(image).enhance(0.7)),
        ("color", 0.9, lambda image: ImageEnhance.Color(image).enhance(1.9)),
        ("sharpness", 0.9, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
        ("posterize", 4, lambda image: ImageOps.posterize(image, 4)),
        ("solarize", 100, lambda image: ImageOps.solarize(image, 100)),
        ("autocontrast", 0, ImageOps.autocontrast),
        ("equalize", 0, ImageOps.equalize),
        ("rotate", 30, lambda image: image.rotate(30, Image.Resampling.BILINEAR, fillcolor=GREY)),
    ],
)
def test_operations_are_those_of_pillow(name, magnitude, expected):
    found = policies.OPERATIONS[name](picture(), magnitude, GREY)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected(picture())))


def test_moving_and_shearing():
    pixels = np.asarray(picture())
    moved = np.asarray(policies.OPERATIONS["translate_x"](picture(), 7, GREY))
    np.testing.assert_array_equal(moved[:, 7:], pixels[:, :-7])
    assert (moved[:, :7] == 128).all()
    moved = np.asarray(policies.OPERATIONS["translate_y"](picture(), -4, GREY))
    np.testing.assert_array_equal(moved[:-4], pixels[4:])
    # A vertical line leans: row y moves by magnitude * (y + 1/2), to the left where it is positive.
    line = np.zeros((20, 40), np.uint8)
    line[:, 30] = 255
    leaning = np.asarray(policies.OPERATIONS["shear_x"](Image.fromarray(line), 0.5, (0,)), float)
    places = (leaning * np.arange(40)).sum(1) / leaning.sum(1)
    np.testing.assert_allclose(places, 30 - 0.5 * (np.arange(20) + 0.5), atol=0.02)


def test_ranges_are_those_of_the_papers_implementations():
    """torchvision's: RandAugment's at the full magnitude, and TrivialAugmentWide's, for 224 x 112 pixels."""

    def full(ranges, name):
        return ranges[name](1.0, (224, 112))

    assert full(policies.RAND, "shear_x") == 0.3 and full(policies.RAND, "rotate") == 30
    assert full(policies.RAND, "translate_x") == pytest.approx(150 / 331 * 224)
    assert full(policies.RAND, "translate_y") == pytest.approx(150 / 331 * 112)
    assert full(policies.RAND, "posterize") == 4 and full(policies.RAND, "solarize") == 0
    assert full(policies.TRIVIAL, "shear_y") == 0.99 and full(policies.TRIVIAL, "rotate") == 135
    assert full(policies.TRIVIAL, "translate_y") == 32 and full(policies.TRIVIAL, "posterize") == 2
    assert [policies.RAND["posterize"](s / 30, (1, 1)) for s in (0, 9, 30)] == [8, 7, 4]
    assert policies.TRIVIAL["solarize"](0.0, (1, 1)) == 255


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_is_drawn_and_keeps_the_form(policy, channels):
    augment, pixels = Augment(policy=policy), np.asarray(picture())[..., :channels]
    found = []
    for seed in range(200):
        changed, erased = augmented(
            pixels, augment, (40, 30), Image.Resampling.BILINEAR, GREY[:channels],
            np.random.default_rng(seed),
        )  # fmt: skip
        assert changed.shape == pixels.shape and changed.dtype == np.uint8 and erased is None
        found.append(changed.tobytes())
    assert len(set(found)) > (100 if policy == "randaugment" else 80)


def test_jitter_stays_within_its_strength():
    flat = Image.new("RGB", (4, 4), (100, 100, 100))  # grey: contrast and saturation change nothing
    seen = [
        np.asarray(jittered(flat, 0.4, np.random.default_rng(seed))).mean() for seed in range(300)
    ]
    assert 59 <= min(seen) < 65 and 135 < max(seen) <= 141


def test_erased_rectangles_have_the_asked_area_and_shape():
    generator = np.random.default_rng(0)
    boxes = [erase_box((100, 120), (0.02, 1 / 3), (0.3, 3.3), generator) for _ in range(500)]
    assert None not in boxes
    left, top, right, bottom = np.array(boxes).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 120 and bottom.max() <= 100
    area = (right - left) * (bottom - top) / 12000
    shape = (bottom - top) / (right - left)
    assert 0.018 < area.min() < 0.04 and 0.28 < area.max() < 0.36
    assert 0.27 < shape.min() and shape.max() < 3.7
    assert erase_box((1, 1), (0.5, 0.6), (1, 1), generator) is None


def images(**options) -> Images:
    values = [picture((20, 16), seed) for seed in range(6)]
    preprocess = Preprocess(16, 16, 3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    source = table("a.parquet", {"image": values, "label": list(range(6))})
    return Images(source, np.arange(6), "image", preprocess, **options)


def test_all_of_it_depends_on_seed_epoch_and_example_only():
    augment = Augment((0.3, 1.0), flip=True, policy="randaugment", jitter=0.4, erase=0.5)
    every = images(augment=augment, seed=3)
    first = every.pixels(np.arange(6), 1)
    np.testing.assert_array_equal(
        images(augment=augment, seed=3).pixels(np.array([4, 2]), 1), first[[4, 2]]
    )
    for other in (
        every.pixels(np.arange(6), 2),
        images(augment=augment, seed=4).pixels(np.arange(6), 1),
    ):
        assert not (other == first).all(axis=(1, 2, 3)).any()


def test_erased_is_the_mean_after_normalising():
    plain, erased = images(), images(augment=Augment(erase=1.0))
    before, after = plain.pixels(np.arange(6), 0), erased.pixels(np.arange(6), 0)
    changed = (before != after).any(-1)
    assert changed.any(axis=(1, 2)).all() and (after[changed] == 0).all()
    for one in changed:  # a rectangle, but for places where the image was the mean
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        inside = np.ix_(rows, columns)
        assert one[inside].mean() > 0.9 and len(rows) == np.ptp(rows) + 1
