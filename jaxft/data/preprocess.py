"""How a checkpoint wants its images, read strictly from its JSON, and the arithmetic.

The processors are transformers' ViT and ConvNeXT ones (their Pillow forms), of
preprocessor_config.json, and timm's for evaluation, of `pretrained_cfg` in config.json; what they cannot
do is refused here.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxft.base.json_file import read_object

# What timm normalises by where a model does not say: the colours of ImageNet.
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_RESAMPLING = {one.name.lower(): one for one in Image.Resampling}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How an image becomes an array [height, width, channels]; fields as in the processor."""

    height: int
    width: int
    channels: int
    do_resize: bool = True
    shortest_edge: int | None = None  # the shorter side becomes this and the middle is cut out
    resample: Image.Resampling = Image.Resampling.BILINEAR
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    # timm's (height, width) that the image is made to cover, before the middle is cut out.
    cover: tuple[int, int] | None = None

    @classmethod
    def from_checkpoint(cls, directory: str, *, image_size: Any, channels: int) -> Preprocess:
        """Reads preprocessor_config.json, else timm's config.json; else image_size, mean and std 0.5.

        image_size, channels: what the model takes; image_size is an integer or (height, width), which
          are None where it takes any: then the processor says to what images are resized.
        Raises ValueError if the processor does something else than resize, rescale, normalise,
        gives images of another size than the model takes, or if a value is none that it may be.
        """
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        file = Path(directory) / "preprocessor_config.json"
        raw = read_object(file)
        if raw is None:
            config = Path(directory) / "config.json"
            if (timm := _pretrained_cfg(config)) is not None:
                return _of_timm(config, timm, height, width, channels)
            if height is None:
                raise ValueError(f"{file} is missing; it says to what size images are resized")
            return cls(height, width, channels)
        flags = {name: _flag(file, raw, name) for name in ("do_resize", "do_rescale")}
        shortest_edge = None
        if flags["do_resize"] or height is None:
            height, width, shortest_edge = _size(file, raw, height, width)
        mean, std = [0.0], [1.0]
        if _flag(file, raw, "do_normalize"):
            mean = _per_channel(file, raw, "image_mean", channels)
            std = _per_channel(file, raw, "image_std", channels)
        known = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"}
        other = [k for k in raw if k.startswith("do_") and raw[k] and k not in known]
        if other:
            raise ValueError(f"{file}: {', '.join(other)[:200]} is not supported")
        return cls(
            height,
            width,
            channels,
            flags["do_resize"],
            shortest_edge if flags["do_resize"] else None,
            _resampling(file, raw),
            _factor(file, raw) if flags["do_rescale"] else 1.0,
            tuple(mean),
            tuple(std),
        )

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., height, width, channels] -> float32: (pixels * rescale - mean) / std.

        As one product and one difference in float32, whose factors are computed in float64: within
        5e-7 of transformers, which rescales in float64, and ten times as fast.
        """
        std = np.asarray(self.std, np.float64)
        factor, offset = self.rescale / std, np.asarray(self.mean, np.float64) / std
        *_, width, channels = pixels.shape
        # Rows of width * channels: numpy is slow where the last axis has three elements.
        rows = pixels.reshape(-1, width * channels).astype(np.float32)
        rows *= np.tile(np.broadcast_to(factor, channels), width).astype(np.float32)
        rows -= np.tile(np.broadcast_to(offset, channels), width).astype(np.float32)
        return rows.reshape(pixels.shape)


def _pretrained_cfg(file: Path) -> dict[str, Any] | None:
    """What timm's config.json says of images; None if it is another's."""
    raw = read_object(file) or {}
    if "architecture" not in raw or "model_type" in raw:
        return None
    given = raw.get("pretrained_cfg", raw)
    if not isinstance(given, dict):
        raise ValueError(f"{file}: pretrained_cfg is {given!r:.80}; it must be a JSON object")
    return given


def _of_timm(
    file: Path, raw: dict[str, Any], height: int | None, width: int | None, channels: int
) -> Preprocess:
    """What `timm.data.create_transform` does in evaluation, with the same defaults."""
    size = raw.get("input_size") or [channels, 224, 224]
    if not isinstance(size, list) or len(size) != 3 or not all(map(_is_side, size)):
        raise ValueError(
            f"{file}: input_size is {size!r:.80}; it must be [channels, height, width]"
        )
    if height is not None and size[1:] != [height, width]:
        raise ValueError(f"{file}: input_size is {size}, but the model takes {height} x {width}")
    name, mode = raw.get("interpolation") or "bicubic", raw.get("crop_mode") or "center"
    if not isinstance(name, str) or name not in _RESAMPLING:
        choices = ", ".join(_RESAMPLING)
        raise ValueError(f"{file}: interpolation is {name!r:.80}; it must be one of {choices}")
    share = _share(file, raw)
    if mode != "center" and (mode, share) != ("squash", 1):
        raise ValueError(
            f"{file}: crop_mode is {mode!r:.80}, crop_pct {share}; only 'center', or 'squash' with 1"
        )
    means = {"mean": _IMAGENET_MEAN, "std": _IMAGENET_STD}
    given = {key: raw.get(key) or default for key, default in means.items()}
    mean, std = (tuple(_per_channel(file, given, key, channels)) for key in means)
    cover = (math.floor(size[1] / share), math.floor(size[2] / share))
    return Preprocess(
        size[1], size[2], channels,
        resample=_RESAMPLING[name], mean=mean, std=std, cover=cover if mode == "center" else None,
    )  # fmt: skip


def _size(
    file: Path, raw: dict[str, Any], height: int | None, width: int | None
) -> tuple[int, int, int | None]:
    """(height, width, shortest edge) that images get; `height` x `width`, if given, and no other."""
    cropped = _cuts(raw)
    size = raw.get("size", {"shortest_edge": 384} if cropped else {"height": 224, "width": 224})
    names = ("shortest_edge",) if cropped else ("height", "width")
    sides = {name: size for name in names} if _is_side(size) else size
    given = set(sides) if isinstance(sides, dict) else set()
    valid = given == set(names) and all(map(_is_side, sides.values()))
    found = tuple(sides[name] for name in names) * (2 if cropped else 1) if valid else ()
    if height is not None and found != (height, width):
        raise ValueError(
            f"{file}: images are resized to {sides!r:.80}, but the model takes {height} x {width}"
        )
    if not valid:
        raise ValueError(
            f"{file}: size is {size!r:.80}; it must be a number of pixels, or {' and '.join(names)}"
        )
    # The processor's own rule: large images are squeezed, small ones lose their margin.
    edge = int(found[0] / _share(file, raw)) if cropped and found[0] < 384 else None
    return found[0], found[1], edge


def _cuts(raw: dict[str, Any]) -> bool:
    """Whether the processor is ConvNeXT's, which cuts out the middle."""
    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    return isinstance(kind, str) and kind.startswith("ConvNext")


