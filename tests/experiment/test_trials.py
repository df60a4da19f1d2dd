"""A command of somebody else's: trials over the same data and model in one process, by importing the loop."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxft import train
from jaxft.config import override
from jaxft.experiment.build import begin, own_copy, read_params, share
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.loop import run_loop
from jaxft.experiment.prepared import prepare
from jaxft.experiment.session import Memory, opened
from jaxft.experiment.steps import devices, structure
from jaxft.experiment.timing import Stopwatch
from jaxft.optim import by_path, merge
from jaxft.terminal import config_file
from jaxft.training.checkpoint import Checkpoints, Keep
from tests.worlds import ROOT


def fields(world: Path) -> list[tuple[str, str]]:
    return [
        ("model.path", f"{world}/one_block"), ("data.train", f"{world}/train.csv"),
        ("train.batch_size", "16"), ("train.steps", "6"), ("eval.every", "3 steps"),
        ("parallel.mode", "jit"), ("log.tensorboard", "false"), ("train.compile_cache", ""),
    ]  # fmt: skip


def toy_sweep(config, trials: list[dict], folder: Path) -> list:
    """What such a command would do: read once, then one trial after the other."""
    first, parallel = prepare(config), devices(config)
    params, report = read_params(first, parallel)
    shared = share(first, parallel, report, cache=str(folder / "cache"))
    done: list = []
    for number, change in enumerate(trials):
        trial = first.trial(override(config, change))
        like = done[0][0] if done else None
        run, state = begin(trial, shared, own_copy(trial, shared, params), like)
        directory = RunDirectory(folder / f"trial{number}")
        with directory.claimed(), opened(run, directory, Stopwatch()) as session:
            state, memory, signal = run_loop(session, state, Memory())
        assert signal == 0
        done.append((run, jax.device_get(merge(state.params, state.frozen)), memory))
    return done


def test_trials_share_data_weights_and_programs_and_are_the_runs_alone(world, tmp_path):
    config = config_file.load(f"{ROOT}/configs/text_classification.py", fields(world))
    changes = [{}, {"optim.lr": 3e-3, "train.seed": 5, "optim.layer_decay": 0.8, "train.steps": 7}]
    (one, _, _), (two, weights, memory) = toy_sweep(config, changes, tmp_path)
    program = one.stages.at(0).program
    assert two.stages.at(0).program is program and two.shared is one.shared
    assert program.traced == len({str(layout) for layout in _shapes(one) | _shapes(two)})

    flags = [f"--config.{name}={text}" for name, text in fields(world)]
    flags += [f"--config.{name}={value}" for name, value in changes[1].items()]
    command = ["train", f"--config={ROOT}/configs/text_classification.py", *flags]
    assert train.main([*command, f"--workdir={tmp_path}/alone"]) == 0
    summary = json.loads((tmp_path / "alone/summary.json").read_text())
    assert summary["best_step"] == memory.best_step and summary["eval"] == memory.best_metrics
    alone = Checkpoints(tmp_path / "alone/checkpoints", one.parallel, keep=Keep())
    with alone:
        _, start = begin(two.prepared, two.shared, read_params(two.prepared, two.parallel)[0])
        state, _ = alone.restore(7, start)
    for path, value in by_path(merge(state.params, state.frozen)).items():
        np.testing.assert_array_equal(by_path(weights)[path], value, err_msg=path)


def _shapes(run) -> set:
    return {
        tuple((k, v.shape) for k, v in run.train_batches[step].items())
        for step in range(len(run.train_batches))
    }


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"optim.weight_decay": 0.5, "optim.clip": 3.0, "optim.warmup": "2 steps"}, True),
        ({"optim.clip": None}, False), ({"optim.optimizer": "sgd"}, False),
        ({"optim.freeze_below": 0}, False), ({"train.label_smoothing": 0.1}, False),
    ],
)  # fmt: skip
def test_what_needs_another_program(world, change, same):
    config = config_file.load(f"{ROOT}/configs/text_classification.py", fields(world))
    first = prepare(config)
    assert (structure(first.trial(override(config, change))) == structure(first)) is same


def test_other_data_is_no_trial(world):
    config = config_file.load(f"{ROOT}/configs/text_classification.py", fields(world))
    with pytest.raises(ValueError, match="config.data.max_length=8: trials that share"):
        prepare(config).trial(override(config, {"data.max_length": 8}))
