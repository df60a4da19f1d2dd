"""The compiled steps of a run: a training step for each stage, and the evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict
from jaxft.config_fields import FIELDS
from jaxft.experiment.decide import frozen_blocks, moving_statistics
from jaxft.experiment.encoder import Slicing
from jaxft.experiment.optimizer import OptimizerOf
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.stacking import broken_blocks, stacked
from jaxft.experiment.stages import Stage, abstract_params, split_for
from jaxft.models import Architecture, Pass, move_statistics, prefix
from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.models.scanned import norm_of
from jaxft.models.stacking import NOTHING, Layout
from jaxft.optim import Norm, path_map
from jaxft.tasks.contract import Contrastive, Distils, Shaped, Task
from jaxft.tasks.distillation import DistillationLoss
from jaxft.tasks.mixed import mixed_loss
from jaxft.training.by_source import losses_by_source
from jaxft.training.cached_gradient import CachedGradient
from jaxft.training.gradient import GradientFn, MeanGradient
from jaxft.training.mesh import make_parallel
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs
from jaxft.training.step import (
    Disagreement,
    Loss,
    Optimizer,
    Predictions,
    Tally,
    TrainState,
    eval_step,
    train_step,
)


def make_stages(
    prepared: Prepared,
    parallel: Parallel,
    fresh: Collection[str],
    programs: Sequence[Programs] | None = None,
    layouts: Sequence[Layout] = (),
) -> list[Stage]:
    """One stage for each of the plan, or a single one.

    Args:
      fresh: paths that are newly initialised.
      programs: of another run, one a stage, where `structure` says that they serve this one too.
      layouts: how the state of each stage is stacked; () is not at all.
    """
    architecture = prepared.architecture
    shapes = abstract_params(architecture.whole, prepared.shardings(parallel))
    hparams = prepared.inputs()
    norm = _norm(prepared, parallel)
    stages = []
    decisions = prepared.decisions
    for index, start in enumerate(decisions.starts):
        held = decisions.held_in(index)
        moving = moving_statistics(prepared.config, architecture, decisions, index)
        frozen = decisions.frozen_in(index) | (architecture.statistics.keys() - moving)
        layout = layouts[index] if layouts else NOTHING
        optimizer = OptimizerOf(prepared.config, decisions, frozenset(fresh), index, layout, norm)
        params, fixed, stats = stacked(layout, split_for(frozen, moving, shapes))
        state = parallel.abstract(params, fixed, hparams, optimizer, stats)
        step = _step(
            prepared,
            parallel,
            optimizer,
            still=frozen | held,
            held=held,
            state=state,
            layout=layout,
            norm=norm,
        )
        program = parallel.compile_train(step, state) if programs is None else programs[index]
        stages.append(Stage(start, frozen, held, moving, optimizer, state, step, program, layout))
    return stages


def _step(
    prepared: Prepared,
    parallel: Parallel,
    optimizer: Optimizer,
    *,
    still: Collection[str],
    held: Collection[str],
    state: TrainState,
    layout: Layout,
    norm: Norm,
) -> Callable[..., Any]:
    """The training step of one stage, waiting for `(state, batch)`."""
    config, architecture = prepared.config, prepared.architecture
    norms = state.stats is not None and config.model.batch_stats == "train"
    forward = functools.partial(
        prefix.forward,
        architecture,
        how=Pass(
            frozen_blocks=frozen_blocks(architecture, still),
            remat=config.model.remat,
            dtype=jnp.dtype(config.model.dtype),
            batch_stats=norms,
            axis_name=parallel.axis_name,
            isolated=_isolated(parallel),
        ),
    )
    loss = _loss(prepared)
    return functools.partial(
        train_step,
        forward=forward,
        loss=loss,
        optimizer=optimizer,
        disagreement=_apart(prepared.task, config.train.r_drop),
        gradient=_gradient(prepared.task, config.train.accumulate, parallel.axis_name),
        held=path_map(lambda path, _: path in held, state.params) if held else None,
        moved=move_statistics if norms else None,
        tallies=_tallies(prepared, loss, parallel.axis_name),
        nonfinite=config.train.on_nonfinite,
        norm=norm,
        broken=functools.partial(broken_blocks, layout) if layout else None,
    )


def _isolated(parallel: Parallel) -> bool:
    """Whether equal blocks are compiled each by itself, so that stacked or not they have the same bits.

    Over a mesh the branch would cost a message a block, and other parts round by the mesh anyway.
    """
    return parallel.mode in ("jit", "pmap") and parallel.platform == "cpu"


def _norm(prepared: Prepared, parallel: Parallel) -> Norm:
    architecture = prepared.architecture
    if not _isolated(parallel) or not isinstance(architecture, NativeArchitecture):
        return optax.tree.norm
    return norm_of(architecture.repeats, architecture.whole)


def _loss(prepared: Prepared) -> Loss:
    """The task's, and the distance from the teacher where there is one."""
    config, task = prepared.config, prepared.task
    own = functools.partial(task.loss, label_smoothing=config.train.label_smoothing)
    loss = functools.partial(mixed_loss, loss=own)
    if prepared.teacher is None:
        return loss
    assert isinstance(task, Distils), task
    return DistillationLoss(task, loss, config.distill.weight, config.distill.temperature)


