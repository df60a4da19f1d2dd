"""Measure a finished run on labelled data: `python -m jaxft.evaluate --run DIR [--data FILE]`.

From Python: `jaxft.evaluate(run, data)` (see `api.py`).
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from jaxft import api
from jaxft.experiment.inference import column_names, load_inference
from jaxft.experiment.measure import measure, metrics_file
from jaxft.experiment.stored_run import shown
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_metrics

FLAGS = (
    Flag("run", "directory or s3://… of a finished run, checkpoint or ensemble", required=True, remote=True),
    Flag("data", "labelled data; default: the run's own test data, else its evaluation data"),
    Flag("text", "input column, or two for pairs: a,b; default: the run's own, else by usual names"),
    Flag("label", "label column; default: the run's own, else by usual names"),
    Flag("output", "also write the metrics to this JSON file; never over another file"),
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    writing = metrics_file(values.output, values.data) if values.output else nullcontext()
    with writing as file:
        model = load_inference(values.run)
        measured = measure(model, values.data, column_names(values.text), values.label)
        if file is not None:
            measured.write(file)
    of = shown(values.run) + ("" if model.directory is None else "/best")
    print(f"{measured.name}: {measured.rows} rows, model {of}")
    for note in measured.notes:
        print(note)
    show_metrics(measured.result.to_json(), model.task.headline)
    for warning in model.task.warnings(measured.result.metrics):
        print(f"warning: {warning}")
    return 0


api.make_callable(__name__, api.evaluate)

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
