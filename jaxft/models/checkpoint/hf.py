"""Checkpoints in and out, Hugging Face's and timm's: tensor by tensor, never a whole model twice in memory.

Which tensor is which parameter is decided in names.py; bytes on disk are read and written by tensors.py.
"""

import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models.checkpoint import companions, sentence_transformers, tensors
from jaxft.models.checkpoint.checkpoint_files import (
    COMPANIONS,
    PREPROCESSOR,
    TOKENIZER,
    digest,
    replacing,
)
from jaxft.models.checkpoint.exported_config import exported_config
from jaxft.models.checkpoint.growth import read_grown
from jaxft.models.checkpoint.names import Match, ReadReport, match
from jaxft.models.checkpoint.to_write import to_write
from jaxft.models.contract import Architecture
from jaxft.models.family import Stored
from jaxft.models.tree import Params, by_path

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MAX_SHARD_BYTES = 5 * 10**9  # HF's default
_HUB_SECONDS = 5.0  # for the hub's first answer


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
    only: Collection[str] | None = None,
) -> tuple[Params, ReadReport]:
    """Reads a checkpoint into fp32 parameters, one tensor (or one device's part of it) at a time.

    Returns the tree of `architecture.whole`, batch statistics included, and what was not as in it.

    Args:
        directory: holds model.safetensors, or shards and their index, in fp32, fp16 or bf16, of the
            base model or of the model with a head.
        key: for head modules that the checkpoint lacks or has for another number of labels, and for
            the rows of new tokens.
        shardings: the jax Sharding of every leaf of that tree; None puts all on the default device.
        scratch: initialise everything and read nothing.
        only: paths; the other leaves are shapes with their sharding, and nothing of them is read.

    Raises:
        ValueError: one line with every missing, unexpected and misshapen tensor; a damaged file;
            tied tensors that differ.
    """
    leaves = by_path(architecture.whole)
    places = dict.fromkeys(leaves) if shardings is None else by_path(shardings)
    if scratch and not architecture.from_scratch:
        raise ValueError(
            f"{directory}: how {architecture.exports} is initialised is not known; set "
            "config.model.scratch=False"
        )
    if scratch:
        found = Match({}, ReadReport(initialised=tuple(architecture.depths)))
    else:
        found = match(directory, architecture)
    for path, name, entry in found.again if only is None else ():
        tensors.require_equal(*found.sources[path], name, entry)
    values: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[path])
        for path, leaf in leaves.items()
        if only is not None and path not in only
    }
    new = [path for path in leaves if path not in found.sources and path not in values]
    values |= initialise(architecture, new, key, shardings)
    if not scratch:
        values |= read_grown(directory, architecture, key, shardings, leave=values)
    for path, (name, entry) in found.sources.items():
        if path in values:
            continue
        values[path] = _read_leaf(
            entry, name, architecture.stored[path], leaves[path], places[path]
        )
    treedef = jax.tree.structure(architecture.whole)
    return jax.tree.unflatten(treedef, [values[path] for path in leaves]), found.report


def missing(directory: str, architecture: Architecture) -> tuple[str, ...]:
    """Paths of the parameters that `read_params` would newly initialise; reads headers alone.

    Raises:
        ValueError: as `read_params`: no weights, or tensors that do not fit.
    """
    return match(directory, architecture).report.initialised


def write_checkpoint(
    output: str,
    architecture: Architecture,
    params: Params,
    *,
    id2label: dict[int, str],
    source: str | None,
    unchanged: Collection[str],
    problem_type: str | None = "single_label_classification",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: str = "",
    card: str = "",
    fitted: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    beside: Mapping[str, Any] | None = None,
    fetch: Callable[[Any], Any] = np.asarray,
) -> None:
    """Writes a directory that transformers loads: config.json, safetensors, tokenizer files.

    The config.json of a family of timm's is timm's.

    Args:
        output: replaced as a whole when all is written. A killed process can leave a directory
            `OUTPUT.exporting-XXXXXXXX` beside it: see `checkpoint_files.replacing`.
        params: in the structure of `architecture.whole`, of whatever `fetch` takes.
        source: the checkpoint directory that the parameters came from; None if from none.
        unchanged: paths whose tensors are copied from `source` byte for byte, in its dtype, where
            it has them in this shape. Everything else is written in fp32, counts as 64-bit integers.
        max_shard_bytes: of a file of weights; a larger tensor has one of its own.
        dtype: 'F32', 'F16' or 'BF16' for every tensor but counts, the unchanged ones included; '':
            as said.
        card, files: text of README.md, '' for none; and of COMPANIONS in place of those of `source`.
        problem_type: of an HF config.json, by which sequence classifiers choose their loss; None
            leaves it out.
        fitted: see `exported_config`.
        beside: of sentence-transformers' layout; see `sentence_transformers.layout`.
        fetch: of one of `params` the whole, readable by numpy; called when the tensor is written, and its
            result let go before the next. Where it is a collective, other processes `join_writing`.

    Raises:
        ValueError: as `check_output`; values that `dtype` cannot hold.
        OSError: it cannot be written, the disk is full; what was there stays.
    """
    assert sorted(id2label) == list(range(architecture.num_labels)), id2label
    check_output(output, source)
    pending = to_write(architecture, params, source, unchanged, dtype=dtype, fetch=fetch)
    dtypes = {tensor.dtype for tensor in pending.values()}
    config = exported_config(architecture, id2label, problem_type, dtypes, fitted or {})
    if dtype and "dtype" in config:
        config["dtype"] = np.dtype(tensors.DTYPES[dtype]).name
    with replacing(output, check_output) as directory:
        tensors.write_sharded(directory, pending, max_bytes=max_shard_bytes)
        with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2, ensure_ascii=False)
        companions.place(source, directory, files or {})
        sentence_transformers.write(directory, beside or {})
        if card:
            companions.write_card(directory, card)


