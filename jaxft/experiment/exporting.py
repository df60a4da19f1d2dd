"""A run's model written in Hugging Face format, and pickled weights made safetensors: what `export` does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxft.base.nearest import nearest
from jaxft.experiment import certificate, finish
from jaxft.experiment.checkpoint_place import local_checkpoint
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.output import check_export
from jaxft.experiment.saved import open_saved, read_step
from jaxft.experiment.session import Memory
from jaxft.experiment.stored_export import export_place
from jaxft.experiment.stored_run import shown, with_checkpoint
from jaxft.experiment.weights import best_weights
from jaxft.models.checkpoint import pickled
from jaxft.training.mesh import make_parallel
from jaxft.training.reader import CheckpointReader

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_SIZE = re.compile(r"(\d{1,9})\s*([KMGT]?)B", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def export_run(
    run: str, output: str, *, step: int = -1, dtype: str = "", shard: str = "5GB", verify: int = 0
) -> Iterator[str]:
    """Export the best weights of a run so far, or those of a step; yields lines on what was done.

    Args:
      run, output: directories, or addresses of a store.
      dtype: one of DTYPES, of every tensor; '': fp32, and what never trained as it was.
      shard: the size of a file, as '5GB'.
      verify: so many rows are compared; see `certificate`.

    Raises:
      ValueError: no run, no such step, an output that must stay, or a value that is not possible.
      OSError: a store that cannot be read or written; see `export_place`.
    """
    if dtype and dtype not in DTYPES:
        raise ValueError(
            f"--dtype={dtype} is not possible{nearest(dtype, DTYPES)}; it may be {', '.join(DTYPES)}"
        )
    if verify < 0:
        raise ValueError(f"--verify={verify} is below 0; it is a number of rows")
    size, wanted = _bytes(shard), step if step >= 0 else None
    directory = RunDirectory(with_checkpoint(run, wanted, _best_of))
    began = directory.config().model.path
    with export_place(output, run, began) as place:
        source = local_checkpoint(began)
        target = str(check_export(place, directory.path, source))
        taken, unchanged, whole = _write(
            directory, target, wanted, DTYPES.get(dtype, ""), size, every=verify > 0
        )
        said = [f"step {taken} of {shown(run)} -> {shown(output)}"]
        if verify:
            found = certificate.certify(directory, target, whole, unchanged, rows=verify)
            said += certificate.lines(found)
    yield from said  # once it is where it is to be


def _write(
    directory: RunDirectory, target: str, step: int | None, dtype: str, size: int, *, every: bool
) -> tuple[int, frozenset[str], Any]:
    """Write the export. Returns the step, the paths that never trained, and the weights.

    every: whether all weights are wanted; else those are not read that are copied.
    """
    saved = open_saved(directory)
    checkpoints = CheckpointReader(directory.checkpoints, saved.parallel)

    def unchanged(step: int) -> frozenset[str]:
        return saved.stages.saved_at(step).frozen - saved.prepared.architecture.grown.keys()

    def read(step: int) -> tuple[Any, Memory]:
        leave = () if every else finish.copied(saved.prepared, unchanged(step), dtype)
        whole = best_weights(saved, checkpoints, step, leave)
        return whole, Memory.from_json(checkpoints.memory(step))

    taken, (whole, memory) = read_step(checkpoints, step, read)
    finish.export(
        saved.prepared, saved.parallel, whole, target, unchanged=unchanged(taken), lead=True,
        metrics=memory.best_metrics if memory.best_step == taken else None,
        dtype=dtype, max_shard_bytes=size,
    )  # fmt: skip
    return taken, unchanged(taken), whole


def _best_of(run: Path, newest: int) -> int | None:
    """The best step of a run as its newest checkpoint knows it."""
    reader = CheckpointReader(run / "checkpoints", make_parallel("jit"))
    return Memory.from_json(reader.memory(newest)).best_step


def convert(directory: str, output: str) -> Iterator[str]:
    """Make a checkpoint of safetensors of one of pickled weights; see `pickled.convert`."""
    with export_place(output, directory) as target:
        found = pickled.convert(local_checkpoint(directory), target)
    place = f"{shown(output).rstrip('/')}/{found.written}"
    yield f"{found.tensors} tensors of {', '.join(found.files)} -> {place}"
    if found.tied:
        yield f"tied, and written once: {', '.join(found.tied)}"


def _bytes(size: str) -> int:
    match = _SIZE.fullmatch(size.strip())
    if not match or not int(match[1]):
        raise ValueError(f"--max_shard_size={size} is no size; give one as 500MB or 5GB")
    return int(match[1]) * _UNITS[match[2].upper()]
