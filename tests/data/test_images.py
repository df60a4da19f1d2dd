"""Images: equal to transformers' processor, converted honestly, augmented reproducibly."""

import io
import json
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxft.analysis import pictures
from jaxft.analysis.pictures import thumbnail
from jaxft.data.augment import augmented, crop_box
from jaxft.data.decode import _ORIENTATION, FORMATS, heard
from jaxft.data.files import table
from jaxft.data.fingerprint import WHOLE
from jaxft.data.images import Augment, Images, Preprocess, decode, find_image_column


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
@pytest.mark.parametrize("mode", ["RGB", "L"])
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


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 16}},
        {"size": 16, "crop_pct": 0.6, "resample": 3, "image_mean": [0.4, 0.5, 0.6]},
        {"size": {"shortest_edge": 384}, "crop_pct": 0.5},
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_pixels_equal_the_processor_that_cuts_out_the_middle(tmp_path, config, known):
    from transformers import ConvNextImageProcessorPil

    folder = write_config(tmp_path, image_processor_type="ConvNextImageProcessor", **config)
    processor = ConvNextImageProcessorPil.from_pretrained(folder)
    sizes = [(31, 23), (16, 16), (9, 40), (17, 18)]
    values = [picture("RGB", size, seed) for seed, size in enumerate(sizes)]
    expected = processor(values, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    side = expected.shape[1] if known else None
    preprocess = Preprocess.from_checkpoint(folder, image_size=(side, side), channels=3)
    pixels = images(values, preprocess).pixels(np.arange(4), epoch=0)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


def write_timm(folder, **config):
    raw = {"architecture": "resnet18", "pretrained_cfg": config}
    (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)


@pytest.mark.parametrize(
    "size, config, resized, box",
    [
        # 16 / 0.6 = 26.7 and 31 * 26 / 23 = 35.05, rounded down; 9.5 and 0.5 to the even number.
        ((31, 23), {"input_size": [3, 16, 16], "crop_pct": 0.6}, (35, 26), (10, 5)),
        ((16, 16), {"input_size": [3, 15, 15], "crop_pct": 0.9375}, (16, 16), (0, 0)),
        ((9, 40), {"input_size": [3, 16, 16], "interpolation": "lanczos"}, (18, 80), (1, 32)),
        # Not square: 23 / 20 is more than 31 / 30, and 23 / (31 / 30) = 22.26.
        ((31, 23), {"input_size": [3, 10, 15], "crop_pct": 0.5}, (30, 22), (8, 6)),
        ((31, 23), {"input_size": [3, 16, 12], "crop_mode": "squash", "crop_pct": 1.0}, (12, 16), (0, 0)),
    ],
)  # fmt: skip
def test_pixels_of_a_timm_checkpoint(tmp_path, size, config, resized, box):
    folder, value = write_timm(tmp_path, std=[0.1, 0.2, 0.3], **config), picture(size=size)
    _, height, width = config["input_size"]
    kind = Image.Resampling[config.get("interpolation", "bicubic").upper()]
    left, top = box
    expected = value.resize(resized, kind).crop((left, top, left + width, top + height))
    expected = (np.asarray(expected) / 255 - [0.485, 0.456, 0.406]) / [0.1, 0.2, 0.3]
    preprocess = Preprocess.from_checkpoint(folder, image_size=(None, None), channels=3)
    pixels = images([value], preprocess).pixels(np.arange(1), epoch=0)[0]
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "config, what",
    [
        ({"input_size": [16, 16]}, "input_size is .16, 16.; it must be .channels, height, width"),
        ({"input_size": [3, 24, 16]}, "input_size is .3, 24, 16., but the model takes 16 x 16"),
        ({"interpolation": "random"}, "interpolation is 'random'; it must be one of nearest"),
        ({"crop_mode": "border"}, "crop_mode is 'border', crop_pct 0.875; only 'center'"),
        ({"crop_pct": 0}, "crop_pct is 0; it must be a number from 0.01 to 1"),
        ({"mean": [0.1, 0.2, 0.3, 0.4]}, "mean has 4 values; the model takes 3 channels"),
        ({"std": [0, 1, 1]}, "std is .0, 1, 1.; it must be a number above 0"),
    ],
)
def test_what_timm_says_of_images_is_read_strictly(tmp_path, config, what):
    folder = write_timm(tmp_path, **{"input_size": [3, 16, 16], **config})
    with pytest.raises(ValueError, match=what) as error:
        Preprocess.from_checkpoint(folder, image_size=(16, 16), channels=3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config, what",
    [
        (None, "is missing; it says to what size images are resized"),
        ({"size": "16"}, "size is '16'; it must be a number of pixels, or height and width"),
        ({"size": {"shortest_edge": 16}}, "size is .*; it must be a number of pixels, or height"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 1, "width": 1}},
         "it must be a number of pixels, or shortest_edge"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": 16, "crop_pct": 2},
         "crop_pct is 2; it must be a number from 0.01 to 1"),
    ],
)  # fmt: skip
def test_a_model_of_any_size_needs_a_processor_that_says_one(tmp_path, config, what):
    if config is not None:
        write_config(tmp_path, **config)
    with pytest.raises(ValueError, match=what):
        Preprocess.from_checkpoint(str(tmp_path), image_size=(None, None), channels=3)


