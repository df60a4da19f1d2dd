"""Checkpoints of pickled PyTorch weights made safetensors, by PyTorch's own weights-only loader.

Nothing here unpickles: `torch.load(weights_only=True)` refuses everything but tensors and containers.
"""

import dataclasses
import functools
import os
import re
import shutil
from typing import Any

import numpy as np

from jaxft.base.json_file import brief, read_json
from jaxft.models.checkpoint import companions, hf, tensors
from jaxft.models.checkpoint.checkpoint_files import replacing, require_plain

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_FILE = re.compile(r"[^/\\\0]+\.bin")


@dataclasses.dataclass(frozen=True)
class Converted:
    """What was done: how many tensors, from which files, to which, and which names were of one tensor."""

    tensors: int
    files: tuple[str, ...]
    written: str
    tied: tuple[str, ...]


def convert(directory: str, output: str) -> Converted:
    """Writes `output` with the weights of `directory` as safetensors, and all else that it needs.

    Raises:
        ValueError: no PyTorch, no such file, one that holds more than tensors, or an output that must
            stay as it is.
        OSError: it cannot be read or written.
    """
    hf.check_output(output, directory)
    files = _files(directory)
    found: dict[str, Any] = {}
    for name in files:
        found |= _loaded(os.path.join(directory, name))
    kept, tied = _once(found)
    pending = {
        name: tensors.Pending(
            tuple(tensor.shape), _DTYPES[str(tensor.dtype)], functools.partial(_array, tensor)
        )
        for name, tensor in kept.items()
    }
    with replacing(output, hf.check_output) as fresh:
        tensors.write_sharded(fresh, pending, max_bytes=hf.MAX_SHARD_BYTES)
        require_plain(os.path.join(directory, "config.json"))
        shutil.copyfile(os.path.join(directory, "config.json"), os.path.join(fresh, "config.json"))
        companions.copy(directory, fresh)
        written = (
            tensors.SINGLE if os.path.exists(os.path.join(fresh, tensors.SINGLE)) else tensors.INDEX
        )
    return Converted(len(kept), tuple(files), written, tied)


_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
}


def _files(directory: str) -> list[str]:
    index = os.path.join(directory, INDEX)
    if os.path.exists(os.path.join(directory, SINGLE)):
        names = [SINGLE]
    elif os.path.exists(index):
        raw = read_json(index)
        weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
        if not names or not all(map(_FILE.fullmatch, names)):
            raise ValueError(f"{index} is no index of pickled weights")
    else:
        raise ValueError(f"{directory} has no {SINGLE} and no {INDEX}; nothing is to be converted")
    for name in names:
        require_plain(os.path.join(directory, name))
    return names


def _loaded(path: str) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise ValueError(
            "converting pickled weights needs PyTorch, whose weights-only loader reads them: "
            "pip install torch"
        ) from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 of many kinds, by what the pickle holds
        # Not the loader's own words, which advise to load it without the protection.
        raise ValueError(
            f"{path} is refused by PyTorch's weights-only loader ({type(error).__name__}): it is damaged, "
            "or holds more than tensors, which could run code"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{path} holds {brief(name)}, which is no tensor")
        if str(tensor.dtype) not in _DTYPES:
            raise ValueError(
                f"{path}: {brief(name)} is {tensor.dtype}; {', '.join(_DTYPES)} are converted"
            )
    return found


def _once(found: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tensors, one name each, and the names that were left out since theirs is another's tensor."""
    seen: dict[tuple[Any, ...], str] = {}
    kept, tied = {}, []
    for name, tensor in found.items():
        place = (
            tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape),
            tuple(tensor.stride()),
        )  # fmt: skip
        if tensor.numel() and place in seen:
            tied.append(f"{name} (as {seen[place]})")
        else:
            seen[place] = name
            kept[name] = tensor
    return kept, tuple(tied)


def _array(tensor: Any) -> np.ndarray:
    dtype = tensors.DTYPES[_DTYPES[str(tensor.dtype)]]
    import torch

    # numpy has no bfloat16 of its own: the bytes are the same.
    plain = (
        tensor.contiguous().view(torch.int16) if dtype.name == "bfloat16" else tensor.contiguous()
    )
    return plain.numpy().view(dtype)