def _share(file: Path, raw: dict[str, Any]) -> float:
    """Of the shorter side, what is kept of it."""
    value = raw.get("crop_pct")
    value = 224 / 256 if value is None else value  # ConvNeXT's default, and timm's
    if not _is_number(value) or not 0.01 <= value <= 1:
        raise ValueError(f"{file}: crop_pct is {value!r:.80}; it must be a number from 0.01 to 1")
    return float(value)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 2**16


def _flag(file: Path, raw: dict[str, Any], name: str) -> bool:
    value = raw.get(name, True)
    if value is not None and not isinstance(value, bool):  # "false" would count as true
        raise ValueError(f"{file}: {name} is {value!r:.80}; it must be true or false")
    return bool(value)


def _resampling(file: Path, raw: dict[str, Any]) -> Image.Resampling:
    value = raw.get("resample")
    if value is None:
        return Image.Resampling.BICUBIC if _cuts(raw) else Image.Resampling.BILINEAR
    if type(value) is not int or value not in list(Image.Resampling):
        choices = ", ".join(f"{r.value} {r.name.lower()}" for r in sorted(Image.Resampling))
        raise ValueError(f"{file}: resample is {value!r:.80}; it must be one of {choices}")
    return Image.Resampling(value)


def _factor(file: Path, raw: dict[str, Any]) -> float:
    value = raw.get("rescale_factor", 1 / 255)
    if not _is_number(value) or not 0 < value <= 1e6:
        raise ValueError(
            f"{file}: rescale_factor is {value!r:.80}; it must be a number above 0, usually 1/255"
        )
    return float(value)


def _per_channel(file: Path, raw: dict[str, Any], name: str, channels: int) -> list[float]:
    given = raw.get(name)
    given = [0.5] if given is None else given
    values = given if isinstance(given, list) and given else [given]
    positive = name.endswith("std")
    for value in values:
        if not _is_number(value) or abs(value) > 1e6 or (positive and value <= 1e-6):
            raise ValueError(
                f"{file}: {name} is {given!r:.80}; it must be a number"
                + (" above 0" if positive else "")
                + f" or a list of {channels}"
            )
    if len(values) != channels and len(set(values)) > 1:
        raise ValueError(
            f"{file}: {name} has {len(values)} values; the model takes {channels} channels"
        )
    return [float(value) for value in values[:channels]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
