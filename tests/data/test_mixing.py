"""Images mixed with each other: as the papers do it, whoever makes the batch, and in the targets alike."""

import numpy as np
import pytest

from jaxft.data.files import table
from jaxft.data.images import Augment, Images, Preprocess
from jaxft.data.labels import Labels
from jaxft.data.loader import ImageBatches
from jaxft.data.mixing import Mixing, cut_box, mixed_targets

COUNT = 22
# Images that are told apart by any pixel of theirs.
VALUES = np.arange(COUNT, dtype=np.uint8)[:, None, None] * 11 + np.zeros((COUNT, 8, 8), np.uint8)


def batches(mixing=None, *, weights=None, augment=None, steps=8, **cut):
    rows = np.arange(COUNT)
    images = Images(
        table("a", {"image": VALUES}), rows, "image", Preprocess(8, 8, 1), augment=augment
    )
    labels = Labels(tuple("abc"), rows, (rows % 3).astype(np.int32), weights=weights)
    options = {"batch_size": 6, "steps": steps, "seed": 1, "shards": 4, **cut}
    return ImageBatches(images, labels, mixing=mixing, **options)


@pytest.mark.parametrize(
    "mixing", [Mixing(mixup=0.4, seed=3), Mixing(cutmix=1.0), Mixing(0.8, 1.0)]
)
def test_what_is_mixed_is_what_the_targets_say(mixing):
    plain, mixed = batches(), batches(mixing)
    shares = []
    for step in range(8):
        before, after = plain[step], mixed[step]
        count = int((before["index"] >= 0).sum())
        pixels = before["pixel_values"][:count]
        for name in ("index", "labels", "weight"):
            np.testing.assert_allclose(after[name], before[name], rtol=1e-6)
        np.testing.assert_array_equal(
            after["other_labels"][:count], np.roll(before["labels"][:count], -1)
        )
        share = after["share"][:count, None, None, None]
        # Every image has one value, so the mean of the pixels is that of the shares, for either way.
        expected = share * pixels + (1 - share) * np.roll(pixels, -1, 0)
        means = after["pixel_values"][:count].mean((1, 2, 3))
        np.testing.assert_allclose(means, expected.mean((1, 2, 3)), atol=1e-6)
        assert not after["pixel_values"][count:].any() and (after["share"][count:] == 1).all()
        if not mixing.cutmix:
            np.testing.assert_allclose(after["pixel_values"][:count], expected, atol=1e-6)
        if not mixing.mixup:
            either = (after["pixel_values"][:count] == pixels) | (
                after["pixel_values"][:count] == np.roll(pixels, -1, 0)
            )
            assert either.all()
        shares.append(share.ravel())
    found = np.concatenate(shares)
    assert found.dtype == np.float32 and len(set(found.tolist())) > 9 and (0 <= found).all()


def test_the_batch_is_the_same_however_it_is_cut():
    """Of any number of processes, whatever was made before, and with other random changes, too."""
    mixing, augment = Mixing(0.8, 1.0, probability=0.8), Augment(flip=True, erase=0.5)
    whole = batches(mixing, augment=augment)
    for count in (2, 4):
        parts = [
            batches(mixing, augment=augment, process_index=index, process_count=count)
            for index in range(count)
        ]
        for step in (5, 3, 0):  # step 3 ends an epoch: some of the processes have padding alone
            cut = [part[step] for part in parts]
            for name, value in whole[step].items():
                np.testing.assert_array_equal(np.concatenate([b[name] for b in cut]), value)
    # More devices only add padding.
    wide = batches(mixing, augment=augment, shards=2, row_multiple=8)
    np.testing.assert_array_equal(wide[2]["pixel_values"][:8], whole[2]["pixel_values"])
    np.testing.assert_array_equal(wide[2]["share"][:8], whole[2]["share"])
    blank = whole.blank()[0]
    assert {k: (v.shape, v.dtype) for k, v in blank.items()} == {
        k: (v.shape, v.dtype) for k, v in whole[3].items()
    }


def test_each_image_draws_by_seed_epoch_and_row():
    same, other = batches(Mixing(0.8, seed=0)), batches(Mixing(0.8, seed=1))
    first = same[1]["share"]
    np.testing.assert_array_equal(batches(Mixing(0.8, seed=0))[1]["share"], first)
    assert not np.array_equal(other[1]["share"], first)
    rows = {int(row): share for row, share in zip(same[0]["index"], same[0]["share"], strict=True)}
    later = [(r, s) for step in range(4, 8) for r, s in zip(same[step]["index"], same[step]["share"],
                                                            strict=True)]  # fmt: skip
    again = [share for row, share in later if int(row) in rows and row >= 0]
    assert len(again) == 6 and not set(again) & set(rows.values())


def test_how_often_and_which_way():
    pixels = np.zeros((4000, 2, 2, 1), np.float32)
    after = np.zeros((2, 2, 1), np.float32)
    rarely = Mixing(mixup=1.0, probability=0.25).mix(pixels, after, range(4000), 0)
    assert 0.22 < (rarely < 1).mean() < 0.28
    shares = Mixing(mixup=0.2).mix(pixels, after, range(4000), 0)
    # Var of Beta(a, a) is 1 / (4 (2 a + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 1.4), rel=0.05)
    both = Mixing(mixup=1000.0, cutmix=1000.0, switch=0.25)  # a half; of boxes of 2 x 2 at most 1/4
    cut = both.mix(pixels, after, range(4000), 0)
    assert 0.22 < (np.abs(cut - 0.5) > 0.1).mean() < 0.28
    tiny = Mixing(mixup=1e-12).mix(pixels, after, range(100), 0)
    assert np.isfinite(tiny).all() and set(tiny.tolist()) <= {0.0, 1.0}


def test_boxes_are_those_of_the_reference_implementation():
    """`rand_bbox` of github.com/clovaai/CutMix-PyTorch, with the same random point."""

    class Fixed:
        def __init__(self, *values):
            self.values = list(values)

        def integers(self, high):
            return min(self.values.pop(0), high - 1)

    for share in (0.0, 0.1, 0.5, 0.99, 1.0):
        for y, x in ((0, 0), (5, 17), (9, 3)):
            ratio = np.sqrt(1.0 - share)
            h, w = int(10 * ratio), int(20 * ratio)
            expected = (
                np.clip(x - w // 2, 0, 20), np.clip(y - h // 2, 0, 10),
                np.clip(x + w // 2, 0, 20), np.clip(y + h // 2, 0, 10),
            )  # fmt: skip
            assert cut_box((10, 20), share, Fixed(y, x)) == tuple(map(int, expected))


def test_weights_of_classes_are_mixed_too():
    own = {"labels": np.array([0, 1, 0]), "weight": np.array([2.0, 0, 1], np.float32),
           "index": np.arange(3)}  # fmt: skip
    other = {"labels": np.array([1, 0, 0]), "weight": np.array([1.0, 0, 1], np.float32),
             "index": np.arange(3)}  # fmt: skip
    found = mixed_targets(own, other, np.array([0.25, 0.5, 1.0], np.float32))
    np.testing.assert_allclose(found["weight"], [0.25 * 2 + 0.75, 0, 1])
    np.testing.assert_allclose(found["share"], [0.5 / 1.25, 0.5, 1])
    assert set(found) == {"labels", "other_labels", "weight", "index", "share"}
