"""Images as the checks see them: readable or not, their form, their pixels' hash, and what they look like."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxft.data.decode import FORMATS, check_file, decode, heard, reason
from jaxft.insight.finding import SHOWN, Finding, graded, percent
from jaxft.insight.parts import Part, said_of_sample

_SIDE = 16  # of the picture whose differences are hashed
_SMALL = 24  # of the picture by which candidates are compared
# Differing bits of 256 up to which two images are candidates, and how far their small versions, of mean
# 0 and deviation 1, may be apart on average. Photographs that were saved again, halved, made lighter or
# grey are within both; what was cropped or turned is not.
_BITS, _APART = 40, 0.12
_LEAST = 32  # pixels of the shorter side, below which different images of a kind look the same
_FLAT = 2.0  # standard deviation of grey levels, up to which an image shows nothing
_TINY, _LONG = 16, 5.0  # pixels of the shorter side; width over height or the reverse
_BLOCK = 512  # images that are compared with all others at a time
_NOTHING = np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True)
class Look:
    """What was seen of one image.

    Attributes:
      fault: why it cannot be read, '' if it can; the others are then empty or 0.
      key: hash of its pixels, as decoded.
      bits: [_SIDE * _SIDE] bool; small: [_SMALL, _SMALL] float32, grey.
      width, height: pixels; `form`, `mode`: of the file, as Pillow names them; `size`: bytes, 0 if unknown.
    """

    fault: str = ""
    key: bytes = b""
    bits: np.ndarray = dataclasses.field(default_factory=lambda: _NOTHING)
    small: np.ndarray = dataclasses.field(default_factory=lambda: _NOTHING)
    width: int = 0
    height: int = 0
    form: str = ""
    mode: str = ""
    size: int = 0


def look(value: Any) -> Look:
    """Of a path, encoded bytes, a Pillow image or an array, as data/decode.py takes them."""
    try:
        with heard():
            form, mode, size = _file(value)
            image = decode(value, 3)
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble on
        return Look(fault=reason(error))
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    grey = image.convert("L")
    small = np.asarray(grey.resize((_SMALL, _SMALL), Image.Resampling.BOX), np.float32)
    fine = np.asarray(grey.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), np.int16)
    # Krawetz' difference hash: whether it grows lighter to the right.
    bits = (fine[:, 1:] > fine[:, :-1]).ravel()
    return Look("", digest.digest(), bits, small, *image.size, form, mode, size)


def _file(value: Any) -> tuple[str, str, int]:
    """(format, mode, bytes) of what is a file or its bytes; ('', '', 0) of pixels."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str | Path):
        return "", "", 0
    data = Path(value) if isinstance(value, str | Path) else io.BytesIO(value)
    size = check_file(data).st_size if isinstance(data, Path) else len(data.getvalue())
    with Image.open(data, formats=FORMATS) as image:
        return image.format or "", image.mode, size


def looks(part: Part) -> list[Look]:
    """Of all images of a part, one decoded at a time."""
    return [look(value) for value in part.images()]


def keys(seen: Sequence[Look]) -> np.ndarray:
    """[n] 'V16', equal where all pixels are; of images that cannot be read each its own."""
    return np.array([x.key or number.to_bytes(16, "big") for number, x in enumerate(seen)], "V16")


def small(seen: Sequence[Look]) -> np.ndarray:
    """[n, _SMALL * _SMALL] float32, grey; 0 of images that cannot be read."""
    blank = np.zeros((_SMALL, _SMALL), np.float32)
    return np.stack([blank if x.fault else x.small for x in seen]).reshape(len(seen), -1)


def forms(seen: Sequence[Look]) -> dict[str, list[Any]]:
    """Facts of the files, by name, [n] each: what a model may learn instead of what they show."""
    return {
        "width": [x.width for x in seen],
        "height": [x.height for x in seen],
        "format": [x.form for x in seen],
        "mode": [x.mode for x in seen],
        "bytes of the file": [x.size for x in seen],
    }


