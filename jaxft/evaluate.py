"""Measure a finished run on labelled data: `python -m jaxft.evaluate --run DIR [--data FILE]`."""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxft.data.labels import find_label_column
from jaxft.data.sources import open_source
from jaxft.run.data import Split, hold_out, labelled_split
from jaxft.run.directory import RunDirectory
from jaxft.run.inference import Inference, load_inference
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_metrics

FLAGS = (
    Flag("run", "directory of a finished run", required=True),
    Flag("data", "labelled data; default: the run's own test data, else its evaluation data"),
    Flag("output", "also write the metrics to this JSON file"),
)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    folder = Path(values.output).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"--output {values.output}: no such directory {folder}")
    model = load_inference(RunDirectory(values.run))
    spec, split = _split(model, values.data)
    result = model.evaluate(split)
    print(f"{spec}: {len(split.labels)} rows, model {values.run}/best")
    measured = result.to_json()
    show_metrics(measured)
    if values.output:
        with open(values.output, "w") as file:
            json.dump(measured, file, indent=1)
    return 0


def _split(model: Inference, spec: str) -> tuple[str, Split]:
    """The rows to measure on, and what to call them."""
    c = model.config.data
    spec = spec or c.test or c.eval
    source = open_source(spec or c.train, data_dir=c.dir or None, delimiter=c.delimiter)
    column = find_label_column(source, c.label)
    encoder = model.encoder
    split, _ = labelled_split(source, column, encoder.columns, encoder.inputs, c, names=model.names)
    return (spec, split) if spec else (f"held-out share of {c.train}", hold_out(split, c)[1])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
