"""Safetensors files on disk: what they hold, one tensor at a time in, a stream out.

Every read opens the file anew: a mapping kept open counts each page it ever touched as resident, so
the checkpoint would be in memory next to the parameters. Nothing here knows about models.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxft.base.json_file import brief, read_json, require_plain
from jaxft.models.checkpoint.checkpoint_files import listed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Of tensors that are for no class of transformers, which would warn of them; beside the others.
APART = "sentence_classifier.safetensors"
_FILE = re.compile(r"[^/\\\0]+\.safetensors")
_SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
_COMPARED = 2**22  # elements at a time
_WRITTEN = 2**24  # bytes at a time, of what must be converted or transposed
_WRITER = {"writer": "jaxft"}  # in the metadata of a file, where other readers ignore it

# By the names of the format, https://github.com/huggingface/safetensors#format.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
}


def readable_as(dtype: np.dtype) -> tuple[str, ...]:
    """The formats, of DTYPES, that a leaf of `dtype` is read from: whole numbers or floats."""
    whole = np.issubdtype(dtype, np.integer)
    return tuple(name for name in DTYPES if name.startswith("I") == whole)


class Entry(NamedTuple):
    """Where a tensor is and what it says it is."""

    file: str
    shape: tuple[int, ...]
    dtype: str  # by the format's name; not always one of DTYPES


class Pending(NamedTuple):
    """A tensor to be written; `read` is called when its turn comes and its result let go.

    Attributes:
        dtype: one of DTYPES, to which what `read` gives is converted, some megabytes at a time.
        join: where `read` is a collective, what other processes, which write nothing, call meanwhile.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    join: Callable[[], object] | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return int(np.prod(self.shape)) * DTYPES[self.dtype].itemsize


def files(directory: str) -> list[str]:
    """The safetensors files of a checkpoint, plain files all of them.

    Raises:
        ValueError: there are none, the index is none or names what is not there or is elsewhere.
    """
    apart = os.path.join(directory, APART)
    if os.path.exists(apart):
        require_plain(apart)
        return [*_model_files(directory), apart]
    return _model_files(directory)


def _model_files(directory: str) -> list[str]:
    single, index = os.path.join(directory, SINGLE), os.path.join(directory, INDEX)
    if os.path.exists(single):
        require_plain(single)
        return [single]
    if not os.path.exists(index):
        others = [name for name in os.listdir(directory) if name.endswith((".bin", ".h5"))]
        hint = f"; {others[0]} must be saved as safetensors first" if others else ""
        raise ValueError(f"{directory} has no {SINGLE}{hint}")
    names = _shards(index)
    absent = [name for name in names if not os.path.exists(os.path.join(directory, name))]
    if absent:
        raise ValueError(f"{directory} lacks {listed(absent)}, which {INDEX} names")
    found = [os.path.join(directory, name) for name in names]
    for path in found:
        require_plain(path)
    return found


def _shards(index: str) -> list[str]:
    """Names of the files that an index points to, in order."""
    raw = read_json(index)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} is no index of safetensors files: it has no weight_map")
    for name in weight_map.values():
        # Never a path: it could lead out of the checkpoint.
        if not isinstance(name, str) or not _FILE.fullmatch(name):
            raise ValueError(
                f"{index} is no index of safetensors files: its weight_map names {brief(name)}"
            )
    return sorted(set(weight_map.values()))


def entries(directory: str) -> dict[str, Entry]:
    """Every tensor of a checkpoint by name.

    Raises:
        ValueError: as `files`; a file that is damaged or cut short; a tensor in two files.
    """
    found: dict[str, Entry] = {}
    for path in files(directory):
        with _open(path) as file:
            for name in file.keys():
                piece = file.get_slice(name)
                if name in found:
                    raise ValueError(f"{path} holds {brief(name)}, as does {found[name].file}")
                found[name] = Entry(path, tuple(piece.get_shape()), piece.get_dtype())
    return found


def is_weights(name: str) -> bool:
    """Whether `write_sharded` writes files of that name."""
    return name in (SINGLE, INDEX, APART) or bool(_SHARD.fullmatch(name))


def written_here(directory: str) -> bool:
    """Whether the weights of a checkpoint come from `write`."""
    try:
        for path in files(directory):
            with _open(path) as file:
                if not _WRITER.items() <= (file.metadata() or {}).items():
                    return False
    except ValueError:
        return False
    return True


@contextmanager
def _open(path: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} is no complete safetensors file: {reason}") from None


