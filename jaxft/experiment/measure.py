"""Metrics of a trained model on rows with targets: what `evaluate` does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from jaxft.data.files import Source
from jaxft.experiment.evaluation import Evaluation
from jaxft.experiment.inference import Inference, named_by_flags
from jaxft.experiment.opening import open_named, open_training
from jaxft.experiment.output import Output, check_output
from jaxft.experiment.split import Split, hold_out, labelled_split
from jaxft.tasks.contract import Reading


@dataclasses.dataclass(frozen=True)
class Measured:
    """Attributes:
    name: what to call the rows.
    rows: how many they are.
    notes: on rows that are left out or look empty, one line each.
    """

    name: str
    rows: int
    notes: tuple[str, ...]
    result: Evaluation

    def write(self, file: Output) -> None:
        """The metrics as JSON, as `metrics_file` knows them again."""
        file.write((json.dumps(self.result.to_json(), indent=1) + "\n").encode())


def metrics_file(given: str, reads: str) -> Output:
    """The file of `--output GIVEN`, to be entered before any work.

    Args:
      reads: `--data`, which must not be overwritten.

    Raises:
      ValueError: a file that must stay as it is; see `check_output`.
    """
    path = check_output(given, reads={"--data": reads}, earlier=_is_metrics, written_by="evaluate")
    return Output(path)


def measure(
    model: Inference, spec: str | Source = "", columns: Sequence[str] = (), label: str = ""
) -> Measured:
    """Predict rows with targets and compare.

    Args:
      spec: as `--data`, or a source; '': the run's own test data, else its evaluation data, else what
        it held out.
      columns: input columns; empty: the run's own, else by their usual names.
      label: column of the targets; '' likewise.

    Raises:
      ValueError: no data, without the columns of the model, or held-out rows that have changed.
    """
    model, name, split, notes, held_out = _rows(model, spec, columns, label)
    result = model.evaluate(split, held_out=held_out)
    return Measured(name, len(split.targets), notes, result)


def own_rows(model: Inference) -> tuple[str, Split]:
    """The rows that a run is measured on, and what to call them; see `measure`."""
    _, name, split, _, _ = _rows(model, "", (), "")
    return name, split


def _rows(
    model: Inference, spec: str | Source, columns: Sequence[str], label: str
) -> tuple[Inference, str, Split, tuple[str, ...], bool]:
    """The model reading its columns, what to call the rows, the rows, notes, and whether they are those
    that the run held out."""
    c = model.config.data
    given = spec if isinstance(spec, Source) else spec or c.test or c.eval
    if not given and model.directory is None:
        raise ValueError("--data is missing: a checkpoint, unlike a run, has no data of its own")
    inputs = model.task.inputs
    source = open_named(given, c, inputs=inputs) if given else open_training(c, inputs=inputs)
    with named_by_flags():
        column = model.task.find_column(source, label or c.label)
    model = model.reading(source, columns, column)
    reading = Reading(names=model.names, classes=c.classes, drop=c.on_bad_row != "error")
    split, notes = labelled_split(model.task, source, column, model.encoder.columns, reading)
    if given:
        return model, given if isinstance(given, str) else given.name, split, notes, False
    return model, f"held-out share of {c.train or source.name}", hold_out(split, c)[1], notes, True


def _is_metrics(path: Path) -> bool:
    """Whether a file is what `Measured.write` wrote, now or in an earlier version."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(value, dict) and "loss" in value and bool({"examples", "accuracy"} & set(value))
    )
