"""One step of several plans in rows of one shape, so that their batches can be one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxft.data import packing
from jaxft.data.batching import Layout, TrainPlan, cheapest
from jaxft.data.packing import Shape


def common_layouts(plans: Sequence[TrainPlan], step: int) -> list[Layout]:
    """Of each plan the layout of this step, all in one shape: the cheapest of the first plan that holds each.

    Of a plan that has ended an empty one. `shards` and `pack` are those of the first.
    """
    first = plans[0]
    drawn = [plan.sampler(step) if step < len(plan) else (None, 0) for plan in plans]
    lengths = [
        plan.lengths[examples]
        for plan, (examples, _) in zip(plans, drawn, strict=True)
        if examples is not None
    ]

    def holds(shape: Shape) -> bool:
        return all(cheapest((shape,), own, first.shards, first.pack) for own in lengths)

    fallbacks = [plan.fallback for plan in plans]
    most = Shape(max(one.length for one in fallbacks), max(one.rows for one in fallbacks))
    shape = next(filter(holds, first.shapes), most)
    empty = np.full(
        (first.shards * shape.rows, packing.slots_per_row(shape.length, first.pack)), -1, np.int64
    )
    found = []
    for plan, (examples, epoch) in zip(plans, drawn, strict=True):
        slots = empty
        if examples is not None:
            own = plan.lengths[examples]
            slots = packing.arrange(own, examples, shape, first.shards, first.pack)
        found.append(Layout(shape.length, slots, epoch))
    return found
