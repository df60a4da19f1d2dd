"""Label new rows: `python -m jaxft.predict --run DIR --input FILE --output FILE`.

The output has the input's columns, then those of the task, `predicted` first (of classes also one
probability a label, `probability_NAME`), and is written in the format of its name: .csv, .jsonl or
.parquet. Dates and decimals are kept as text, class numbers as class names. Columns of lists or objects
are kept in .jsonl only, images and bytes nowhere; what is left out is said. An input that has a column of
one of the added names is refused: `--prefix new_` calls them `new_predicted`, `new_probability_NAME`.

Texts that a spreadsheet would run as a formula (they begin with = + - @, a tab or a line end) are
written as they are, unless `--safe_csv` puts an apostrophe before them (OWASP, "CSV Injection").
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.config import nearest
from jaxft.data.checks import check_inputs
from jaxft.data.sources import Source, open_source
from jaxft.experiment.inference import Inference, column_names, load_inference
from jaxft.experiment.labelled import FORMATS, is_labelled, settle, write_labelled
from jaxft.experiment.output import Output, check_output
from jaxft.experiment.split import Split, unlabelled_rows
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("run", "directory of a finished run, or a checkpoint with a classifier", required=True),
    Flag("input", "rows to label: a file, a folder of images, an image, or a data set name",
         required=True),
    Flag("output", "FILE.csv, FILE.jsonl or FILE.parquet; never over a file of another kind",
         required=True),
    Flag("text", "input column, or two for pairs: a,b; default: the run's own, else by usual names"),
    Flag("prefix", "before the names of the added columns predicted and probability_NAME"),
    Flag("safe_csv", "put ' before texts that a spreadsheet would take for a formula", default=False),
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    suffix = Path(values.output).suffix
    if suffix not in FORMATS:
        raise ValueError(
            f"--output {values.output} is not one of {', '.join(FORMATS)}{nearest(suffix, FORMATS)}"
        )
    if values.safe_csv and suffix != ".csv":
        raise ValueError(f"--safe_csv is for .csv, not for --output {values.output}")
    output = check_output(
        values.output, reads={"--input": values.input}, earlier=is_labelled, written_by="predict"
    )
    model = load_inference(values.run)
    c = model.config.data
    source = open_source(
        values.input, data_dir=c.dir or None, delimiter=c.delimiter, labelled=False
    )
    for note in source.notes:
        print(note, file=sys.stderr)
    model = model.reading(source, column_names(values.text))
    _check_rows(source, model)
    layout = settle(source, suffix, model.task.columns(model.names), prefix=values.prefix)
    if layout.left_out:
        columns = ", ".join(map(repr, layout.left_out))
        print(f"not in {values.output}, which cannot hold them: {columns}", file=sys.stderr)
    with Output(output) as file:
        file.reserve(layout.least_bytes)
        rows = _labelled(source, model)
        write_labelled(file, layout, rows, guard_formulas=values.safe_csv)
    print(f"{len(source)} rows -> {values.output}")
    return 0


def _check_rows(source: Source, model: Inference) -> None:
    """Raise ValueError for the first row that the model cannot read, before it reads any."""
    rows, encoder = np.arange(len(source)), model.encoder
    faults = check_inputs(source, encoder.columns, rows, inputs=encoder.inputs).faults
    if faults:
        first, fault = next(iter(faults.items()))
        more = f"; {len(faults)} rows in all ({source.numbered(list(faults))})"
        raise ValueError(f"{source.where(first)}: {fault}{more if len(faults) > 1 else ''}")


def _labelled(
    source: Source, model: Inference
) -> Iterator[tuple[Mapping[str, Any], Sequence[Any]]]:
    """Each row with the values of the added columns.

    Raises:
      FloatingPointError: predictions that are not finite, before the first row.
    """
    given = unlabelled_rows(source, model.encoder.inputs, model.encoder.columns)
    predicted = model.predict(Split(source, given))
    for name, array in predicted.items():
        broken = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(-1))
        if len(broken):
            row = int(np.searchsorted(given.offsets, broken[0], side="right")) - 1
            raise FloatingPointError(
                f"{source.where(row)}: the model's {name} are not finite "
                f"({len(broken)} of {len(array)})"
            )
    if unread := int((~predicted["seen"]).sum()):
        print(
            f"{unread} of {len(predicted['seen'])} words were not read: their text is longer than "
            f"{model.encoder.max_length} tokens, or the tokenizer has none for them",
            file=sys.stderr,
        )
    answers = model.task.answers(predicted, given, model.names)
    for row, answer in enumerate(answers):
        yield source[row], answer.cells()


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