def _tallies(prepared: Prepared, loss: Loss, axis_name: str | None) -> dict[str, Tally]:
    """What the log tells apart of the loss: 'sources' of a mixture, 'parts' of distillation."""
    tallies: dict[str, Tally] = {}
    mixture = prepared.splits.train.source.mixture
    # Of a loss that compares examples with each other no part is one source's.
    if mixture is not None and not isinstance(prepared.task, Contrastive):
        tallies["sources"] = functools.partial(
            losses_by_source, loss=loss, count=len(mixture.names), axis_name=axis_name
        )
    if isinstance(loss, DistillationLoss):
        tallies["parts"] = functools.partial(loss.parts, axis_name=axis_name)
    return tallies


def _apart(task: Task[Any], factor: float) -> Disagreement | None:
    """What two passes that differ in their dropout add to the loss; None where there is one."""
    if not factor:
        return None
    assert isinstance(task, Shaped), task
    return lambda first, second, batch: factor * task.disagreement(first, second, batch)


def _gradient(task: Task[Any], accumulate: int, axis_name: str | None) -> GradientFn:
    if isinstance(task, Contrastive):
        return CachedGradient(task.embed, task.contrast, accumulate, axis_name)
    return MeanGradient(accumulate, axis_name)


def evaluation_step(
    architecture: Architecture, predictions: Predictions, dtype: str, parallel: Parallel
) -> Programs:
    """`(params, batch) -> predictions`, compiled a shape at a time.

    Args:
      predictions: of a task, or what else is to be known of each example.
      dtype: of the computation: `model.dtype`.
    """
    return parallel.compile_eval(evaluation(architecture, predictions, dtype, parallel))


def evaluation(
    architecture: Architecture, predictions: Predictions, dtype: str, parallel: Parallel
) -> Callable[..., Any]:
    """The same before it is compiled."""
    return functools.partial(
        eval_step,
        forward=functools.partial(
            prefix.forward,
            architecture,
            how=Pass(dtype=jnp.dtype(dtype), isolated=_isolated(parallel)),
        ),
        predictions=predictions,
        axis_name=parallel.axis_name,
    )


def structure(prepared: Prepared) -> tuple[Any, ...]:
    """What decides the compiled training steps; runs for which it is equal can share them.

    Everything else is an input of the program: rates, decay, clipping, factors of parameters, seed,
    length of the run.
    """
    values = flatten(prepared.config)
    fields = tuple((f.name, values[f.name]) for f in FIELDS if f.compiled)
    rows = tuple(
        (row.path, row.stages, row.group, row.decays, row.schedule, row.optimizer)
        for row in prepared.decisions
    )
    inputs = tuple((name, x.shape) for name, x in prepared.hyperparameters.items())
    # Momentum of nothing is left out of the program.
    return (
        prepared.directory,
        fields,
        rows,
        inputs,
        (bool(prepared.config.optim.b1), bool(prepared.decisions.plan)),
    )


def slicing(parallel: Parallel, accumulate: int = 1, laid_out: int = 0) -> Slicing:
    """How this process's batches are cut."""
    return Slicing(parallel.shards, accumulate, *parallel.reader, laid_out)


def padding_note(config: ConfigDict, parallel: Parallel) -> str:
    """A line on batches of which some devices have less than others; '' where none has."""
    size, shards = config.train.batch_size, parallel.shards
    if size % shards == 0:
        return ""
    lower, upper = size // shards * shards, -(-size // shards) * shards
    nearest = f"{lower} or {upper}" if lower else str(upper)
    return (
        f"train.batch_size={size} does not divide over {shards} devices, which wait for the fullest of "
        f"them; {nearest} would"
    )


def check_batch_size(config: ConfigDict, parallel: Parallel) -> None:
    """Raises ValueError where a run would begin with devices that never have anything to do."""
    size, shards = config.train.batch_size, parallel.shards
    if size < shards:
        raise ValueError(
            f"config.train.batch_size={size} leaves {shards - size} of {shards} devices without an "
            f"example: give {shards} or more, or let devices share the matrix products of an example by "
            "config.parallel.tensor"
        )


def devices(config: ConfigDict, there: Sequence[jax.Device] | None = None) -> Parallel:
    """The devices of `config.parallel`; `there` are those of a machine that is not here."""
    c = config.parallel
    sizes = {"data": c.data, "fsdp": c.fsdp, "context": c.context, "tensor": c.tensor}
    return make_parallel(c.mode, **sizes, devices=there)
