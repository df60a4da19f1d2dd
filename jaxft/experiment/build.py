"""From a prepared config to everything the loop uses: parameters, optimizer, batches, steps.

`build` does all of it for one run. Trials over the same data and model `share` what they have in
common and `begin` one by one, the later ones with the programs of the first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.experiment.decide import frozen_blocks
from jaxft.experiment.encoder import Batches, Encoder, make_encoder
from jaxft.experiment.evaluation import Predictions
from jaxft.experiment.fitting import Fitting, make_fitting
from jaxft.experiment.keeping import Keeping, keep
from jaxft.experiment.prefix_cache import PrefixCache
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.references import References
from jaxft.experiment.stacking import Stacking, stacked, unstacked
from jaxft.experiment.stages import Stages
from jaxft.experiment.steps import (
    check_batch_size,
    evaluation_step,
    make_stages,
    slicing,
    structure,
)
from jaxft.experiment.streaming import StreamBatches, TrainBatches, stream_batches
from jaxft.experiment.teaching import is_taught, with_teacher
from jaxft.experiment.unused import check_passes_differ
from jaxft.experiment.writing import Writer, make_writer
from jaxft.models import ReadReport, hf
from jaxft.models.checkpoint.growth import read_grown
from jaxft.models.stacking import NOTHING
from jaxft.optim import path_map
from jaxft.tasks.contract import Paired, Referring
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs
from jaxft.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all trials over the same data and model use. Of the weights, only which are not stored."""

    parallel: Parallel
    encoder: Encoder
    eval_batches: Batches
    test_batches: Batches | None
    eval_rows: Predictions
    eval_step: Programs
    fitting: Fitting | None
    writer: Writer | None
    prefixes: PrefixCache
    initialised: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything the loop uses. All of it is a pure function of the config and its sources.

    laid_out: shards for which its texts lie in rows, see `Slicing`.
    """

    prepared: Prepared
    shared: Shared
    train_batches: TrainBatches
    stages: Stages
    eval_every: int
    kept: Keeping
    laid_out: int
    stacking: Stacking

    @property
    def parallel(self) -> Parallel:
        return self.shared.parallel

    @property
    def initialised(self) -> tuple[str, ...]:
        """Paths of what is not from the source checkpoint."""
        return self.shared.initialised

    def eval_batches(self, step: int) -> Batches:
        """Those of an evaluation after so many updates."""
        return self.kept.evaluated(self.shared.eval_batches, step)

    def fitting(self, step: int) -> Fitting | None:
        """What fits the head after so many updates; None where the task trains it."""
        own = self.shared.fitting
        if own is None:
            return None
        return dataclasses.replace(own, batches=self.kept.trained(own.batches, step))

    def evaluated(self, whole: Any) -> Any:
        """A tree of paths, or its shapes with places, as `shared.eval_step` takes it."""
        return stacked(self.stacking.evaluation, whole, int(self.parallel.mode == "pmap"))

    @property
    def writer(self) -> Writer | None:
        """`shared.writer`, which takes the tree that `shared.eval_step` takes."""
        own, axis = self.shared.writer, int(self.parallel.mode == "pmap")
        plain = functools.partial(unstacked, self.stacking.evaluation, axis=axis)
        return own and dataclasses.replace(own, plain=plain)

    def steps_done(self, state: TrainState) -> int:
        """Optimizer updates that led to `state`."""
        return int(self.parallel.unreplicate(state.step))


def build(
    prepared: Prepared,
    parallel: Parallel,
    *,
    cache: str | None,
    laid_out: int = 0,
    stack: bool = False,
) -> tuple[Run, TrainState]:
    """Read the parameters, make the optimizer, plan the batches, wrap the steps (not yet compiled).

    The first state is apart from the run: the loop donates it, so nothing else may hold it.

    Args:
      laid_out: of a run that goes on, `Run.laid_out` of when it began; 0: it begins.
      stack: as `model.stack` says; else nothing is.

    Raises:
      ValueError: nothing would train, an input cannot be read, two passes that are compared would be
        the same, or there are more devices along a batch than it has examples.
    """
    check_trains(prepared)
    # First, so that the teacher's weights are gone when those of the run come.
    prepared = with_teacher(prepared, parallel, cache=cache)
    params, report = read_params(prepared, parallel)
    prepared = with_references(prepared, parallel, params, report, cache=cache)
    shared = share(prepared, parallel, report, cache=cache)
    return begin(prepared, shared, params, laid_out=laid_out, stack=stack)


def with_references(
    prepared: Prepared, parallel: Parallel, params: Any, report: ReadReport, *, cache: str | None
) -> Prepared:
    """The same where the task compares with the model that the run begins with, with what that says.

    params, report: of `read_params`.
    """
    if not isinstance(prepared.task, Referring):
        return prepared
    config, splits = prepared.config, prepared.splits
    encoder = make_encoder(
        config,
        prepared.task.inputs,
        prepared.directory,
        prepared.architecture.limits,
        splits,
        cache,
    )
    # Weights that were drawn now are in no file.
    drawn = config.model.scratch or bool(report.initialised)
    weights = "" if drawn else hf.fingerprints(prepared.directory)["weights"]
    references = References(
        prepared.task, prepared.architecture, params, encoder, config, parallel, weights
    )
    splits = dataclasses.replace(
        splits,
        train=references.known_to(splits.train),
        eval=references.known_to(splits.eval),
        test=None if splits.test is None else references.known_to(splits.test),
    )
    return dataclasses.replace(prepared, splits=splits)


def share(
    prepared: Prepared,
    parallel: Parallel,
    report: ReadReport,
    *,
    cache: str | None,
    readers: int = 1,
) -> Shared:
    """Everything but what is a trial's own.

    Args:
      report: of `read_params`.
      cache: directory of tokenised text; None: not kept.
      readers: trials that will read these rows, see `PrefixCache`.
    """
    config, splits, task = prepared.config, prepared.splits, prepared.task
    architecture = prepared.architecture
    encoder = make_encoder(
        config, task.inputs, prepared.directory, architecture.limits, splits, cache
    )
    cut = slicing(parallel)
    return Shared(
        parallel=parallel,
        encoder=encoder,
        eval_batches=encoder.evaluation(splits.eval, config, cut),
        # Planned now, so that a mistake in the test data is found before the training and not after.
        test_batches=None if splits.test is None else encoder.evaluation(splits.test, config, cut),
        eval_rows=Predictions(task, splits.eval, encoder),
        eval_step=evaluation_step(architecture, task.predictions, config.model.dtype, parallel),
        fitting=make_fitting(architecture, task, encoder, splits.train, config, parallel),
        writer=make_writer(architecture, task, encoder, config, parallel),
        prefixes=PrefixCache(
            architecture,
            prepared.directory,
            encoder,
            config,
            parallel,
            cache,
            (splits.train, splits.eval),
            varies=_draws_stem(prepared, report),
            readers=readers,
        ),
        initialised=report.initialised,
        dropped=report.dropped,
    )


def begin(
    prepared: Prepared,
    shared: Shared,
    params: Any,
    like: Run | None = None,
    laid_out: int = 0,
    *,
    stack: bool = False,
) -> tuple[Run, TrainState]:
    """A run and its first state.

    Args:
      params: the whole tree that it begins with, placed; the state takes it over, so of weights that
        several trials begin with give each one `own_copy`.
      like: another run over the same `shared`: its programs and batches are used where they serve.
      laid_out: see `build`.
      stack: see `build`; not of trials, which share programs.
    """
    check_trains(prepared)
    assert prepared.teacher is None or is_taught(prepared), "with_teacher comes first"
    config, parallel = prepared.config, shared.parallel
    if not laid_out:
        check_batch_size(config, parallel)
    cut = slicing(parallel, config.train.accumulate, laid_out)
    rows, blocks, steps = prepared.splits.train, prepared.splits.blocks, prepared.length.steps
    task = prepared.task
    batches: TrainBatches
    if like is not None and _sees_the_same(like, prepared, shared):
        batches = like.train_batches
    elif isinstance(task, Paired):
        pairing = task.pairing(rows.targets)
        batches = shared.encoder.pairs(rows, pairing, config, steps, cut)
    elif blocks is None:
        batches = shared.encoder.training(rows, config, steps, cut)
    else:
        batches = stream_batches(shared.encoder, rows, blocks, config, steps, cut)
    programs = None
    if like is not None and structure(like.prepared) == structure(prepared):
        programs = like.stages.programs
    stacking = prepared.stacking
    if not stack:
        stacking = Stacking(tuple(NOTHING for _ in prepared.decisions.starts))
    stages = make_stages(prepared, parallel, shared.initialised, programs, stacking.layouts)
    if config.train.r_drop and programs is None:
        architecture = prepared.architecture
        frozen = min(frozen_blocks(architecture, one.frozen | one.held) for one in stages)
        check_passes_differ(config, architecture, batches.blank()[0], frozen)
    kept = keep(prepared, shared.prefixes, params, batches, shared.eval_batches)
    if not isinstance(batches, StreamBatches):
        batches = batches.with_kept(kept.train)
    state = stages[0].begin(params, prepared.inputs(), parallel)
    every = max(1, prepared.length.of(config, "eval.every"))
    laid_out = laid_out or parallel.shards
    made = Stages(stages, parallel)
    return Run(prepared, shared, batches, made, every, kept, laid_out, stacking), state


def _sees_the_same(like: Run, prepared: Prepared, shared: Shared) -> bool:
    """Whether the batches of a run, which are not planned again, are those of another config."""
    if like.shared is not shared or isinstance(like.train_batches, StreamBatches):
        return False
    c, other = prepared.config.train, like.prepared.config.train
    same = (c.seed, c.batch_size, c.accumulate) == (other.seed, other.batch_size, other.accumulate)
    return same and prepared.length.steps == like.prepared.length.steps


def check_trains(prepared: Prepared) -> None:
    """Raises ValueError where every parameter is frozen."""
    c = prepared.config.optim
    if not prepared.decisions.totals["trainable"]:
        raise ValueError(
            f"nothing to train: config.optim.frozen={c.frozen!r} and freeze_below={c.freeze_below} "
            "freeze every parameter, the head too"
        )


def read_params(
    prepared: Prepared, parallel: Parallel, only: Collection[str] | None = None
) -> tuple[Any, ReadReport]:
    """The model's tree as the run begins with it, placed, and what was not in the source.

    only: see `hf.read_params`.
    """
    return hf.read_params(
        prepared.directory,
        prepared.architecture,
        key=_head_key(prepared),
        shardings=prepared.shardings(parallel),
        scratch=prepared.config.model.scratch,
        only=only,
    )


def own_copy(prepared: Prepared, shared: Shared, params: Any, *, copied: bool = True) -> Any:
    """A copy of shared weights for one trial; what no checkpoint holds is drawn by the trial's seed.

    copied: False leaves the rest as it is, for a state that is not donated.
    """
    places = prepared.shardings(shared.parallel)
    key, architecture = _head_key(prepared), prepared.architecture
    drawn = hf.initialise(architecture, shared.initialised, key, places)
    if not prepared.config.model.scratch:
        drawn |= read_grown(prepared.directory, architecture, key, places)

    def own(path: str, x: jax.Array) -> jax.Array:
        return drawn[path] if path in drawn else jnp.copy(x) if copied else x

    return path_map(own, params)


def _draws_stem(prepared: Prepared, report: ReadReport) -> bool:
    """Whether the seed draws a parameter that is not the head's."""
    architecture = prepared.architecture
    drawn = {*report.initialised, *architecture.grown}
    depths = {**architecture.depths, **architecture.statistics}
    return prepared.config.model.scratch or any(
        depths[path] <= architecture.num_blocks for path in drawn
    )


def _head_key(prepared: Prepared) -> jax.Array:
    return jax.random.fold_in(jax.random.key(prepared.config.train.seed), 1)