@pytest.mark.parametrize(
    "config, what",
    [
        ({"size": "16"}, "resized to '16', but the model takes 16 x 16"),
        ({"size": -16}, "resized to .*-16"),
        ({"size": 0}, "resized to"),
        ({"size": 10**30}, "resized to"),
        ({"size": [16, 16]}, "resized to"),
        ({"size": {"height": [[[16] * 99] * 99]}}, "resized to"),
        ({"size": None}, "resized to None"),
        ({"do_resize": "false"}, "do_resize is 'false'; it must be true or false"),
        ({"do_rescale": 1}, "do_rescale is 1"),
        ({"do_normalize": []}, r"do_normalize is \[\]"),
        ({"do_pad": "yes"}, "do_pad is not supported"),
        ({"resample": 99}, "resample is 99; it must be one of 0 nearest, 1 lanczos, 2 bilinear"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"resample": 2.0}, "resample is 2.0"),
        ({"resample": -1}, "resample is -1"),
        ({"resample": True}, "resample is True"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'; it must be a number above 0"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"rescale_factor": -1}, "rescale_factor is -1"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan"),
        ({"rescale_factor": None}, "rescale_factor is None"),
        ({"image_mean": "0.5"}, "image_mean is '0.5'; it must be a number or a list of 3"),
        ({"image_mean": [0.5, None, 0.5]}, "image_mean is .*None"),
        ({"image_mean": [[0.5] * 3]}, "image_mean is"),
        ({"image_mean": [0.1, 0.2]}, "image_mean has 2 values; the model takes 3 channels"),
        ({"image_mean": float("inf")}, "image_mean is inf"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is .* it must be a number above 0 or a list"),
        ({"image_std": [0.5, -1, 0.5]}, "image_std is"),
        ({"image_std": 1e-300}, "image_std is 1e-300"),
        ({"image_std": {"r": 1}}, "image_std is"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(tmp_path, config, what):
    folder = write_config(tmp_path, **({"size": 16} | config))
    with pytest.raises(ValueError, match=what) as error:
        Preprocess.from_checkpoint(folder, image_size=16, channels=3)
    message = str(error.value)
    assert message.startswith(f"{folder}/preprocessor_config.json: ") and "\n" not in message
    assert len(message) < len(folder) + 300


@pytest.mark.parametrize(
    "content, what",
    [
        (b"[1, 2]", "must hold a JSON object, found list"),
        (b"3", "must hold a JSON object"),
        (b"[" * 100_000, "is nested deeper than 50 levels"),
        (b"", "the file is empty"),
        (b"\xff\xfe{", "is not UTF-8: byte 0"),
        (b'{"size": 1' + b"0" * 5000 + b"}", "cannot be read as JSON"),
        (None, "is a pipe"),
    ],
)
def test_a_processor_file_of_something_else_is_named(tmp_path, content, what):
    file = tmp_path / "preprocessor_config.json"
    os.mkfifo(file) if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=f"preprocessor_config.json .*{what}"):
        Preprocess.from_checkpoint(str(tmp_path), image_size=16, channels=3)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def every_kind():
    """Encoded images as they are found: modes, transparency, animation, sizes."""
    noise = np.random.default_rng(0).integers(0, 256, (23, 31, 4), np.uint8)
    clear = Image.fromarray(noise)
    plain = clear.convert("RGB")
    palette = plain.convert("P")
    moving = {"save_all": True, "append_images": [plain.rotate(90)]}
    return {
        "alpha": encoded(clear),
        "grey and alpha": encoded(clear.convert("LA")),
        "black and white": encoded(plain.convert("1")),
        "palette": encoded(palette),
        "palette with alpha": encoded(palette, transparency=bytes(range(256))),
        "palette, one colour clear": encoded(palette, transparency=7),
        "grey, one value clear": encoded(plain.convert("L"), transparency=7),
        "one colour clear": encoded(plain, transparency=tuple(noise[0, 0, :3].tolist())),
        "CMYK": encoded(plain.convert("CMYK"), "JPEG"),
        "GIF": encoded(palette, "GIF", transparency=3),
        "moving GIF": encoded(palette, "GIF", **moving),
        "moving WebP": encoded(clear, "WEBP", **moving),
        "moving PNG": encoded(plain, **moving),
        "BMP": encoded(plain, "BMP"),
        "TIFF": encoded(plain, "TIFF", compression="tiff_lzw"),
        "PPM": encoded(plain, "PPM"),
        "one pixel": encoded(plain.resize((1, 1))),
        "wide": encoded(plain.resize((3000, 1))),
        "tall": encoded(plain.resize((1, 3000))),
    }


@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_of_file_equals_the_image_processor(tmp_path, kind):
    from transformers import ViTImageProcessorPil

    folder = write_config(tmp_path, size=16)
    processor = ViTImageProcessorPil.from_pretrained(folder, do_convert_rgb=True)
    with Image.open(io.BytesIO(every_kind()[kind])) as image:
        expected = processor([image], return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    preprocess = Preprocess.from_checkpoint(folder, image_size=16, channels=3)
    pixels = images([every_kind()[kind]], preprocess).pixels(np.arange(1), epoch=0)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [16 * 6 - 1, 16 * 6, 16 * 13])
def test_only_much_larger_photographs_are_decoded_at_a_reduced_size(side):
    photograph = picture(size=(side + 40, side)).resize((side + 40, side))
    preprocess = Preprocess(16, 16, 3)
    value = encoded(photograph, "JPEG", quality=95)
    with Image.open(io.BytesIO(value)) as image:
        whole = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    pixels = images([value], preprocess).pixels(np.arange(1), 0)[0]
    off = np.abs(np.rint((pixels * 0.5 + 0.5) * 255) - whole)
    assert (off.max() == 0) == (side < 16 * 6) and off.max() <= 3
    least = 3 * 16
    decoded = decode(value, 3, at_least=least)
    assert min(decoded.size) >= least and (decoded.size == photograph.size) == (side < 2 * least)
    nearest = Preprocess(16, 16, 3, resample=Image.Resampling.NEAREST)
    with Image.open(io.BytesIO(value)) as image:
        picked = np.asarray(image.resize((16, 16), Image.Resampling.NEAREST))
    pixels = images([value], nearest).pixels(np.arange(1), 0)[0]
    np.testing.assert_array_equal(np.rint((pixels * 0.5 + 0.5) * 255), picked)


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
    with pytest.raises(ValueError, match="preprocessor_config.json cannot be read as JSON"):
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


def test_the_report_shows_the_formats_that_are_trained_on():
    assert pictures.FORMATS == FORMATS


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


def test_pixels_of_unknown_black_and_white_are_refused():
    for pixels in (np.linspace(0, 1, 9, dtype=np.float32), np.arange(9, dtype=np.int32) * 10**6):
        value = encoded(Image.fromarray(pixels.reshape(3, 3)), "TIFF")
        with pytest.raises(ValueError, match="row 1: not a readable image .*8 or 16 bits"):
            images([value], Preprocess(8, 8, 3)).pixels(np.arange(1), 0)


def png_of(width, height):
    """A PNG whose header promises so many pixels."""

    def chunk(kind, content):
        end = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + end

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1))  # the first: more would be made for nobody
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


HOSTILE = {
    "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "page.png": b"%PDF-1.4\n",
    "icon.png": encoded(picture(), "ICO"),
    "bomb.png": png_of(1 << 20, 1 << 20),
    "nothing.png": b"",
}


@pytest.mark.parametrize("name", [*HOSTILE, "pipe.png", "folder.png", "/dev/zero"])
def test_a_hostile_file_is_refused_in_one_line_and_starts_nothing(tmp_path, monkeypatch, name):
    mark = tmp_path / "mark"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    file = tmp_path / name
    if name in HOSTILE:
        file.write_bytes(HOSTILE[name])
    elif name == "pipe.png":
        os.mkfifo(file)
    elif name == "folder.png":
        file.mkdir()
    values = [str(file)] + ([HOSTILE[name]] if name in HOSTILE else [])
    for value in values:
        with pytest.raises(ValueError) as error:
            images([value], Preprocess(8, 8, 3)).pixels(np.arange(1), 0)
        place = str(file) if value == str(file) else "a.parquet, row 1"
        assert str(error.value).startswith(f"{place}: not a readable image (")
        assert "\n" not in str(error.value) and " at 0x" not in str(error.value)
    assert thumbnail(str(file)) is None
    assert not mark.exists()


def test_an_image_that_was_opened_elsewhere_starts_nothing_either():
    lazy = Image.open(io.BytesIO(HOSTILE["script.png"]))
    with pytest.raises(ValueError, match="EPS is not one of PNG, JPEG"):
        decode(lazy, 3)


def corrupt_exif():
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    file = bytearray(encoded(picture(), "JPEG", exif=exif))
    place = file.index(b"Exif\0\0") + 14
    file[place : place + 6] = b"\xff" * 6
    return bytes(file)


def test_what_pillow_warns_of_is_one_line_that_names_the_file(tmp_path, caplog, capfd):
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in paths:
        path.write_bytes(corrupt_exif())
    set_of = images([str(path) for path in paths], Preprocess(8, 8, 3))
    shown = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        set_of.pixels(np.arange(3), 0)
    (line,) = caplog.messages
    assert line.startswith(f"{paths[0]}: Corrupt EXIF data") and "\n" not in line
    assert capfd.readouterr() == ("", "") and warnings.showwarning is shown


def test_warnings_are_heard_by_the_thread_that_caused_them(recwarn):
    barrier = threading.Barrier(4)

    def read(number):
        with heard() as messages:
            barrier.wait()
            warnings.warn(f"of {number}", stacklevel=1)
            barrier.wait()
        return messages

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read, range(4))) == [[f"of {i}"] for i in range(4)]
        warnings.warn("of nobody", stacklevel=1)
    assert [str(w.message) for w in recwarn] == ["of nobody"]


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


def test_a_crop_is_made_of_what_lies_in_it_alone():
    pixels, size = np.asarray(picture(size=(23, 31))), (16, 12)
    options = Augment(crop_scale=(0.2, 0.4))
    for seed in range(4):
        left, top, right, bottom = crop_box(
            pixels.shape[:2], (0.2, 0.4), options.crop_ratio, np.random.default_rng(seed)
        )
        other = 255 - pixels
        other[top:bottom, left:right] = pixels[top:bottom, left:right]
        first, second = (
            augmented(
                image,
                options,
                size,
                Image.Resampling.BICUBIC,
                (0, 0, 0),
                np.random.default_rng(seed),
            )[0]
            for image in (pixels, other)
        )
        np.testing.assert_array_equal(first, second)


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
