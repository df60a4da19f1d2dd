"""A learning-rate range test: a few updates of a run, at a rate that grows from each to the next.

The rate is an input of the training step, so all updates are one program, and so are those of several
seeds. Nothing is saved: the weights that it ruins are its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis.range_curve import DIVERGED, RangeCurve, smoothed
from jaxft.config import ConfigDict, override
from jaxft.data.loader import iterate
from jaxft.experiment.build import Run, build, read_params
from jaxft.experiment.prepared import Prepared, prepare
from jaxft.experiment.steps import devices, make_stages
from jaxft.experiment.streaming import Place, StreamBatches
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs
from jaxft.training.step import TrainState

# (updates done, rate of the last one, its mean loss over seeds)
Told = Callable[[int, float, float], None]
# Rate -> the optimizer's numbers that follow from optim.lr.
Numbers = Callable[[float], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Tested:
    """A range test that has been made.

    Attributes:
      together: the seeds were one program.
      notes: what of the run was done otherwise, one line each.
    """

    curve: RangeCurve
    prepared: Prepared
    together: bool
    notes: tuple[str, ...]


def range_test(
    config: ConfigDict, *, lowest: float, highest: float, steps: int, seeds: int,
    cache: str | None = None, told: Told | None = None,
) -> Tested:  # fmt: skip
    """Measure the loss of `steps` batches of the run, each at the next rate.

    What the rate of a parameter is relative to `optim.lr` stays: layer_decay, lr_mult, groups without a
    rate of their own. There is no warm-up and no schedule, and gradual unfreezing stays in its first stage.

    Args:
      config: of the run.
      lowest, highest: rates of the first and the last update; those between grow by one factor.
      seeds: so many runs that differ in their newly initialised weights and in their dropout, and read the
        same batches in the same order, those of `train.seed`. A seed ends where its smoothed loss is not
        finite or more than four times the least so far; the test ends with the last of them.
      cache: folder of tokenised text; None: not kept.
      told: hears of each update.

    Raises:
      ValueError: a config that cannot work, or no parameter trains at a rate that follows from optim.lr.
      FloatingPointError: the loss of the first batch is not finite.
    """
    prepared, notes = _prepared(config, steps, cache)
    numbers = _numbers_of(prepared)
    run, state = build(prepared, devices(config), cache=cache)
    rates = np.geomspace(lowest, highest, steps)
    together = seeds > 1 and run.parallel.mode == "jit"
    if together:
        losses = _together(run, state, seeds, rates, numbers, told)
    else:
        losses = np.full((seeds, steps), np.nan)
        for seed in range(seeds):
            state = state if seed == 0 else _first_state(run, seed)
            program = run.stages.at(0).program
            losses[seed] = _measured(run, program, state, rates, numbers, told, 1)[0]
    if not np.isfinite(losses[:, 0]).all():
        raise FloatingPointError("the loss of the first batch is not finite, at the lowest rate")
    last = int(np.isfinite(losses).any(0).sum())
    curve = RangeCurve(rates[:last], losses[:, :last], steps)
    if seeds > 1 and (losses[:, :last] == losses[:1, :last])[np.isfinite(losses[:, :last])].all():
        notes.append(
            "all seeds are the same: no weight is newly initialised, and there is no dropout"
        )
    return Tested(curve, prepared, together, tuple(notes))


def _prepared(config: ConfigDict, steps: int, cache: str | None) -> tuple[Prepared, list[str]]:
    """The run at a constant rate, as long as the test at least, and what is otherwise than in the run."""
    groups = tuple(
        (pattern, {name: x for name, x in dict(own).items() if name != "schedule"})
        for pattern, own in config.optim.groups
    )
    constant = {"optim.schedule": "constant", "optim.warmup": "0 steps", "optim.groups": groups}
    config = override(config, constant)
    prepared, notes = prepare(config, cache), []
    if prepared.length.steps < steps:
        prepared = prepared.trial(override(config, {"train.steps": steps}))
    if config.data.cache_prefix == "auto" and steps <= prepared.length.epoch:
        # What frozen blocks give would be computed for all rows, of which the test reads a part, once.
        once = override(prepared.config, {"data.cache_prefix": "off"})
        prepared = dataclasses.replace(prepared, config=once)
    if prepared.decisions.plan:
        notes.append("optim.unfreeze: what the first stage trains, for all steps of the test")
    if steps > prepared.length.epoch and not config.data.stream:
        notes.append(
            f"the {steps} steps are more than an epoch ({prepared.length.epoch}): later ones are of rows "
            "that were learned before, whose loss is lower"
        )
    return prepared, notes


def _numbers_of(prepared: Prepared) -> Numbers:
    """What the optimizer takes at another `optim.lr`.

    Found by asking for two of them, so that what follows from it, and what has a rate of its own, is settled
    where every run settles it.

    Raises:
      ValueError: nothing that trains follows from it.
    """
    config = prepared.config
    one, two = (prepared.trial(override(config, {"optim.lr": lr})) for lr in (1.0, 2.0))
    first, second = one.hyperparameters, two.hyperparameters
    follows = {name: x != second[name] for name, x in first.items()}
    if config.optim.groups and not follows["group_lr"].any():
        raise ValueError(
            "config.optim.groups gives every parameter that trains a rate of its own, so nothing follows "
            "from config.optim.lr; leave the 'lr' of a group out to look for it"
        )
    return lambda rate: {
        # At the rate 1, what follows from it is the rate.
        name: np.where(follows[name], x * rate, x).astype(x.dtype)
        for name, x in first.items()
        if follows[name].any()
    }


@dataclasses.dataclass(frozen=True)
class _Together(Parallel):
    """One device, on which the training step is that of several states that share what is frozen."""

    def compile_train(self, step: Callable[..., Any], state: TrainState) -> Programs:
        axes = _axes(state)
        many = jax.vmap(step, in_axes=(axes, None), out_axes=(axes, 0))
        return Programs(jax.jit(many, donate_argnums=0))


def _axes(state: TrainState) -> TrainState:
    """Which parts of a state have a leading axis of seeds."""
    none: Any = None
    stats = None if state.stats is None else 0
    return TrainState(none, 0, None, 0, {"key": 0, "optimizer": None}, stats)


def _together(
    run: Run, state: TrainState, seeds: int, rates: np.ndarray, numbers: Numbers, told: Told | None
) -> np.ndarray:
    """[seeds, steps] losses of all seeds by one program."""
    parallel = _Together(run.parallel.mode, run.parallel.mesh, run.parallel.shards)
    program = make_stages(run.prepared, parallel, run.initialised)[0].program
    own = [_own(state), *(_own(_first_state(run, seed)) for seed in range(1, seeds))]
    params, opt_state, stats, key = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    hparams = {**state.hparams, "key": key}
    state = TrainState(state.step, params, state.frozen, opt_state, hparams, stats)
    del own
    return _measured(run, program, state, rates, numbers, told, seeds)


def _own(state: TrainState) -> tuple[Any, ...]:
    return state.params, state.opt_state, state.stats, state.hparams["key"]


def _first_state(run: Run, seed: int) -> TrainState:
    """Of another seed; the weights are read again, as another state was begun with those that were."""
    config = run.prepared.config
    trial = run.prepared.trial(override(config, {"train.seed": config.train.seed + seed}))
    params, _ = read_params(trial, run.parallel)
    return run.stages.at(0).begin(params, trial.inputs(), run.parallel)


def _measured(
    run: Run, program: Programs, state: TrainState, rates: np.ndarray, numbers: Numbers,
    told: Told | None, seeds: int,
) -> np.ndarray:  # fmt: skip
    """[seeds, steps] losses, NaN behind the end of each.

    Args:
      state: with a leading axis of seeds where these are several; is donated.
    """
    parallel, losses = run.parallel, np.full((seeds, len(rates)), np.nan)
    running = np.full(seeds, True)
    with closing(_batches(run, len(rates))) as batches:
        for step, (rate, batch) in enumerate(zip(rates, batches, strict=True)):
            state, metrics = program(_at(state, numbers(rate), parallel), batch)
            loss = np.asarray(parallel.unreplicate(metrics["loss"]), np.float64).reshape(seeds)
            losses[running, step] = np.where(np.isfinite(loss), loss, np.nan)[running]
            running &= ~_diverged(losses[:, : step + 1])
            if told is not None:
                told(step + 1, float(rate), float(loss.mean()))
            if not running.any():
                break
    return losses


def _batches(run: Run, steps: int) -> Any:
    """Those of the run, from the first on."""
    batches = run.train_batches
    if isinstance(batches, StreamBatches):
        batches.go_to(Place().to_json(), 0)  # another seed was further on
    threads = run.prepared.config.data.workers
    return iterate(batches, 0, steps, threads=threads, put=run.parallel.put)


def _at(state: TrainState, numbers: dict[str, np.ndarray], parallel: Parallel) -> TrainState:
    """The same with other numbers for its optimizer."""
    optimizer = dict(state.hparams["optimizer"])
    for name, value in numbers.items():
        old = optimizer[name]
        optimizer[name] = jax.device_put(np.broadcast_to(value, old.shape), old.sharding)
    return dataclasses.replace(state, hparams={**state.hparams, "optimizer": optimizer})


def _diverged(losses: np.ndarray) -> np.ndarray:
    """[K, t] -> [K]: the last of the smoothed losses is none, or far above the least."""
    means = smoothed(losses)
    least = np.fmin.reduce(means, axis=-1)
    return ~np.isfinite(means[:, -1]) | ((means[:, -1] > DIVERGED * least) & (least > 0))
