"""Label new rows: `python -m jaxft.predict --run DIR --input FILE --output FILE`.

The output has the input's columns, then `predicted` and one probability a label, and is written in
the format of its name: .csv, .jsonl or .parquet.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.config import nearest
from jaxft.data.labels import unlabelled
from jaxft.data.sources import Source, open_source
from jaxft.run.data import Split
from jaxft.run.directory import RunDirectory
from jaxft.run.inference import load_inference
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("run", "directory of a finished run", required=True),
    Flag("input", "rows to label: a file, a folder of images, or a data set name", required=True),
    Flag("output", "FILE.csv, FILE.jsonl or FILE.parquet", required=True),
)
_FORMATS = (".csv", ".jsonl", ".parquet")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    output = Path(values.output)
    _check_output(output, values.input)
    model = load_inference(RunDirectory(values.run))
    source = open_source(values.input, data_dir=model.config.data.dir or None)
    for column in model.encoder.columns:
        if column not in source.columns:
            raise ValueError(
                f"{source.name} has no column {column!r}{nearest(column, source.columns)}; "
                f"it has {', '.join(source.columns)}"
            )
    logits = model.logits(Split(source, unlabelled(len(source), model.names)))
    _write(output, _rows(source, logits, model.names))
    print(f"{len(source)} rows -> {output}")
    return 0


def _check_output(output: Path, given: str) -> None:
    """What would otherwise go wrong after all the work was done."""
    if output.suffix not in _FORMATS:
        raise ValueError(
            f"--output {output} is not one of {', '.join(_FORMATS)}{nearest(output.suffix, _FORMATS)}"
        )
    if not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: no such directory {output.absolute().parent}")
    if output.is_dir():
        raise ValueError(f"--output {output} is a directory; give a file in it")
    if output.exists() and os.path.exists(given) and output.samefile(given):
        raise ValueError(f"--output {output} is the --input; give another file")


def _rows(source: Source, logits: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The input's plain columns, the predicted label and the probability of each."""
    scores = logits.astype(np.float64)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    rows = []
    for i, probabilities in enumerate(scores):
        row = source[i]
        kept = {k: row[k] for k in source.columns if isinstance(row[k], str | int | float | Path)}
        kept = {k: str(v) if isinstance(v, Path) else v for k, v in kept.items()}
        kept["predicted"] = names[int(probabilities.argmax())]
        kept.update(
            (f"probability_{name}", round(float(p), 6))
            for name, p in zip(names, probabilities, strict=True)
        )
        rows.append(kept)
    return rows


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    beside = output.with_name(output.name + ".tmp")
    if output.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), beside)
    else:
        with beside.open("w", newline="", encoding="utf-8") as file:
            if output.suffix == ".csv":
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(beside, output)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
