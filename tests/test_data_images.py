"""Images: equal to transformers' processor, converted honestly, augmented reproducibly."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxft.data.files import table
from jaxft.data.fingerprint import WHOLE
from jaxft.data.images import Augment, Images, Preprocess, crop_box, decode, find_image_column


def picture(mode="RGB", size=(31, 23), seed=0):
    """Smooth random colours: resampling filters differ on them."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def images(values, preprocess, **options):
    source = table("a.parquet", {"image": values, "label": list(range(len(values)))})
    return Images(source, np.arange(len(values)), "image", preprocess, **options)


def write_config(folder, **config):
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"height": 16, "width": 16}},
        {"size": 16, "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.2] * 3},
        {"size": {"height": 16, "width": 16}, "resample": 0, "rescale_factor": 1 / 127.5},
        {"size": 16, "do_normalize": False},
        {"size": 16, "do_rescale": False, "image_mean": [100, 110, 120]},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pixels_equal_the_image_processor(tmp_path, config, mode):
    from transformers import ViTImageProcessorPil

    folder = write_config(tmp_path, image_processor_type="ViTImageProcessor", **config)
    processor = ViTImageProcessorPil.from_pretrained(folder, do_convert_rgb=True)
    values = [picture(mode, size, seed) for seed, size in enumerate([(31, 23), (16, 16), (9, 40)])]
    expected = processor(values, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    preprocess = Preprocess.from_checkpoint(folder, image_size=16, channels=3)
    pixels = images(values, preprocess).pixels(np.arange(3), epoch=0)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


def test_without_a_processor_the_model_config_decides(tmp_path):
    preprocess = Preprocess.from_checkpoint(str(tmp_path), image_size=(8, 12), channels=1)
    pixels = images([np.array([[0, 255]], np.uint8)], preprocess).pixels(np.arange(1), 0)
    assert pixels.shape == (1, 8, 12, 1) and pixels.min() == -1 and pixels.max() == 1


def test_processors_that_do_something_else_are_refused(tmp_path):
    def load(channels=3, **config):
        return Preprocess.from_checkpoint(
            write_config(tmp_path, **config), image_size=16, channels=channels
        )

    with pytest.raises(ValueError, match="resized to .*224.*, but the model takes 16 x 16"):
        load()
    with pytest.raises(ValueError, match="do_center_crop is not supported"):
        load(size=16, do_center_crop=True, crop_size=16)
    with pytest.raises(ValueError, match="image_mean has 3 values; the model takes 1 channels"):
        load(channels=1, size=16, image_mean=[0.1, 0.2, 0.3])
    assert load(channels=1, size=16, image_mean=[0.3] * 3).mean == (0.3,)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json: not readable JSON"):
        Preprocess.from_checkpoint(str(tmp_path), image_size=16, channels=3)
    same_size = load(size=99, do_resize=False)
    with pytest.raises(ValueError, match="row 1: the image is 31 x 23, the model takes 16 x 16"):
        images([picture()], same_size).pixels(np.arange(1), 0)


def test_every_way_to_give_an_image(tmp_path):
    expected = picture()
    expected.save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    forms = [str(tmp_path / "a.png"), encoded, {"bytes": encoded, "path": None}, expected]
    for value in [*forms, np.asarray(expected)]:
        np.testing.assert_array_equal(np.asarray(decode(value, 3)), np.asarray(expected))
    assert find_image_column(table("t", {"img": [0], "label": [0]})) == "img"
    with pytest.raises(ValueError, match="no image column found .*config.data.text"):
        find_image_column(table("t", {"x": [0], "label": [0]}))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    file = io.BytesIO()
    picture(size=(30, 20)).save(file, "PNG", exif=exif)
    assert decode(file.getvalue(), 3).size == (20, 30)


def test_sixteen_bit_images_are_scaled_not_clipped():
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert np.asarray(decode(Image.fromarray(grey), 1)).tolist() == [[0, 100, 255]]


def test_channels_are_converted():
    grey = np.full((4, 4), 77, np.uint8)
    assert (np.asarray(decode(grey, 3)) == 77).all() and decode(grey, 3).mode == "RGB"
    assert decode(picture(), 1).mode == "L"
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert (np.asarray(decode(clear, 1)) == 255).all()  # transparent is white
    with pytest.raises(ValueError, match="must be uint8 .* got float64"):
        decode(np.zeros((2, 2)), 1)
    with pytest.raises(ValueError, match=r"got \(3, 2, 2\)"):
        decode(np.zeros((3, 2, 2), np.uint8), 3)


def test_a_corrupt_image_is_named(tmp_path):
    preprocess = Preprocess(16, 16, 3)
    picture().save(tmp_path / "good.jpg")
    cut = (tmp_path / "good.jpg").read_bytes()[:300]
    (tmp_path / "cut.jpg").write_bytes(cut)
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.jpg", "text.png", "gone.png"):
        with pytest.raises(ValueError, match=f"{name}: not a readable image"):
            images([str(tmp_path / name)], preprocess).pixels(np.arange(1), 0)
    with pytest.raises(ValueError, match="a.parquet, row 2: not a readable image"):
        images([picture(), cut], preprocess).pixels(np.arange(2), 0)


AUGMENT = Augment(crop_scale=(0.3, 1.0), flip=True)


def test_augmentation_depends_on_seed_epoch_and_example_only():
    values = [picture(seed=seed) for seed in range(6)]
    preprocess = Preprocess(16, 16, 3)

    def pixels(positions, epoch, seed=0, rows=slice(None), keep_bytes=1 << 20):
        source = table("a", {"image": values})
        chosen = np.arange(6)[rows]
        options = {"augment": AUGMENT, "seed": seed, "keep_bytes": keep_bytes}
        return Images(source, chosen, "image", preprocess, **options).pixels(
            np.array(positions), epoch
        )

    every = pixels([0, 1, 2, 3, 4, 5], epoch=3)
    np.testing.assert_array_equal(pixels([4, 1], epoch=3), every[[4, 1]])
    np.testing.assert_array_equal(pixels([1], epoch=3, rows=slice(3, None)), every[[4]])
    np.testing.assert_array_equal(pixels([4], epoch=3, keep_bytes=0), every[[4]])
    assert (pixels(range(6), epoch=4) != every).any((1, 2, 3)).all()
    assert (pixels(range(6), epoch=3, seed=1) != every).any((1, 2, 3)).all()


def test_flip_mirrors_about_half_and_changes_nothing_else():
    values = [picture(size=(16, 16), seed=seed) for seed in range(40)]
    preprocess = Preprocess(16, 16, 3)
    plain = images(values, preprocess).pixels(np.arange(40), 0)
    flipped = images(values, preprocess, augment=Augment(flip=True)).pixels(np.arange(40), 0)
    same = (flipped == plain).all((1, 2, 3))
    mirrored = (flipped == plain[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and 8 < mirrored.sum() < 32


def test_crops_lie_inside_with_the_asked_area_and_shape():
    generator = np.random.default_rng(0)
    areas, shapes = [], []
    for _ in range(300):
        left, top, right, bottom = crop_box((60, 80), (0.2, 0.6), (0.5, 2.0), generator)
        assert 0 <= left < right <= 80 and 0 <= top < bottom <= 60
        areas.append((right - left) * (bottom - top) / 4800)
        shapes.append((right - left) / (bottom - top))
    assert 0.19 < min(areas) < 0.25 and 0.55 < max(areas) < 0.61
    assert 0.48 < min(shapes) < 0.6 and 1.6 < max(shapes) < 2.1
    # No crop of this shape fits: the largest centred one is taken.
    assert crop_box((10, 100), (1.0, 1.0), (1.0, 1.0), generator) == (45, 0, 55, 10)


def test_images_are_kept_up_to_the_limit(tmp_path):
    paths = []
    for seed in range(3):
        paths.append(str(tmp_path / f"{seed}.png"))
        picture(seed=seed).save(paths[-1])
    kept = images(paths, Preprocess(16, 16, 3), keep_bytes=2 * 16 * 16 * 3)
    first = kept.pixels(np.arange(3), 0)
    for path in paths[:2]:
        Image.new("RGB", (16, 16)).save(path)  # would be noticed if it were read again
    np.testing.assert_array_equal(kept.pixels(np.arange(3), 0), first)
    Image.new("RGB", (16, 16)).save(paths[2])
    assert (kept.pixels(np.arange(3), 0)[2] != first[2]).any()


# The fingerprint


def write_images(folder):
    """A small file, one that is read in pieces, and one that is as large as what is read whole."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    picture().save(folder / "0.png")
    Image.fromarray(noise).save(folder / "1.png")
    content = (folder / "1.png").read_bytes()
    assert len(content) > 1.5 * WHOLE
    (folder / "2.jpg").write_bytes(content[:WHOLE])
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(
    "change", ["replaced", "one byte", "last byte", "renamed", "order", "removed"]
)
def test_other_images_change_the_fingerprint(tmp_path, change):
    paths = write_images(tmp_path / "a")
    preprocess = Preprocess(8, 8, 3)
    before = images(paths, preprocess).fingerprint()
    if change == "replaced":
        picture(seed=1).save(paths[1])
    if change in ("one byte", "last byte"):
        for path in map(Path, paths):
            content = bytearray(path.read_bytes())
            content[-1 if change == "last byte" else 0] ^= 1
            path.write_bytes(content)
            now = images(paths, preprocess).fingerprint()
            assert now != before
            before = now
        return
    if change == "renamed":
        (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "9.png")
        paths[0] = str(tmp_path / "a" / "9.png")
    if change == "order":
        paths = paths[::-1]
    if change == "removed":
        paths = paths[1:]
    assert images(paths, preprocess).fingerprint() != before


def test_neither_times_nor_the_place_change_the_fingerprint(tmp_path):
    paths = write_images(tmp_path / "a")
    before = images(paths, Preprocess(8, 8, 3)).fingerprint()
    for path in paths:
        os.utime(path, (1e9, 1e9))
    assert images(paths, Preprocess(8, 8, 3)).fingerprint() == before
    (tmp_path / "a").rename(tmp_path / "b")
    moved = [path.replace("/a/", "/b/") for path in paths]
    assert images(moved, Preprocess(8, 8, 3)).fingerprint() == before


def test_images_in_memory_have_a_fingerprint():
    array = np.asarray(picture())
    encoded = io.BytesIO()
    picture().save(encoded, "PNG")
    forms = [array, array[::-1], array[..., :1], encoded.getvalue(), picture("P"), picture("L")]
    found = [images([form], Preprocess(8, 8, 3)).fingerprint() for form in forms]
    assert len(set(found)) == len(forms)
    kept_in_a_dict = images([{"bytes": forms[3], "path": "x"}], Preprocess(8, 8, 3))
    assert kept_in_a_dict.fingerprint() == found[3]


def test_files_that_cannot_be_read_are_counted(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    picture().save(paths[1])
    message = (
        r"0.png: not a readable image \(no such file or directory\); so are 1 more of 3 images"
    )
    with pytest.raises(ValueError, match=message):
        images(paths, Preprocess(8, 8, 3)).fingerprint()
