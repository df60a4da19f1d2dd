"""CPU seconds of a cross-validation beside those of one run of the same config, from start to written page.

    python benchmarks/cross_validation.py --model DIR --train train.csv --rows 3000 [--epochs 3] [--freeze 3]

Each is a process of its own with an empty compilation cache. CPU seconds, user and system, of the process and
its threads: on a busy machine they vary less than what a clock says. `work` is what the updates alone would
cost, by rows: those of all trials, which read blocks above the frozen ones, over those of the one run, which
reads all blocks in each epoch (prefix 1, what trains 3 of the forward pass).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("model", "checkpoint directory", required=True),
    Flag("train", "training data, CSV", required=True),
    Flag("rows", "of the data that are used", default=3000),
    Flag("epochs", "of each trial, and of the run", default=3),
    Flag("freeze", "blocks that stay as they are", default=3),
    Flag("folds", "of the cross-validation", default=5),
    Flag("repeats", "of the cross-validation", default=2),
    Flag("workers", "of the cross-validation: trials side by side", default=1),
    Flag("prefix", "data.cache_prefix of the trials: auto, on or off", default="auto"),
    Flag("one_prefix", "the same of the one run", default="auto"),
)


def main(argv: Sequence[str]) -> int:
    """Print a line each, and their ratio."""
    values, _ = parse(argv, FLAGS)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, prefix, own in (
            ("train", values.one_prefix, [f"--workdir={folder}/run"]),
            ("cross_validate", values.prefix, [f"--output={folder}/folds", f"--folds={values.folds}",
                                               f"--repeats={values.repeats}", f"--workers={values.workers}"]),
        ):  # fmt: skip
            command = [
                sys.executable, "-m", f"jaxft.{name}", "--config=configs/text_classification.py", *own,
                f"--config.model.path={values.model}",
                f"--config.data.train={values.train}[:{values.rows}]",
                f"--config.train.epochs={values.epochs}", f"--config.optim.freeze_below={values.freeze}",
                f"--config.data.cache_prefix={prefix}", "--config.log.tensorboard=false",
                f"--config.train.compile_cache={folder}/programs-{name}",
            ]  # fmt: skip
            found[name] = _seconds(command, Path(folder, f"{name}.txt"))
            print(f"{name:16} {found[name][0]:8.1f} CPU s {found[name][1]:8.1f} s", flush=True)
            print(Path(folder, f"{name}.txt").read_text(), flush=True)
    trials = values.folds * values.repeats
    work = trials * (1 - 1 / values.folds) * 3 / (0.9 * 4)
    ratio = found["cross_validate"][0] / found["train"][0]
    clock = found["cross_validate"][1] / found["train"][1]
    print(
        f"{trials} trials over one run: {ratio:.2f} of CPU seconds, {clock:.2f} by the clock; "
        f"of the updates alone {work:.2f}"
    )
    return 0


def _seconds(command: Sequence[str], log: Path) -> tuple[float, float]:
    """(CPU, wall)"""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise ValueError(
            f"{command[2]} ended with status {done.returncode}: {log.read_text()[-500:]}"
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
