"""What `describe` says of keeping a frozen prefix, before any weight or most rows are read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxft.experiment.encoder import Batches, Slicing, make_encoder
from jaxft.experiment.prefix_cache import units_of
from jaxft.experiment.prefix_cost import Cost, cost_of, full_batches, obstacle, passes, stage_depths
from jaxft.experiment.prepared import Prepared

_ROWS = 1000  # of the training rows, evenly chosen, whose lengths are looked at


def forecast(prepared: Prepared) -> Iterator[str]:
    """Lines on what is frozen from the start: what it takes and saves, and what `data.cache_prefix` makes
    of it; none where nothing is frozen.

    Raises:
      ValueError: an input cannot be read.
    """
    mode, depths = prepared.config.data.cache_prefix, stage_depths(prepared)
    if max(depths) < (mode != "on"):
        return
    if why := obstacle(prepared):
        yield f"data.cache_prefix={mode!r}: nothing of the frozen prefix can be kept: {why}"
        return
    batches, share = _sample(prepared)
    for stage, depth in enumerate(depths):
        if depth < (mode != "on"):
            continue
        cost, times = _cost(prepared, batches, share, depth), passes(prepared, stage)
        against = {"auto": cost.against(times), "on": "", "off": "it is off"}[mode]
        what = f"not kept: {against}" if against else "kept"
        yield (
            f"data.cache_prefix={mode!r}, from update {prepared.decisions.starts[stage]} on {times:.3g} "
            f"epochs: after block {cost.prefix.depth} about {cost}; {what}"
        )


def _sample(prepared: Prepared) -> tuple[Batches, float]:
    """Batches of some training rows, and what share of all rows these are."""
    config, splits = prepared.config, prepared.splits
    encoder = make_encoder(
        config, prepared.task.inputs, prepared.directory, prepared.architecture.limits, splits, None
    )
    rows = len(splits.train.targets)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, _ROWS)).astype(np.int64))
    return encoder.evaluation(splits.train.take(chosen), config, Slicing()), len(chosen) / rows


def _cost(prepared: Prepared, batches: Batches, share: float, depth: int) -> Cost:
    (batch, full), splits = full_batches(batches), prepared.splits
    both = 1 + len(splits.eval.targets) / len(splits.train.targets)
    cost = cost_of(prepared.architecture, batch, depth, prepared.config)
    units = round(units_of(batches, cost.prefix.space).sum() / share * both)
    return cost.times(full / share, units)
