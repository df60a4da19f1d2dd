"""Labels new rows with a trained model and writes them to a file: what `predict` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data.checks import check_inputs
from jaxft.data.sources import Source, refuse_missing
from jaxft.experiment.inference import Inference
from jaxft.experiment.labelled import FORMATS, is_labelled, settle, write_labelled
from jaxft.experiment.opening import open_named
from jaxft.experiment.output import Output, check_output
from jaxft.experiment.split import Split

Say = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class Destination:
    """A file that labelled rows may be written to; made by `destination`.

    Attributes:
      given: as the user named it.
      path: the file itself, where `given` is a link to one.
      suffix: of `given`: its format, one of FORMATS.
      prefix: before the names of the added columns.
      guard_formulas: see `write_labelled`.
    """

    given: str
    path: Path
    suffix: str
    prefix: str
    guard_formulas: bool


def destination(given: str, *, reads: str, prefix: str, guard_formulas: bool) -> Destination:
    """Check `--output GIVEN`, and that there is something to be labelled, before any work.

    Args:
      reads: what is labelled, which must not be overwritten.

    Raises:
      ValueError: a format that is not written, a file that must stay as it is (see `check_output`), or
        no file to be read.
    """
    suffix = Path(given).suffix
    if suffix not in FORMATS:
        raise ValueError(
            f"--output {given} is not one of {', '.join(FORMATS)}{nearest(suffix, FORMATS)}"
        )
    if guard_formulas and suffix != ".csv":
        raise ValueError(f"--safe_csv is for .csv, not for --output {given}")
    path = check_output(given, reads={"--input": reads}, earlier=is_labelled, written_by="predict")
    refuse_missing(reads)
    return Destination(given, path, suffix, prefix, guard_formulas)


def label(model: Inference, spec: str, columns: Sequence[str], to: Destination, *, say: Say) -> int:
    """Write every row of a source with the columns of the model's task; returns how many there are.

    Args:
      spec: as `--input`.
      columns: input columns; empty: the run's own, else found by their usual names.
      say: takes one line about what was found or is left out.

    Raises:
      ValueError: rows that the model cannot read, or columns that would be written twice.
      FloatingPointError: predictions that are not finite.
      OSError: the file cannot be written; what was there stays.
    """
    source = open_named(spec, model.config.data, inputs=model.encoder.inputs, labelled=False)
    for note in source.notes:
        say(note)
    model = model.reading(source, columns)
    _check_rows(source, model)
    layout = settle(source, to.suffix, model.task.columns(model.names), prefix=to.prefix)
    if layout.left_out:
        lost = ", ".join(map(repr, layout.left_out))
        say(f"not in {to.given}, which cannot hold them: {lost}")
    with Output(to.path) as file:
        file.reserve(layout.least_bytes)
        rows = _labelled(source, model, say)
        write_labelled(file, layout, rows, guard_formulas=to.guard_formulas)
    return len(source)


def _check_rows(source: Source, model: Inference) -> None:
    """Raise ValueError for the first row that the model cannot read, before it reads any."""
    rows, encoder = np.arange(len(source)), model.encoder
    kind = encoder.kind
    found = check_inputs(source, encoder.columns, rows, inputs=kind.name, fault=kind.fault)
    faults = found.faults
    if faults:
        first, fault = next(iter(faults.items()))
        more = f"; {len(faults)} rows in all ({source.numbered(list(faults))})"
        raise ValueError(f"{source.where(first)}: {fault}{more if len(faults) > 1 else ''}")


def _labelled(
    source: Source, model: Inference, say: Say
) -> Iterator[tuple[Mapping[str, Any], Sequence[Any]]]:
    """Each row with the values of the added columns.

    Raises:
      FloatingPointError: predictions that are not finite, before the first row.
    """
    given = model.encoder.kind.unlabelled(source, model.encoder.columns)
    predicted = model.predict(Split(source, given))
    for name, array in predicted.items():
        if array.dtype == object:  # texts
            continue
        broken = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(-1))
        if len(broken):
            row = int(np.searchsorted(given.offsets, broken[0], side="right")) - 1
            raise FloatingPointError(
                f"{source.where(row)}: the model's {name} are not finite "
                f"({len(broken)} of {len(array)})"
            )
    if unread := int((~predicted["seen"]).sum()):
        say(
            f"{unread} of {len(predicted['seen'])} words were not read: their text is longer than "
            f"{model.encoder.max_length} tokens, or the tokenizer has none for them"
        )
    answers = model.task.answers(predicted, given, model.names)
    for row, answer in enumerate(answers):
        yield source[row], answer.cells()