def join_writing(
    architecture: Architecture,
    params: Params,
    *,
    source: str | None,
    unchanged: Collection[str],
    fetch: Callable[[Any], Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: str = "",
) -> None:
    """What a process does whose `fetch` another waits for in `write_checkpoint`, with equal arguments."""
    pending = to_write(architecture, params, source, unchanged, dtype=dtype, fetch=fetch)
    tensors.join_writing(pending, max_bytes=max_shard_bytes)


def check_output(output: str, source: str | None = None) -> None:
    """Whether `write_checkpoint` may write there: absent, empty, or an earlier export of jaxft's.

    The old directory is deleted in the end, so never one in which somebody keeps other things. The
    files of weights say who wrote them.

    Raises:
        ValueError: none of these, or `source` itself, which is still to be read.
    """
    if source is not None and os.path.realpath(output) == os.path.realpath(source):
        raise ValueError(f"{output} is the checkpoint that is being read; give another directory")
    if not os.path.lexists(output):
        return
    if not os.path.isdir(output):
        raise ValueError(f"{output} is no directory; give another name")
    present = sorted(os.listdir(output))
    for name in present:
        known = name in COMPANIONS or name == "config.json" or tensors.is_weights(name)
        known = known or companions.is_ours(output, name)
        known = known and os.path.isfile(os.path.join(output, name))
        if not known and not sentence_transformers.is_part(output, name):
            raise ValueError(f"{output} holds {name!r}, so it is no checkpoint to be replaced")
    if present and not tensors.written_here(output):
        raise ValueError(
            f"{output} holds a checkpoint that jaxft did not write; give another directory, or "
            "remove it first"
        )


def fingerprints(directory: str, *, weights: bool = True) -> dict[str, str]:
    """What a checkpoint consists of, as one digest each: '' for what it does not have.

    {'weights': as `fingerprint`, or '' where `weights` is False; 'config.json',
    'preprocessor_config.json' and 'tokenizer' (all of its files): SHA-256 of every byte}
    """
    paths = {name: os.path.join(directory, name) for name in ("config.json", *COMPANIONS)}
    return {
        "weights": fingerprint(directory) if weights else "",
        "config.json": digest([paths["config.json"]]),
        PREPROCESSOR: digest([paths[PREPROCESSOR]]),
        "tokenizer": digest(paths[name] for name in TOKENIZER),
    }


def fingerprint(directory: str) -> str:
    """SHA-256 of the sizes, headers and 64 pieces of 64 KiB of each file of weights.

    Tells cheaply (4 MiB read per file) that the files were replaced, not that every byte is equal.
    """
    sha = hashlib.sha256()
    for piece in tensors.sample(directory, count=64, length=64 * 1024):
        sha.update(piece)
    return sha.hexdigest()


def _snapshot(hub_id: str) -> str:
    """The hub's newest snapshot or, where it cannot be asked, the one in its local cache."""
    # Takes 0.4 s to import, and a local directory does not need it.
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


def initialise(
    architecture: Architecture, paths: Collection[str], key: jax.Array, shardings: Params | None
) -> dict[str, jax.Array]:
    """The leaves at `paths`, newly initialised where they belong, as `read_params` does it."""
    if not paths:
        return {}
    places = dict.fromkeys(paths) if shardings is None else by_path(shardings)

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        values = by_path(architecture.init(key))
        return {path: values[path] for path in paths}

    # jit drops all that is not returned.
    return jax.jit(chosen, out_shardings={path: places[path] for path in paths})(key)


def _read_leaf(
    entry: tensors.Entry, name: str, stored: Stored, leaf: jax.ShapeDtypeStruct, place: Any
) -> jax.Array:
    @functools.lru_cache(maxsize=1)  # devices that hold the same part follow each other
    def read(*bounds):
        index = stored.reordered(tuple(slice(*bound) for bound in bounds))
        tensor = tensors.read(entry, name, index)
        return tensor.transpose(stored.axes).astype(leaf.dtype, copy=False)

    if place is None:
        return jnp.asarray(read(*((0, size) for size in leaf.shape)))

    def read_part(index):
        return read(*((part.start, part.stop) for part in index))

    return jax.make_array_from_callback(leaf.shape, place, read_part)
