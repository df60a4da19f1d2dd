"""What completes the checkpoints of a run, from its directory and its source checkpoint alone.

No data is opened: what follows from it (label names, the number of training rows) is in source.json.
Nothing is written, so this is safe while the run is training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from jaxft.data.sources import Source
from jaxft.data.targets import unlabelled
from jaxft.experiment.checkpoint_place import local_checkpoint
from jaxft.experiment.data import Splits
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.prepared import Prepared, settle
from jaxft.experiment.provenance import model_record
from jaxft.experiment.session import Memory
from jaxft.experiment.split import Split
from jaxft.experiment.stages import Stages
from jaxft.experiment.steps import make_stages
from jaxft.models import hf
from jaxft.training.mesh import make_parallel
from jaxft.training.parallel import Parallel
from jaxft.training.reader import CheckpointGone, CheckpointReader

Result = TypeVar("Result")
# A run that saves faster than its checkpoints can be read, so often in a row, will always do so.
_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A run without its data: enough to restore what it has saved.

    Attributes:
      initialised: paths of those that are not from its source checkpoint.
    """

    prepared: Prepared
    parallel: Parallel
    stages: Stages
    initialised: tuple[str, ...]


def open_saved(directory: RunDirectory) -> SavedRun:
    """Read config.json, source.json and the headers of the source checkpoint.

    Placed on one device, whatever the run trains on: nothing is computed but averages.

    Raises:
      ValueError: this is no run directory, or the source checkpoint has changed since it began.
    """
    config, record = directory.config(), directory.source()
    path = local_checkpoint(config.model.path)
    prepared = settle(config, path, _without_rows(directory, record))
    directory.check_source(model_record(prepared))
    parallel = make_parallel("jit")
    architecture = prepared.architecture
    new = tuple(architecture.depths) if config.model.scratch else hf.missing(path, architecture)
    stages = Stages(make_stages(prepared, parallel, new), parallel)
    return SavedRun(prepared, parallel, stages, new)


def read_step(
    checkpoints: CheckpointReader, wanted: int | None, read: Callable[[int], Result]
) -> tuple[int, Result]:
    """`read(step)` of a wanted step, else of the best so far, beside a run that goes on.

    Where the step is deleted meanwhile, the best of then is read instead.

    Raises:
      ValueError: there is no checkpoint, not the wanted one, or none that stays for long enough.
    """
    for _ in range(_ATTEMPTS):
        steps = checkpoints.steps()
        if not steps:
            raise ValueError("the run has no complete checkpoint yet")
        if wanted is not None and wanted not in steps:
            raise ValueError(f"--step={wanted} is not kept; there are {', '.join(map(str, steps))}")
        try:
            step = _best(checkpoints, steps[-1]) if wanted is None else wanted
            return step, read(step)
        except CheckpointGone as error:
            gone = error
    raise ValueError(f"{gone}: {_ATTEMPTS} times in a row; try again, or give --step")


def _best(checkpoints: CheckpointReader, latest: int) -> int:
    """The best step as the latest checkpoint knows it, else the latest."""
    best = Memory.from_json(checkpoints.memory(latest)).best_step
    return latest if best is None else best


def _without_rows(directory: RunDirectory, record: dict[str, Any]) -> Splits:
    """The splits of a run as its record knows them: names and numbers."""
    names, rows = record["label names"], record.get("training rows")
    if not isinstance(names, list) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"{directory.path / 'source.json'} is not what jaxft wrote; restore it")
    nothing = Source("no rows", (), 0, lambda columns, rows: [])
    train, held_out = (Split(nothing, unlabelled(n)) for n in (rows, 0))
    columns = tuple(record["columns"])
    windows, pairs = record.get("training windows"), record.get("training pairs")
    return Splits(train, held_out, None, tuple(names), columns, (), windows, pairs=pairs)
