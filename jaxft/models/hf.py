"""Hugging Face checkpoints in and out: tensor by tensor, never a whole model twice in memory.

Which tensor is which parameter is decided in names.py, bytes on disk are the matter of tensors.py.
"""

import difflib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models import FAMILIES, Architecture, Params, flatten, tensors
from jaxft.models.names import Match, ReadReport, match, stored, to_stored

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_HUB_SECONDS = 5.0  # for the hub's first answer

# Files beside the weights that tokenise text or prepare images; copied as they are.
COMPANIONS = (
    "added_tokens.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def resolve(path_or_hub_id: str) -> str:
    """A local checkpoint directory: the one given, or the hub snapshot of that id.

    Raises:
        ValueError: neither a directory nor an id that the hub or its local cache knows.
    """
    path = os.path.expanduser(path_or_hub_id)
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise ValueError(f"model {path_or_hub_id!r} is a file; give the directory that it is in")
    if not _HUB_ID.fullmatch(path):
        reason = "no such directory, and not of the form of a hub id (NAME or OWNER/NAME)"
    else:
        try:
            return _snapshot(path)
        except ValueError as error:
            reason = f"no such directory, and {error}"
    raise ValueError(f"model {path_or_hub_id!r}: {reason}{_nearest_directory(path)}")


def read_params(
    directory: str,
    architecture: Architecture,
    *,
    key: jax.Array,
    shardings: Params | None = None,
    scratch: bool = False,
) -> tuple[Params, ReadReport]:
    """Reads a checkpoint into fp32 parameters, one tensor (or one device's part of it) at a time.

    Args:
        directory: holds model.safetensors, or shards and their index, in fp32, fp16 or bf16, of the
            base model or of the model with a head.
        key: for head modules that the checkpoint lacks or has for another number of labels.
        shardings: the jax Sharding of every leaf; None puts all on the default device.
        scratch: initialise everything and read nothing.

    Raises:
        ValueError: one line with every missing, unexpected and misshapen tensor; a damaged file.
    """
    leaves = flatten(architecture.abstract)
    places = dict.fromkeys(leaves) if shardings is None else flatten(shardings)
    if scratch:
        found = Match({}, ReadReport(initialised=tuple(leaves)))
    else:
        found = match(directory, architecture)
    values = _initialise(architecture, found.report.initialised, key, places)
    for path, (name, entry) in found.sources.items():
        _, axes = stored(path, leaves[path].ndim)
        values[path] = _read_leaf(entry, name, axes, leaves[path].shape, places[path])
    treedef = jax.tree.structure(architecture.abstract)
    return jax.tree.unflatten(treedef, [values[path] for path in leaves]), found.report


def write_checkpoint(
    output: str,
    architecture: Architecture,
    params: Params,
    *,
    id2label: dict[int, str],
    source: str | None,
    unchanged: Collection[str],
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a directory that transformers loads: config.json, safetensors, tokenizer files.

    Args:
        output: replaced as a whole when all is written; if it exists, a checkpoint or empty.
        params: fully addressable arrays; numpy will do.
        source: the checkpoint directory that the parameters came from; None if from none.
        unchanged: paths whose tensors are copied from `source` byte for byte, in its dtype, where
            it has them. Everything else is written in fp32.

    Raises:
        ValueError: `output` is `source`, or holds something else than a checkpoint.
    """
    assert sorted(id2label) == list(range(architecture.num_labels)), id2label
    if source is not None and os.path.realpath(output) == os.path.realpath(source):
        raise ValueError(f"{output} is the checkpoint that is being read; give another directory")
    pending = _pending(architecture, params, source, frozenset(unchanged))
    config = _exported_config(architecture, id2label, {tensor.dtype for tensor in pending.values()})
    with _replacing(output) as directory:
        tensors.write_sharded(directory, pending, max_bytes=max_shard_bytes)
        with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2, sort_keys=True, ensure_ascii=False)
        if source is not None:
            for name in COMPANIONS:
                if os.path.exists(os.path.join(source, name)):
                    shutil.copyfile(os.path.join(source, name), os.path.join(directory, name))


def fingerprint(directory: str) -> str:
    """SHA-256 of a checkpoint's sizes, headers and 64 pieces of 64 KiB of each file.

    Tells cheaply (4 MiB read per file) that the files were replaced, not that every byte is equal.
    """
    digest = hashlib.sha256()
    for piece in tensors.sample(directory, count=64, length=64 * 1024):
        digest.update(piece)
    return digest.hexdigest()


def _snapshot(hub_id: str) -> str:
    """The hub's newest snapshot or, where it cannot be asked, the one in its local cache."""
    # 0.4 s to import; who has a directory must not pay for it.
    import huggingface_hub
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    revision, reason = None, "the hub is out of reach"
    try:
        # Asked first, and with a time limit: snapshot_download would wait for ever.
        revision = huggingface_hub.HfApi().model_info(hub_id, timeout=_HUB_SECONDS).sha
    except RepositoryNotFoundError:
        reason = "the hub knows no such model that you may read"
    except (HTTPError, OSError) as error:
        reason += f" ({type(error).__name__})"
    try:
        return huggingface_hub.snapshot_download(
            hub_id,
            revision=revision,
            local_files_only=revision is None,
            allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"],
        )
    except LocalEntryNotFoundError:
        raise ValueError(f"{reason} and its local cache lacks it") from None
    except HTTPError as error:
        raise ValueError(f"the download from the hub ended: {type(error).__name__}") from None


def _nearest_directory(path: str) -> str:
    parent, name = os.path.split(os.path.normpath(path))
    siblings = os.listdir(parent or ".") if os.path.isdir(parent or ".") else []
    folders = [other for other in siblings if os.path.isdir(os.path.join(parent, other))]
    close = difflib.get_close_matches(name, folders, n=1)
    return f"; did you mean {os.path.join(parent, close[0])!r}?" if close else ""


def _initialise(
    architecture: Architecture, paths: Collection[str], key: jax.Array, places: dict[str, Any]
) -> dict[str, jax.Array]:
    """The leaves at `paths`, initialised where they belong; jit drops all that is not returned."""
    if not paths:
        return {}

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        values = flatten(architecture.init(key))
        return {path: values[path] for path in paths}

    return jax.jit(chosen, out_shardings={path: places[path] for path in paths})(key)


def _read_leaf(
    entry: tensors.Entry, name: str, axes: tuple[int, ...], shape: tuple[int, ...], place: Any
) -> jax.Array:
    @functools.lru_cache(maxsize=1)  # devices that hold the same part follow each other
    def read(*bounds):
        index = to_stored(tuple(slice(*bound) for bound in bounds), axes)
        return tensors.read(entry, name, index).transpose(axes).astype(np.float32, copy=False)

    if place is None:
        return jnp.asarray(read(*((0, size) for size in shape)))

    def read_part(index):
        return read(*((part.start, part.stop) for part in index))

    return jax.make_array_from_callback(shape, place, read_part)


def _pending(
    architecture: Architecture, params: Params, source: str | None, unchanged: frozenset[str]
) -> dict[str, tensors.Pending]:
    """What is to be written, by name; nothing is read or converted yet."""
    copied = match(source, architecture).sources if source and unchanged else {}
    pending = {}
    for path, leaf in flatten(params).items():
        name, axes = stored(path, leaf.ndim)
        if path in unchanged and path in copied:
            old_name, entry = copied[path]
            read = functools.partial(tensors.read, entry, old_name)
            pending[name] = tensors.Pending(entry.shape, entry.dtype, read)
        else:
            read = functools.partial(_stored_array, leaf, axes)
            pending[name] = tensors.Pending(to_stored(leaf.shape, axes), "F32", read)
    return pending


def _stored_array(leaf: Any, axes: tuple[int, ...]) -> np.ndarray:
    return np.asarray(leaf, np.float32).transpose(np.argsort(axes))


def _exported_config(
    architecture: Architecture, id2label: dict[int, str], dtypes: Collection[str]
) -> dict[str, Any]:
    config = dict(architecture.hf_config)
    source_dtype = config.pop("torch_dtype", None)  # the old name of `dtype`
    source_dtype = config.pop("dtype", None) or source_dtype
    for stale in ("num_labels", "_num_labels", "finetuning_task"):
        config.pop(stale, None)
    return config | {
        "architectures": [FAMILIES[architecture.family].ARCHITECTURE],
        # transformers casts everything to this dtype: fp32 as soon as one tensor needs it.
        "dtype": "float32" if "F32" in dtypes else source_dtype,
        "id2label": {str(index): name for index, name in id2label.items()},
        "label2id": {name: index for index, name in id2label.items()},
        "problem_type": "single_label_classification",
    }


@contextmanager
def _replacing(output: str) -> Iterator[str]:
    """A directory to fill, which takes the place of `output` on success and vanishes otherwise."""
    output = os.path.abspath(output)
    known = {*COMPANIONS, "config.json", "README.md", tensors.INDEX}
    present = os.listdir(output) if os.path.isdir(output) else []
    # The old directory is deleted in the end: never one in which somebody keeps other things.
    foreign = [name for name in present if name not in known and not name.endswith(".safetensors")]
    if foreign:
        raise ValueError(f"{output} holds {foreign[0]!r}, so it is no checkpoint to be replaced")
    new, old = f"{output}.writing", f"{output}.old"
    for leftover in (new, old):  # of a process that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    os.makedirs(new)
    try:
        yield new
        if os.path.isdir(output):
            os.replace(output, old)
        os.replace(new, output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
