"""From a config to everything a command needs: the one place where the parts meet.

`prepare` opens the checkpoint and the data; `build` adds parameters, optimizer and the steps.
Commands that only look (describe) stop after the first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.config import ConfigDict
from jaxft.models import Architecture, ReadReport, class_names, hf, load_architecture
from jaxft.optim import Finding, lint, path_map
from jaxft.run.data import Batches, Encoder, Slicing, Splits, make_encoder, open_splits
from jaxft.run.decide import decide, frozen_blocks
from jaxft.run.decisions import Decisions
from jaxft.run.evaluation import Predictions
from jaxft.run.length import Length, run_length
from jaxft.run.optimizer import OptimizerOf, learning_rates, numbers
from jaxft.run.stages import Stage, Stages, abstract_params, split_for
from jaxft.tasks.contract import Task
from jaxft.tasks.table import TASKS
from jaxft.training.gradient import MeanGradient
from jaxft.training.parallel import Parallel, Programs, make_parallel
from jaxft.training.step import Optimizer, TrainState, eval_step, hyperparameters, train_step


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is known before any parameter is read.

    Attributes:
      directory: the checkpoint's local directory.
      decisions: what happens to each parameter, and when.
      length: of the run and of an epoch, in optimizer updates.
      hyperparameters: the numbers that the optimizer takes as inputs.
      learning_rates: [steps] of the schedule, before any factor. Read by the loop: calling the
        schedule there would dispatch a dozen tiny programs a step.
    """

    config: ConfigDict
    directory: str
    architecture: Architecture
    splits: Splits
    decisions: Decisions
    length: Length
    hyperparameters: dict[str, np.ndarray]
    learning_rates: np.ndarray

    @property
    def task(self) -> Task[Any]:
        """What is learned."""
        return TASKS[self.config.task]


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the loop uses. All of it is a pure function of the config and its sources."""

    prepared: Prepared
    parallel: Parallel
    encoder: Encoder
    train_batches: Batches
    eval_batches: Batches
    test_batches: Batches | None
    eval_rows: Predictions
    stages: Stages
    eval_step: Programs
    eval_every: int
    initialised: tuple[str, ...]
    dropped: tuple[str, ...]

    def steps_done(self, state: TrainState) -> int:
        """Optimizer updates that led to `state`."""
        return int(self.parallel.unreplicate(state.step))


def prepare(config: ConfigDict) -> Prepared:
    """Open checkpoint and data, settle labels, depth and rates of every parameter.

    Raises:
      ValueError: anything in the config, checkpoint or data that cannot work; one line.
    """
    task = TASKS[config.task]
    if not config.model.path:
        raise ValueError("config.model.path is empty: give a checkpoint directory or a hub id")
    directory = hf.resolve(config.model.path)
    names = class_names(directory)
    prepared = settle(config, directory, open_splits(config, task, names))
    # By the headers alone: a checkpoint without weights, or with others, is refused here.
    fresh = () if config.model.scratch else hf.missing(directory, prepared.architecture)
    return dataclasses.replace(prepared, decisions=prepared.decisions.knowing(fresh))


def settle(config: ConfigDict, directory: str, splits: Splits) -> Prepared:
    """The rest of `prepare`, which reads no row: of `splits`, only names and the number of rows count."""
    task = TASKS[config.task]
    names = class_names(directory)
    architecture = load_architecture(
        directory,
        num_labels=len(task.id2label(splits.names)),
        head=task.head,
        dropout=config.model.dropout,
        new_head=bool(names) and tuple(names) != splits.names,
    )
    if architecture.inputs != task.inputs:
        raise ValueError(
            f"config.task={config.task!r} needs a model of {task.inputs}, but {config.model.path} is "
            f"{architecture.family.model_type!r}, a model of {architecture.inputs}"
        )
    length = run_length(config, len(splits.train.targets))
    decisions = decide(config, architecture, length)
    h = numbers(config, decisions, length)
    return Prepared(
        config, directory, architecture, splits, decisions, length, h,
        learning_rates(h, config, length),
    )  # fmt: skip


def findings(prepared: Prepared) -> list[Finding]:
    """What `jaxft.optim.lint` has against the optimizer of this run."""
    config, decisions, rates = prepared.config, prepared.decisions, prepared.learning_rates
    return lint(
        OptimizerOf(config, decisions).base(prepared.hyperparameters),
        prepared.architecture.abstract,
        frozen={row.path: not row.trains for row in decisions},
        patterns=[*config.optim.frozen, *(pattern for pattern, _ in config.optim.lr_mult)],
        plan=decisions.plan,
        groups=decisions.depths if decisions.plan else None,
        schedule=lambda step: rates[min(int(step), len(rates) - 1)],
    )


def build(prepared: Prepared, parallel: Parallel, *, cache: str | None) -> tuple[Run, TrainState]:
    """Read the parameters, make the optimizer, plan the batches, wrap the steps (not yet compiled).

    The first state is apart from the run: the loop donates it, so nothing else may hold it.
    """
    config, architecture = prepared.config, prepared.architecture
    if not prepared.decisions.totals["trainable"]:
        raise ValueError(
            f"nothing to train: config.optim.frozen={config.optim.frozen!r} and "
            f"freeze_below={config.optim.freeze_below} freeze every parameter, the head too"
        )
    task = prepared.task
    encoder = make_encoder(config, prepared.directory, architecture.limits, prepared.splits, cache)
    cut = slicing(parallel, config.train.accumulate)
    train_batches = encoder.training(prepared.splits.train, config, prepared.length.steps, cut)
    eval_batches = encoder.evaluation(prepared.splits.eval, config, cut)
    test = prepared.splits.test
    # Planned now, so that a mistake in the test data is found before the training and not after it.
    test_batches = None if test is None else encoder.evaluation(test, config, slicing(parallel))
    params, report = read_params(prepared, parallel)
    stages = make_stages(prepared, parallel, report.initialised)
    first = stages[0]
    state = parallel.init(*split_for(first.frozen, params), inputs_of(prepared), first.optimizer)
    forward = functools.partial(architecture.apply, dtype=jnp.dtype(config.model.dtype))
    evaluation = functools.partial(
        eval_step, forward=forward, predictions=task.predictions, axis_name=parallel.axis_name
    )
    run = Run(
        prepared=prepared,
        parallel=parallel,
        encoder=encoder,
        train_batches=train_batches,
        eval_batches=eval_batches,
        test_batches=test_batches,
        eval_rows=Predictions(task, prepared.splits.eval, encoder),
        stages=Stages(stages, parallel),
        eval_step=parallel.compile_eval(evaluation),
        eval_every=eval_interval(prepared),
        initialised=report.initialised,
        dropped=report.dropped,
    )
    return run, state


def read_params(prepared: Prepared, parallel: Parallel) -> tuple[Any, ReadReport]:
    """The whole tree of parameters as the run begins with, placed, and what was not in the source."""
    config, architecture = prepared.config, prepared.architecture
    return hf.read_params(
        prepared.directory,
        architecture,
        key=jax.random.fold_in(jax.random.key(config.train.seed), 1),
        shardings=parallel.param_shardings(architecture.abstract, architecture.tensor_rules),
        scratch=config.model.scratch,
    )


def inputs_of(prepared: Prepared) -> dict[str, Any]:
    """`TrainState.hparams` of the run, on the host."""
    key = jax.random.fold_in(jax.random.key(prepared.config.train.seed), 2)
    return jax.tree.map(np.asarray, hyperparameters(key, prepared.hyperparameters))


def make_stages(prepared: Prepared, parallel: Parallel, fresh: Collection[str]) -> list[Stage]:
    """One stage for each of the plan, or a single one."""
    architecture = prepared.architecture
    places = parallel.param_shardings(architecture.abstract, architecture.tensor_rules)
    shapes = abstract_params(architecture.abstract, places)
    hparams = inputs_of(prepared)
    stages = []
    decisions = prepared.decisions
    for index, start in enumerate(decisions.starts):
        frozen, held = decisions.frozen_in(index), decisions.held_in(index)
        optimizer = OptimizerOf(prepared.config, decisions, frozenset(fresh), index)
        state = parallel.abstract(*split_for(frozen, shapes), hparams, optimizer)
        step = _step(
            prepared, parallel, optimizer, still=frozen | held, held=held, params=state.params
        )
        program = parallel.compile_train(step, state)
        stages.append(Stage(start, frozen, held, optimizer, state, program))
    return stages


def _step(
    prepared: Prepared,
    parallel: Parallel,
    optimizer: Optimizer,
    *,
    still: Collection[str],
    held: Collection[str],
    params: Any,
) -> Callable[..., Any]:
    """The training step of one stage, waiting for `(state, batch)`."""
    config, architecture = prepared.config, prepared.architecture
    forward = functools.partial(
        architecture.apply,
        frozen_blocks=frozen_blocks(architecture, still),
        remat=config.model.remat,
        dtype=jnp.dtype(config.model.dtype),
    )
    return functools.partial(
        train_step,
        forward=forward,
        loss=functools.partial(prepared.task.loss, label_smoothing=config.train.label_smoothing),
        optimizer=optimizer,
        gradient=MeanGradient(config.train.accumulate, parallel.axis_name),
        held=path_map(lambda path, _: path in held, params) if held else None,
    )


def slicing(parallel: Parallel, accumulate: int = 1) -> Slicing:
    """How this process's batches are cut."""
    return Slicing(parallel.shards, accumulate, jax.process_index(), jax.process_count())


def devices(config: ConfigDict) -> Parallel:
    """The devices of `config.parallel`."""
    c = config.parallel
    return make_parallel(c.mode, data=c.data, fsdp=c.fsdp, tensor=c.tensor)


def eval_interval(prepared: Prepared) -> int:
    """Steps between evaluations, at least 1."""
    return max(1, prepared.length.of(prepared.config, "eval.every"))
