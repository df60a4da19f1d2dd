"""Which prefix is kept in which stage of a run, by `data.cache_prefix`."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxft.data.kept import Kept, Schedule
from jaxft.experiment.encoder import Batches
from jaxft.experiment.prefix_cache import NoRoomError, PrefixCache, units_of
from jaxft.experiment.prefix_cost import (
    Cost,
    cannot_pay,
    cost_of,
    full_batches,
    obstacle,
    passes,
    stage_depths,
)
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.streaming import StreamBatches, TrainBatches


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Attributes:
    train, evaluation: what is kept of the training and of the evaluation rows, by update.
    depths: of each stage the block after which it is; None where nothing is kept.
    notes: what was decided, one line each.
    """

    train: Schedule = Schedule()
    evaluation: Schedule = Schedule()
    depths: tuple[int | None, ...] = ()
    notes: tuple[str, ...] = ()

    def evaluated(self, batches: Batches, step: int) -> Batches:
        """Batches of the evaluation rows after so many updates."""
        return _with(batches, self.evaluation, step)

    def trained(self, batches: Batches, step: int) -> Batches:
        """Batches that have each training row once, after so many updates."""
        return _with(batches, self.train, step)


def _with(batches: Batches, kept: Schedule, step: int) -> Batches:
    return batches.with_kept(Schedule(((0, kept.at(max(0, step - 1))),)))


def keep(
    prepared: Prepared,
    cache: PrefixCache,
    params: Any,
    train: TrainBatches,
    evaluation: Batches,
) -> Keeping:
    """Settle what is kept, and compute what of it is not there yet. All processes call.

    Args:
      cache: of the training and the evaluation rows.
      params: that the run begins with, placed and not replicated.
      train, evaluation: batches of those rows.

    Raises:
      ValueError: `data.cache_prefix` is 'on', and nothing can be kept.
      FloatingPointError, OSError: see `PrefixCache.of`.
    """
    mode, depths = prepared.config.data.cache_prefix, stage_depths(prepared)
    if mode == "off" or (mode == "auto" and max(depths) < 1):
        return Keeping()
    why = obstacle(prepared)
    if not why and max(depths) < 0:
        why = "nothing is frozen from the embeddings on (config.optim.freeze_below)"
    if why and mode == "on":
        raise ValueError(f"config.data.cache_prefix='on' is not possible: {why}")
    if why:
        return Keeping(notes=(_not_kept(why),))
    assert not isinstance(train, StreamBatches)
    found, notes = list[tuple[Kept | None, ...]](), list[str]()
    for stage, depth in enumerate(depths):
        if depth < (mode == "auto"):
            found.append((None, None))
            continue
        times = passes(prepared, stage) * cache.readers
        batch, batches = full_batches(train)
        why = ""
        if mode == "auto":
            why = cannot_pay(prepared.architecture, batch, depth, batches, times)
        if not why:
            cost = _cost(prepared, cache, train, evaluation, depth)
            why = cost.against(times) if mode == "auto" else ""
        kept, said = ((None, None), _not_kept(why)) if why else _found(cache, cost, params, mode)
        found.append(kept)
        notes.append(said)
    starts = prepared.decisions.starts
    training, evaluated = (
        Schedule(tuple(zip(starts, own, strict=True))) for own in zip(*found, strict=True)
    )
    kept_after = tuple(None if kept is None else kept.depth for kept, _ in found)
    return Keeping(training, evaluated, kept_after, tuple(dict.fromkeys(notes)))


def _found(
    cache: PrefixCache, cost: Cost, params: Any, mode: str
) -> tuple[tuple[Kept | None, ...], str]:
    """What is kept of the training and the evaluation rows, and what to say of it."""
    try:
        return cache.of(cost.prefix, params), f"kept after block {cost.prefix.depth}: {cost}"
    except NoRoomError as error:
        if mode == "on":
            raise ValueError(f"config.data.cache_prefix='on': {error}") from None
        return (None, None), _not_kept(str(error))


def _not_kept(why: str) -> str:
    return f"the frozen prefix is computed at each step: {why}"


def _cost(
    prepared: Prepared, cache: PrefixCache, train: Batches, evaluation: Batches, depth: int
) -> Cost:
    """Of one batch the same for every trial over data of the same shapes, such as folds, so counted once."""
    batch, batches = full_batches(train)
    known = (depth, *((name, x.shape) for name, x in batch.items()))
    if known not in cache.costs:
        cache.costs[known] = cost_of(prepared.architecture, batch, depth, prepared.config)
    space = cache.costs[known].prefix.space
    units = sum(int(units_of(one, space).sum()) for one in (train, evaluation))
    return cache.costs[known].times(batches, units)
