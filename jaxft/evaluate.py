"""Measure a finished run on labelled data: `python -m jaxft.evaluate --run DIR [--data FILE]`.

From Python: `jaxft.evaluate(run, data)` (see `api.py`).
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxft.data.sources import open_source
from jaxft.run.inference import Inference, column_names, load_inference, named_by_flags
from jaxft.run.output import Output, check_output
from jaxft.run.split import Split, hold_out, labelled_split
from jaxft.tasks.contract import Reading
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_metrics

FLAGS = (
    Flag("run", "directory of a finished run, or a checkpoint with a classifier", required=True),
    Flag("data", "labelled data; default: the run's own test data, else its evaluation data"),
    Flag(
        "text", "input column, or two for pairs: a,b; default: the run's own, else by usual names"
    ),
    Flag("label", "label column; default: the run's own, else by usual names"),
    Flag("output", "also write the metrics to this JSON file; never over another file"),
)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    with contextlib.ExitStack() as stack:
        file = None
        if values.output:
            output = check_output(
                values.output, reads={"--data": values.data}, earlier=_is_metrics,
                written_by="evaluate",
            )  # fmt: skip
            file = stack.enter_context(Output(output))
        model = load_inference(values.run)
        columns = column_names(values.text)
        spec, model, split = _split(model, values.data, columns, values.label)
        result = model.evaluate(split)
        if file is not None:
            file.write((json.dumps(result.to_json(), indent=1) + "\n").encode())
    of = values.run if model.directory is None else f"{values.run}/best"
    print(f"{spec}: {len(split.targets)} rows, model {of}")
    show_metrics(result.to_json(), model.task.headline)
    for warning in model.task.warnings(result.metrics):
        print(f"warning: {warning}")
    return 0


def _split(
    model: Inference, spec: str, columns: Sequence[str] = (), label: str = ""
) -> tuple[str, Inference, Split]:
    """What to call the rows to measure on, the model that reads them, and the rows.

    Raises:
      ValueError: no data, or without the columns of the model.
    """
    c = model.config.data
    spec = spec or c.test or c.eval
    if not spec and model.directory is None:
        raise ValueError("--data is missing: a checkpoint, unlike a run, has no data of its own")
    source = open_source(spec or c.train, data_dir=c.dir or None, delimiter=c.delimiter)
    with named_by_flags():
        column = model.task.find_column(source, label or c.label)
    model = model.reading(source, columns, column)
    reading = Reading(names=model.names, classes=c.classes, drop=c.on_bad_row == "drop")
    split, _ = labelled_split(model.task, source, column, model.encoder.columns, reading)
    if spec:
        return spec, model, split
    held_out = hold_out(split, c)[1]
    model.check_held_out(held_out)
    return f"held-out share of {c.train}", model, held_out


def _is_metrics(path: Path) -> bool:
    """Whether a file is an earlier output of this command."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(value, dict) and "loss" in value and bool({"examples", "accuracy"} & set(value))
    )


class _Callable(ModuleType):
    """`jaxft.evaluate` is this module, whoever imports it first; it can be called, too."""

    def __call__(
        self,
        run: str | Path,
        data: str | Path | None = None,
        *,
        text: Sequence[str] = (),
        label: str = "",
    ) -> dict[str, Any]:
        """Metrics of a finished run, or of a checkpoint, on labelled data.

        Args:
          run: run directory, or a checkpoint with a classifier.
          data: as `--data`; None: the run's own test data, else its evaluation data.
          text: input columns; empty: the run's own, else found by their usual names.
          label: label column; '' likewise.

        Returns:
          What `--output` writes: see `jaxft.run.evaluation.Evaluation`.

        Raises:
          ValueError: what the command would say in one line.
        """
        model = load_inference(Path(run).expanduser())
        columns = (text,) if isinstance(text, str) else tuple(text)
        _, model, split = _split(model, str(data or ""), columns, label)
        return model.evaluate(split).to_json()


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