def read(entry: Entry, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
    """One tensor, or the part of it that `index` selects, in the file's dtype."""
    with _open(entry.file) as file:
        return file.get_tensor(name) if index is None else file.get_slice(name)[index]


def require_equal(name: str, entry: Entry, other_name: str, other: Entry) -> None:
    """Compares two tensors that should be one, some megabytes at a time.

    Raises:
        ValueError: they differ, so reading one of them would silently change the model.
    """
    same = (entry.shape, entry.dtype) == (other.shape, other.dtype)
    rows = max(1, _COMPARED // max(1, int(np.prod(entry.shape[1:]))))
    for start in range(0, entry.shape[0], rows):
        part = (
            slice(start, min(start + rows, entry.shape[0])),
            *(slice(None) for _ in entry.shape[1:]),
        )
        same = same and np.array_equal(read(entry, name, part), read(other, other_name, part))
    if not same:
        raise ValueError(
            f"{other.file}: {name} and {other_name} are one tensor in this model, but differ there"
        )


def write(path: str, tensors: dict[str, Pending]) -> None:
    """Writes one file tensor after tensor: the library's save_file wants them all in memory.

    Raises:
        ValueError: a tensor has values that its dtype cannot hold.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **_WRITER}}
    end = 0
    for name in (names := _ordered(tensors)):
        start, end = end, end + tensors[name].size
        shape, dtype = list(tensors[name].shape), tensors[name].dtype
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _append(file, name, tensors[name])


def _append(file: BinaryIO, name: str, tensor: Pending) -> None:
    """In a function of its own, which holds nothing of the tensor when the next one is read."""
    for part in _parts(name, tensor):
        file.write(part.reshape(-1).view(np.uint8).data)


def _ordered(tensors: dict[str, Pending]) -> list[str]:
    """Names as they lie in a file: widest dtypes first, as the library does, so that each is aligned."""
    return sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype].itemsize, name))


def _parts(name: str, tensor: Pending) -> Iterator[np.ndarray]:
    """A tensor in its dtype and in C order. To convert or transpose it no copy of the whole is made."""
    dtype, array = DTYPES[tensor.dtype], tensor.read()
    assert array.shape == tensor.shape, name
    array = np.atleast_1d(array)
    if array.dtype == dtype and array.flags.c_contiguous:
        yield array
        return
    rows = max(1, _WRITTEN * len(array) // max(1, tensor.size))
    for start in range(0, len(array), rows):
        given = array[start : start + rows]
        with np.errstate(over="ignore"):
            part = np.ascontiguousarray(given, dtype)
        if dtype.itemsize < 4 and (np.isinf(part) & np.isfinite(given)).any():
            largest = float(np.abs(given[np.isfinite(given)]).max())
            raise ValueError(
                f"{name} has values up to {largest:.3g}, which {dtype.name} cannot hold"
            )
        yield part


def write_sharded(directory: str, tensors: dict[str, Pending], *, max_bytes: int) -> None:
    """model.safetensors, or numbered shards of at most `max_bytes` and an index, as HF has them; and those
    whose name begins as APART does in that file.

    Raises:
        ValueError: as `write`.
    """
    weight_map: dict[str, str] = {}
    for name, own in _cut(tensors, max_bytes):
        write(os.path.join(directory, name), own)
        if name not in (SINGLE, APART):
            weight_map.update(dict.fromkeys(own, name))
    if weight_map:
        total = sum(tensors[name].size for name in weight_map)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        with open(os.path.join(directory, INDEX), "w", encoding="utf-8") as file:
            json.dump(index, file, indent=2)


def join_writing(tensors: dict[str, Pending], *, max_bytes: int) -> None:
    """What a process that writes nothing does while another is in `write_sharded`, with equal arguments."""
    for _, own in _cut(tensors, max_bytes):
        for name in _ordered(own):
            if (join := own[name].join) is not None:
                join()


def _cut(tensors: dict[str, Pending], max_bytes: int) -> Iterator[tuple[str, dict[str, Pending]]]:
    """(name of a file, what is in it), in the order of writing."""
    begin = APART.partition(".")[0] + "."
    apart = {name: tensor for name, tensor in tensors.items() if name.startswith(begin)}
    if apart:
        yield APART, apart
        tensors = {name: tensor for name, tensor in tensors.items() if name not in apart}
    shards = split(tensors, max_bytes)
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        yield file if shards[1:] else SINGLE, {name: tensors[name] for name in names}


def split(tensors: dict[str, Pending], max_bytes: int) -> list[list[str]]:
    """Consecutive names of at most `max_bytes` together; a larger tensor is alone."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.size > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.size
    return shards


def sample(directory: str, *, count: int, length: int) -> Iterator[bytes]:
    """Of each file its size, its header, and `count` evenly spaced pieces of `length` bytes."""
    for path in files(directory):
        size = os.path.getsize(path)
        yield size.to_bytes(8, "little")
        with open(path, "rb") as file:
            header = file.read(8)
            yield header + file.read(min(int.from_bytes(header, "little"), size))
            for i in range(count):
                file.seek(i * max(size - length, 0) // (count - 1))
                yield file.read(length)
