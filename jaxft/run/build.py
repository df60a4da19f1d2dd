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

from jaxft.config import ConfigDict, duration_steps
from jaxft.models import Architecture, ReadReport, class_names, hf, load_architecture
from jaxft.optim import Finding, Plan, lint, path_map
from jaxft.run.compilation import blank_batches
from jaxft.run.data import Batches, Encoder, Slicing, Splits, make_encoder, open_splits, run_length
from jaxft.run.evaluation import Predictions
from jaxft.run.optimizer import base_optimizer, learning_rates, make_optimizer, numbers
from jaxft.run.stages import Stage, Stages, abstract_params, frozen_and_held, make_plan, split_for
from jaxft.run.treatment import Treatment, frozen_blocks, treat
from jaxft.tasks import TASKS
from jaxft.training.parallel import Parallel, Programs, make_parallel
from jaxft.training.step import Optimizer, TrainState, eval_step, hyperparameters, train_step


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is known before any parameter is read.

    Attributes:
      directory: the checkpoint's local directory.
      treatment: per parameter path: trainable, learning-rate scale, weight decay.
      plan: stages of gradual unfreezing, over depths; () for none.
      num_steps, steps_per_epoch: optimizer updates.
      hyperparameters: the numbers that the optimizer takes as inputs.
      learning_rates: [num_steps] of the schedule, before any factor. Read by the loop: calling the
        schedule there would dispatch a dozen tiny programs a step.
    """

    config: ConfigDict
    directory: str
    architecture: Architecture
    splits: Splits
    treatment: Treatment
    plan: Plan
    num_steps: int
    steps_per_epoch: int
    hyperparameters: dict[str, np.ndarray]
    learning_rates: np.ndarray


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
    prepared = settle(config, directory, open_splits(config, task.inputs, names))
    # By the headers alone: a checkpoint without weights, or with others, is refused here.
    fresh = () if config.model.scratch else hf.missing(directory, prepared.architecture)
    return dataclasses.replace(prepared, treatment=prepared.treatment.knowing(fresh))


def settle(config: ConfigDict, directory: str, splits: Splits) -> Prepared:
    """The rest of `prepare`, which reads no row: of `splits`, only names and the number of rows count."""
    task = TASKS[config.task]
    names = class_names(directory)
    architecture = load_architecture(
        directory,
        num_labels=len(splits.names),
        dropout=config.model.dropout,
        new_head=bool(names) and tuple(names) != splits.names,
    )
    if architecture.inputs != task.inputs:
        raise ValueError(
            f"config.task={config.task!r} needs a model of {task.inputs}, but {config.model.path} is "
            f"{architecture.family.model_type!r}, a model of {architecture.inputs}"
        )
    num_steps, per_epoch = run_length(config, len(splits.train.labels))
    treatment = treat(config, architecture)
    h = numbers(config, treatment, num_steps=num_steps, steps_per_epoch=per_epoch)
    plan = make_plan(
        config, architecture.depths, treatment.frozen, num_steps=num_steps,
        steps_per_epoch=per_epoch,
    )  # fmt: skip
    return Prepared(
        config, directory, architecture, splits, treatment, plan, num_steps, per_epoch,
        h, learning_rates(h, config, num_steps),
    )  # fmt: skip


def findings(prepared: Prepared) -> list[Finding]:
    """What `jaxft.optim.lint` has against the optimizer of this run."""
    config, architecture, treatment = prepared.config, prepared.architecture, prepared.treatment
    tx = base_optimizer(
        prepared.hyperparameters, config=config, treatment=treatment, plan=prepared.plan,
        depths=architecture.depths,
    )  # fmt: skip
    rates = prepared.learning_rates
    return lint(
        tx,
        architecture.abstract,
        frozen={path: path in treatment.frozen for path in architecture.depths},
        patterns=[*config.optim.frozen, *(pattern for pattern, _ in config.optim.lr_mult)],
        plan=prepared.plan,
        groups=architecture.depths if prepared.plan else None,
        schedule=lambda step: rates[min(int(step), len(rates) - 1)],
    )


def build(prepared: Prepared, parallel: Parallel, *, cache: str | None) -> tuple[Run, TrainState]:
    """Read the parameters, make the optimizer, plan the batches, wrap the steps (not yet compiled).

    The first state is apart from the run: the loop donates it, so nothing else may hold it.
    """
    config, architecture = prepared.config, prepared.architecture
    if not prepared.treatment.totals["trainable"]:
        raise ValueError(
            f"nothing to train: config.optim.frozen={config.optim.frozen!r} and "
            f"freeze_below={config.optim.freeze_below} freeze every parameter, the head too"
        )
    encoder = make_encoder(config, prepared.directory, architecture.limits, prepared.splits, cache)
    cut = slicing(parallel, config.train.accumulate)
    train_batches = encoder.training(prepared.splits.train, config, prepared.num_steps, cut)
    eval_batches = encoder.evaluation(prepared.splits.eval, config, cut)
    test = prepared.splits.test
    # Planned now, so that a mistake in the test data is found before the training and not after it.
    test_batches = None if test is None else encoder.evaluation(test, config, slicing(parallel))
    params, report = read_params(prepared, parallel)
    stages = make_stages(prepared, parallel, report.initialised)
    first = stages[0]
    state = parallel.init(*split_for(first.frozen, params), inputs_of(prepared), first.optimizer)
    forward = functools.partial(architecture.apply, dtype=jnp.dtype(config.model.dtype))
    evaluation = functools.partial(eval_step, forward=forward, axis_name=parallel.axis_name)
    run = Run(
        prepared=prepared,
        parallel=parallel,
        encoder=encoder,
        train_batches=train_batches,
        eval_batches=eval_batches,
        test_batches=test_batches,
        eval_rows=Predictions(prepared.splits.eval, encoder),
        stages=Stages(stages, parallel, lambda: blank_batches(train_batches, parallel)),
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
    for index in range(max(1, len(prepared.plan))):
        waiting, held = frozen_and_held(prepared.plan, architecture.depths, index)
        frozen = prepared.treatment.frozen | waiting
        optimizer = functools.partial(
            make_optimizer, config=prepared.config, treatment=prepared.treatment, fresh=fresh,
            plan=prepared.plan, depths=architecture.depths, stage=index,
        )  # fmt: skip
        state = parallel.abstract(*split_for(frozen, shapes), hparams, optimizer)
        step = _step(
            prepared, parallel, optimizer, still=frozen | held, held=held, params=state.params
        )
        start = prepared.plan[index].start if prepared.plan else 0
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
        loss=functools.partial(
            TASKS[config.task].loss, label_smoothing=config.train.label_smoothing
        ),
        optimizer=optimizer,
        accumulate=config.train.accumulate,
        held=path_map(lambda path, _: path in held, params) if held else None,
        axis_name=parallel.axis_name,
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
    steps = duration_steps(
        "eval.every", prepared.config.eval.every,
        steps_per_epoch=prepared.steps_per_epoch, total_steps=prepared.num_steps,
    )  # fmt: skip
    return max(1, steps)
