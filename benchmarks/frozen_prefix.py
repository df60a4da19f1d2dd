"""What an epoch costs with and without what is kept of a frozen prefix, and how far apart losses are.

    python benchmarks/frozen_prefix.py --config FILE [--epochs 3] [--config.a.b=value …]

One process and two runs of the same config (of `data.cache_prefix` 'off' and 'on'), whose epochs take turns:
batches made by the run's own threads, its compiled step, no evaluation and no saving. The first epoch of
each is not counted. Printed are seconds of an epoch by the clock and of CPU, their ratios (medians), what
filling cost, and the largest difference of a loss.
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxft.config import ConfigDict
from jaxft.data.loader import iterate
from jaxft.experiment.build import Run, build
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.training.step import TrainState

FLAGS = (Flag("epochs", "epochs of each run, the first of which is not counted", default=3),)


def main(argv: Sequence[str]) -> int:
    """Print a line an epoch, and the medians."""
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    config.train.epochs = float(values.epochs)
    runs: dict[str, tuple[Run, TrainState]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for mode in ("off", "on"):
            start = time.perf_counter(), time.process_time()
            runs[mode] = _built(config, mode, cache)
            print(f"{mode}: built in {_since(start)}", *runs[mode][0].kept.notes, sep="\n  ")
            run = runs[mode][0]
            run.stages.compile(0, run.train_batches)
        seconds: dict[str, list[tuple[float, float]]] = {mode: [] for mode in runs}
        losses: dict[str, list[float]] = {mode: [] for mode in runs}
        for epoch in range(values.epochs):
            for mode, (run, state) in runs.items():
                state, own, took = _epoch(run, state, epoch)
                runs[mode] = run, state
                losses[mode] += own
                seconds[mode].append(took)
                print(
                    f"epoch {epoch + 1} {mode}: {took[0]:.2f} s, {took[1]:.2f} s of CPU", flush=True
                )
        _report(seconds, losses)
    return 0


def _report(seconds: dict[str, list[tuple[float, float]]], losses: dict[str, list[float]]) -> None:
    apart = [abs(a - b) / max(abs(a), 1e-9) for a, b in zip(*losses.values(), strict=True)]
    for number, name in enumerate(("by the clock", "of CPU")):
        off, on = (
            statistics.median(took[number] for took in seconds[mode][1:]) for mode in ("off", "on")
        )
        print(f"an epoch, seconds {name}: {off:.2f} off, {on:.3f} on, ratio {off / on:.2f}")
    equal = sum(a == b for a, b in zip(*losses.values(), strict=True))
    print(
        f"losses: {equal} of {len(apart)} equal bit for bit, at most {max(apart):.1e} apart (relative)"
    )


def _built(config: ConfigDict, mode: str, cache: str) -> tuple[Run, TrainState]:
    own = copy.deepcopy(config)
    own.data.cache_prefix = mode
    prepared = prepare(own, cache)
    return build(prepared, devices(own), cache=cache)


def _epoch(
    run: Run, state: TrainState, epoch: int
) -> tuple[TrainState, list[float], tuple[float, float]]:
    """(state, losses, seconds by the clock and of CPU)."""
    steps, found = run.prepared.length.epoch, list[Any]()
    program = run.stages.at(0).program
    begun = time.perf_counter(), time.process_time()
    batches = iterate(
        run.train_batches, epoch * steps, (epoch + 1) * steps, put=run.parallel.put,
        threads=run.prepared.config.data.workers,
    )  # fmt: skip
    for batch in batches:
        state, metrics = program(state, batch)
        found.append(metrics["loss"])
    jax.block_until_ready(state)
    took = time.perf_counter() - begun[0], time.process_time() - begun[1]
    return state, [float(run.parallel.unreplicate(loss)) for loss in found], took


def _since(start: tuple[float, float]) -> str:
    clock, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    return f"{clock:.1f} s, {cpu:.1f} s of CPU"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