def findings(parts: Sequence[Part], seen: Sequence[Sequence[Look]]) -> list[Finding]:
    """On images that cannot be read, show nothing, or are of a form that most are not."""
    every = [(part, i, x) for part, own in zip(parts, seen, strict=True) for i, x in enumerate(own)]
    readable = [(part, i, x) for part, i, x in every if not x.fault]
    kinds = [
        ("unreadable images", [(p, i, x.fault) for p, i, x in every if x.fault], (1e-9, 1e-9),
         "mend or remove them: train stops where it meets one"),
        ("flat images", [(p, i, "one colour") for p, i, x in readable if x.small.std() <= _FLAT],
         (0.001, 0.05), "they show nothing that could be learned"),
        ("tiny images", [(p, i, f"{x.width} x {x.height}") for p, i, x in readable
                         if min(x.width, x.height) < _TINY < _usual(readable)], (0.001, 0.1),
         "they are enlarged to the size of the model and are then a blur"),
        ("long images", [(p, i, f"{x.width} x {x.height}") for p, i, x in readable
                         if max(x.width, x.height) > _LONG * min(x.width, x.height)], (0.01, 1.1),
         "resizing squeezes them, or cropping loses their ends"),
        ("odd modes", _odd(readable), (0.05, 1.1), "a few images of another kind than most: grey, with "
         "transparency, CMYK"),
    ]  # fmt: skip
    rows = len(every)
    return [
        Finding(
            name,
            graded(len(hits) / rows, *levels),
            f"{percent(len(hits), rows)} images{said_of_sample(list(parts))}",
            advice,
            ("image", "what"),
            tuple((p.where(i), what) for p, i, what in hits[:SHOWN]),
            {"rows": [[p.name, int(p.rows[i])] for p, i, _ in hits]},
            tuple((p.picture(i),) for p, i, _ in hits[:SHOWN])
            if name != "unreadable images"
            else (),
        )
        for name, hits, levels, advice in kinds
        if hits
    ] + [_sizes(readable)]


def _usual(readable: Sequence[tuple[Part, int, Look]]) -> float:
    """The median of the shorter sides: where all are tiny, none is odd."""
    return float(np.median([min(x.width, x.height) for _, _, x in readable]))


def _odd(readable: Sequence[tuple[Part, int, Look]]) -> list[tuple[Part, int, str]]:
    counts = Counter(x.mode for _, _, x in readable)
    usual = counts.most_common(1)[0][0] if counts else ""
    return [(p, i, x.mode) for p, i, x in readable if x.mode != usual and x.mode and usual]


def _sizes(readable: Sequence[tuple[Part, int, Look]]) -> Finding:
    if not readable:
        return Finding("images", "note", "none can be read")
    widths, heights = (
        np.array([getattr(x, n) for _, _, x in readable]) for n in ("width", "height")
    )
    forms = ", ".join(
        f"{n} {f or 'arrays'}" for f, n in Counter(x.form for *_, x in readable).most_common(4)
    )
    return Finding(
        "images",
        "note",
        f"{np.median(widths):.0f} x {np.median(heights):.0f} pixels in the median, from "
        f"{widths.min()} x {heights.min()} to {widths.max()} x {heights.max()}; {forms}",
    )


def near_pairs(seen: Sequence[Look], unique: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """(earlier, later, likeness from 0 to 1) of images that nearly look the same.

    Args:
      seen: of all parts, one after the other.
      unique: indices of those that are compared.
    """
    chosen = np.array([i for i in unique if _comparable(seen[i])], int)
    if not len(chosen):
        return
    packed = np.packbits(np.stack([seen[i].bits for i in chosen]), axis=1).view(np.uint64)
    small = np.stack([seen[i].small for i in chosen]).reshape(len(chosen), -1)
    # Lighter or darker, and of more or less contrast, is the same picture.
    small = (small - small.mean(1, keepdims=True)) / small.std(1, keepdims=True)
    for start in range(0, len(chosen), _BLOCK):
        block = packed[start : start + _BLOCK]
        bits = np.zeros((len(block), len(chosen)), np.uint16)
        for word in range(packed.shape[1]):
            bits += np.bitwise_count(block[:, word, None] ^ packed[None, :, word])
        for row, other in zip(*np.nonzero(bits <= _BITS), strict=True):
            later = start + int(row)
            if other < later:
                apart = np.abs(small[later] - small[other]).mean()
                if apart <= _APART:
                    yield int(chosen[other]), int(chosen[later]), 1 - float(apart)


def _comparable(seen: Look) -> bool:
    return not seen.fault and min(seen.width, seen.height) >= _LEAST and seen.small.std() > _FLAT
