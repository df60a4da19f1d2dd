"""Label new rows: `python -m jaxft.predict --run DIR --input FILE --output FILE`.

The output has the input's columns, then those of the task, `predicted` first (of classes also one
probability per label, `probability_NAME`), in the format of its name: .csv, .jsonl or .parquet. With
`--max_new_tokens N` a decoder goes on with each row, in `predicted_text`. An input that has a column of one
of the added names is refused: `--prefix new_` calls them `new_predicted`, `new_probability_NAME`. What a
format cannot hold is left out, and reported.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence

from jaxft.experiment.generating import continuing
from jaxft.experiment.inference import column_names, load_inference
from jaxft.experiment.label import destination, label
from jaxft.terminal import generation_flags
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("run", "directory or s3://… of a finished run, checkpoint or ensemble", required=True, remote=True),
    Flag("input", "rows to label: a file, a folder of images, an image, or a data set name", required=True),
    Flag("output", "FILE.csv, FILE.jsonl or FILE.parquet; never over a file of another kind",
         required=True),
    Flag("text", "input column, or two for pairs: a,b; default: the run's own, else by usual names"),
    Flag("prefix", "before the names of the added columns predicted and probability_NAME"),
    Flag("calibrated", "probabilities at the temperature that was fitted on evaluation data", default=False),
    Flag("safe_csv", "put ' before texts that a spreadsheet would take for a formula", default=False),
    *generation_flags.FLAGS,
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    generated = generation_flags.settings_of(values)
    to = destination(values.output, reads=values.input, prefix=values.prefix,
                     guard_formulas=values.safe_csv)  # fmt: skip
    model = load_inference(values.run)
    model = model.calibrated() if values.calibrated else model
    model = continuing(model, **generated) if generated else model
    _say(model.note)
    rows = label(model, values.input, column_names(values.text), to, say=_say)
    print(f"{rows} rows -> {values.output}")
    return 0


def _say(line: str) -> None:
    print(line, end="\n" * bool(line), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
