"""The batches of trials that do not see the same: arrays [K, ...] for all of them, of one shape a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxft.data.batching import TrainPlan
from jaxft.data.common_shapes import common_layouts
from jaxft.data.kept import Schedule
from jaxft.data.loader import ImageBatches, TextBatches
from jaxft.data.targets import Batch
from jaxft.experiment.build import Run
from jaxft.experiment.streaming import TrainBatches


class TrialBatches:
    """Step i of each trial, on a new first axis; as many steps as the longest trial has.

    Texts of one step lie in rows of one shape in all trials, the cheapest that holds each. Where that is
    not the one that a run alone would take, the same examples lie elsewhere: the same loss, to rounding, but
    for dropout, whose masks go by place. A trial that has ended sees padding.

    Args:
      several: of trials of one batch size, see `stackable`.
    """

    def __init__(self, several: Sequence[TextBatches | ImageBatches]):
        if any(
            one.kept.at(0) is None for one in several
        ):  # of a frozen prefix: all of them or none
            several = [one.with_kept(Schedule()) for one in several]
        self._several = several
        self._texts = [one for one in several if isinstance(one, TextBatches)]
        plans = [one.plan for one in self._texts]
        self._plans = [plan for plan in plans if isinstance(plan, TrainPlan)]

    def __len__(self) -> int:
        return max(map(len, self._several))

    def __getitem__(self, step: int) -> Batch:
        if self._plans:
            layouts = common_layouts(self._plans, step)
            several = zip(self._texts, layouts, strict=True)
            return _stacked([one.fill(layout, one.kept.at(step)) for one, layout in several])
        return _stacked([one[step] if step < len(one) else one.blank()[0] for one in self._several])

    def blank(self) -> list[Batch]:
        """A batch of padding in each shape that is planned; those of other steps come when they do."""
        if not self._plans:
            return [_stacked([one.blank()[0] for one in self._several])]
        return [
            _stacked([one.fill(layout, one.kept.at(0)) for one in self._texts])
            for layout in self._plans[0].blank()
        ]


def stackable(batches: TrainBatches) -> bool:
    """Whether `TrialBatches` can hold these among others of their kind."""
    return type(batches) is ImageBatches or (
        type(batches) is TextBatches
        and isinstance(batches.plan, TrainPlan)
        and batches.tokens.answers is None
    )


def are_same(first: Run, second: Run) -> bool:
    """Whether batch i of one is batch i of the other, as long as both last."""
    a, b = first.train_batches, second.train_batches
    if first.shared is not second.shared or type(a) is not type(b):
        return False
    one, two = (run.prepared.config.train for run in (first, second))
    if (one.seed, one.batch_size, one.accumulate) != (two.seed, two.batch_size, two.accumulate):
        return False
    # Of runs of other lengths, other shapes may pay.
    plans = [getattr(batches, "plan", None) for batches in (a, b)]
    shapes = [plan.shapes if isinstance(plan, TrainPlan) else None for plan in plans]
    return shapes[0] == shapes[1]


def _stacked(batches: Sequence[Batch]) -> Batch:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
