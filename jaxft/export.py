"""Write a run's model in Hugging Face format: `python -m jaxft.export --run DIR --output DIR`.

Works while the run is still going or after it was stopped: the best checkpoint so far is taken, or
with `--step N` the checkpoint of that step. The run directory is only read. `--convert DIR` makes a
checkpoint of safetensors of one of pickled weights instead.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin()

import sys
from collections.abc import Sequence

from jaxft.experiment.exporting import DTYPES, convert, export_run
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("run", "directory or s3://… of a run", remote=True),
    Flag(
        "output",
        "directory or s3://… to write; must not exist, or be an earlier export",
        required=True,
        remote=True,
    ),
    Flag("step", "optimizer updates of the checkpoint to take; default: the best one", default=-1),
    Flag(
        "dtype", f"of every tensor: {', '.join(DTYPES)}; default: float32, the source's if frozen"
    ),
    Flag("max_shard_size", "of a file of weights, as 500MB or 5GB", default="5GB"),
    Flag("verify", "rows to compare the export on with the run and PyTorch; 0: none", default=0),
    Flag("convert", "instead of --run: directory with a pytorch_model.bin that you trust"),
)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    if bool(values.run) == bool(values.convert):
        raise ValueError("give --run DIR, or --convert DIR, and not both")
    if values.convert:
        said = convert(values.convert, values.output)
    else:
        said = export_run(
            values.run, values.output, step=values.step, dtype=values.dtype,
            shard=values.max_shard_size, verify=values.verify,
        )  # fmt: skip
    for line in said:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
