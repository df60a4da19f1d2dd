"""The runs that `compare` puts side by side, read from their directories."""

from __future__ import annotations

from collections.abc import Sequence

from jaxft.analysis.comparison import Compared
from jaxft.analysis.record import read_record
from jaxft.base.nested import flatten
from jaxft.config import to_json
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.stored_run import shown, with_records
from jaxft.tasks.table import TASKS


def read_compared(path: str) -> Compared:
    """One run, of a local directory or in a store.

    Raises:
      ValueError: no run directory, or files in it that jaxft did not write.
      StoreError: the store cannot be reached.
    """
    directory = RunDirectory(with_records(path))
    config, source = directory.config(), directory.source()
    return Compared(shown(path), read_record(directory.path), flatten(to_json(config)), source)


def compared_metrics(runs: Sequence[Compared]) -> list[str]:
    """The metric that chooses the best checkpoint of the first run, then those of each task."""
    names = [str(runs[0].config["eval.metric"])]
    for run in runs:
        names += TASKS[run.config["task"]].compared
    return list(dict.fromkeys(names))
