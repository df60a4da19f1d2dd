"""What the loop costs: examples/s of `jaxft.train` over those of its compiled step alone.

    python benchmarks/overhead.py --config FILE [--steps 60] [--rounds 5] [--processes 4] [--config.…]

One state, the same batches: in turn the real loop (data, logs, metrics, a checkpoint at the end) and the
bare step on batches that are already on the device. Printed is the median of the rounds' ratios; 1.00 is
a loop that costs nothing. Several processes are one run on this machine, as those of launch/local.sh, of
which the first prints.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxft.experiment import processes
from jaxft.experiment.build import Run, build
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.loop import run_loop
from jaxft.experiment.prepared import prepare
from jaxft.experiment.session import Memory, opened
from jaxft.experiment.steps import devices
from jaxft.experiment.timing import Stopwatch
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.training.step import TrainState

FLAGS = (
    Flag("steps", "optimizer updates of a round", default=60),
    Flag("rounds", "how often the two take turns", default=5),
    Flag("processes", "of one run, here", default=1),
    Flag("folder", "where all processes save; this program gives it to those that it starts"),
    *processes.FLAGS,
)


def main(argv: Sequence[str]) -> int:
    """Print a line a round and the median."""
    processes.join(argv)
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    if values.processes > 1 and not values.coordinator:
        return _start(argv, values.processes)
    config.train.epochs, config.train.steps = None, values.steps
    prepared = prepare(config)
    run, state = build(prepared, devices(config), cache=None)
    run.stages.compile(0, run.train_batches)
    weights = [float(run.train_batches[i]["weight"].sum()) for i in range(values.steps)]
    ratios = []
    with tempfile.TemporaryDirectory() as own:
        for round_ in range(values.rounds):
            bare = _bare(run, state)
            loop = _loop(run, state, Path(values.folder or own) / str(round_))
            ratios.append(bare / loop)
            if not processes.is_lead():
                continue
            print(
                f"round {round_}: loop {sum(weights) / loop:.1f} examples/s, "
                f"bare step {sum(weights) / bare:.1f}, ratio {ratios[-1]:.3f}"
            )
    if processes.is_lead():
        print(f"median ratio {statistics.median(ratios):.3f}")
    processes.together("measured")
    return 0


def _start(argv: Sequence[str], count: int) -> int:
    """The same, in so many processes; the status of the first that failed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        joined = [
            f"--coordinator=localhost:{port}",
            f"--num_processes={count}",
            f"--folder={folder}",
        ]
        children = [
            subprocess.Popen([sys.executable, *argv, *joined, f"--process_id={number}"])
            for number in range(count)
        ]
        return next(filter(None, [child.wait() for child in children]), 0)


def _copy(state: TrainState) -> TrainState:
    """The step donates its state, and each round begins with the same one."""
    return jax.block_until_ready(jax.jit(lambda tree: jax.tree.map(jax.numpy.copy, tree))(state))


def _bare(run: Run, state: TrainState) -> float:
    """Seconds of all steps on batches that are on the device before the clock starts."""
    batches: list[Any] = [
        run.parallel.put(run.train_batches[i]) for i in range(len(run.train_batches))
    ]
    state, program = _copy(state), run.stages.at(0).program
    jax.block_until_ready(batches)
    start = time.perf_counter()
    for batch in batches:
        state, metrics = program(state, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - start


def _loop(run: Run, state: TrainState, folder: Path) -> float:
    """Seconds of the run's own loop, less evaluation and saving. `folder` is new, and removed."""
    directory, clock, lead = RunDirectory(str(folder)), Stopwatch(), processes.is_lead()
    folder.mkdir(parents=True, exist_ok=True)
    with (
        opened(run, directory, clock, lead=lead) as session,
        clock.time("train", without=("eval", "save")),
    ):
        run_loop(session, _copy(state), Memory())
    processes.together("saved")
    shutil.rmtree(folder, ignore_errors=True)
    return clock.seconds["train"]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
