"""Eight learning rates as one program beside as many processes of `train`: seconds, operations, losses.

    python benchmarks/many_trials.py --model DIR --train train.csv --freeze all [--epochs 3] [--processes 8]

Processes of `train` run one after the other and have a cache of compiled programs in common; that of the
trials is its own and empty. Seconds are those of all cores, in which other work on the machine counts little,
and those of the clock.
Operations are those of XLA's cost analysis, of a step without a prefix cache.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.config import ConfigDict, override
from jaxft.terminal import config_file
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("model", "checkpoint directory", required=True),
    Flag("train", "training data", required=True),
    Flag("eval", "evaluation data", default=""),
    Flag("freeze", "blocks that are frozen, or all", default="all"),
    Flag("epochs", "of each run", default=3),
    Flag("rates", "how many, a factor of 2 apart, from 1e-5 on", default=8),
    Flag("processes", "of train, beside them; seconds of fewer are scaled to as many as rates", default=8),
    Flag("only", "of the three parts: trials, processes, operations; empty: all", default=""),
    Flag("workdir", "of the part that runs in this process", default=""),
)  # fmt: skip
CONFIG = "configs/text_classification.py"


def main(argv: Sequence[str]) -> int:
    """Measure each part in processes of its own, and print what they are beside each other."""
    values, _ = parse(argv, FLAGS)
    if values.workdir:
        _trials(values, Path(values.workdir))
        return 0
    rates = [1e-5 * 2**n for n in range(values.rates)]
    with tempfile.TemporaryDirectory() as folder:
        own, losses, alone = (0.0, 0.0), list[float](), list[tuple[float, float]]()
        if values.only in ("", "trials"):
            command = [sys.executable, __file__, *argv[1:], f"--workdir={folder}/trials"]
            own = _seconds(command)
            losses = json.loads(Path(folder, "trials/losses.json").read_text())
            print(f"{values.rates} trials, one program: {_said(own)}", flush=True)
        if values.only in ("", "processes"):
            for number, rate in list(enumerate(rates))[: values.processes]:
                workdir = f"{folder}/run{number}"
                fields = _fields(values, rate) | {"train.compile_cache": f"{folder}/compiled"}
                flags = [f"--config.{name}={value}" for name, value in fields.items()]
                command = [sys.executable, "-m", "jaxft.train", f"--config={CONFIG}"]
                alone.append(_seconds([*command, f"--workdir={workdir}", *flags]))
                loss = _last_loss(Path(workdir))
                beside = f", as a trial {losses[number]:.6f}" * bool(losses)
                print(
                    f"rate {rate:.1e}: {_said(alone[-1])}, last loss {loss:.6f}{beside}", flush=True
                )
        if losses and alone:
            for kind, together, each in zip(
                ("CPU", "clock"), own, zip(*alone, strict=True), strict=True
            ):
                whole = sum(each) / len(each) * values.rates
                print(
                    f"trials, {kind}: {together / whole:.2f} of {values.rates} processes, "
                    f"{together / each[-1]:.2f} x the last one"
                )
    if values.only in ("", "operations"):
        _operations(values, rates)
    return 0


def _fields(values: Any, rate: float) -> dict[str, Any]:
    return {
        "model.path": values.model, "data.train": values.train, "data.eval": values.eval,
        "train.epochs": values.epochs, "optim.lr": rate, "optim.freeze_below": values.freeze,
        "eval.every": "1 epochs", "log.tensorboard": "false", "parallel.mode": "jit",
    }  # fmt: skip


def _config(values: Any, rate: float, **more: Any) -> ConfigDict:
    freeze = values.freeze if values.freeze == "all" else int(values.freeze)
    fields = _fields(values, rate) | {"optim.freeze_below": freeze, "log.tensorboard": False}
    return override(config_file.load(CONFIG, []), fields, more)


def _trials(values: Any, workdir: Path) -> None:
    from jaxft.search.trials.trial import Trial, run_trials

    trials = [
        Trial(
            str(n),
            _config(values, 1e-5 * 2**n, **{"train.compile_cache": f"{workdir}/compiled"}),
        )
        for n in range(values.rates)
    ]
    outcomes = run_trials(trials, directory=workdir, vmapped="on")
    losses = [outcome.history[-1]["loss"] for outcome in outcomes]
    (workdir / "losses.json").write_text(json.dumps(losses))


def _last_loss(workdir: Path) -> float:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "eval"][-1]["loss"]


def _said(seconds: tuple[float, float]) -> str:
    return f"{seconds[0]:.1f} CPU s, {seconds[1]:.1f} s"


def _seconds(command: Sequence[str]) -> tuple[float, float]:
    """Of all cores, and of the clock."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, start = spent(), time.perf_counter()
    result = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    return spent() - before, time.perf_counter() - start


def _operations(values: Any, rates: Sequence[float]) -> None:
    """Of a step of one trial, of all, and of the frozen blocks, which all share."""
    import jax

    from jaxft.experiment.decide import frozen_blocks
    from jaxft.search.trials.groups import Members, begun
    from jaxft.search.trials.worlds import Worlds
    from jaxft.training.trials import TrialAxis, stack_states, trials_step

    with tempfile.TemporaryDirectory() as folder:
        worlds = Worlds(Path(folder))
        configs = [_config(values, rate, **{"data.cache_prefix": "off"}) for rate in rates]
        prepared = {n: worlds.prepared(config) for n, config in enumerate(configs)}
        [(_, several)] = begun(Members(tuple(prepared)), prepared, worlds)
        runs, states = zip(*several, strict=True)
        batch, architecture = runs[0].train_batches.blank()[-1], runs[0].prepared.architecture
        step, flops = trials_step(runs[0].stages.at(0).step, own_batches=False), {}
        for count in (1, len(rates)):
            given = stack_states(states[:count], frozenset(), TrialAxis())
            compiled = jax.jit(step).lower(*given, batch).compile()
            flops[count] = _flops(compiled)
        depth = max(0, frozen_blocks(architecture, runs[0].prepared.decisions.frozen))
        # The batch is an argument: of a constant one, XLA would compute a part while it compiles.
        forward = jax.jit(lambda whole, batch: architecture.prefix(whole, batch, depth))
        shared = _flops(forward.lower(states[0].whole, batch).compile())
    one, count = flops[1], len(rates)
    left = shared + count * (one - shared)
    print(
        f"operations of a step: one {one:.3g}, of these frozen {shared / one:.1%}; {count} trials "
        f"{flops[count]:.3g}, {flops[count] / left:.3f} x the frozen ones once and the rest {count} times"
    )


def _flops(compiled: Any) -> float:
    return compiled.cost_analysis()["flops"]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
