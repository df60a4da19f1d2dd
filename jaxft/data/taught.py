"""Targets with what another model, a teacher, says of the same rows."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxft.data.labels import Labels
from jaxft.data.tags import Tags
from jaxft.data.targets import Batch, Targets, offsets_of


@dataclasses.dataclass(frozen=True)
class Taught:
    """See `Targets`, whose rows and contents are those of `own`.

    Attributes:
      own: what the data say.
      logits: [E, C] float32 of the teacher, for each prediction by `own.offsets`, its outputs in the order
        of the model's; NaN where it could not read that far.
    """

    own: Targets
    logits: np.ndarray

    def __post_init__(self) -> None:
        assert self.logits.ndim == 2 and len(self.logits) == self.own.offsets[-1]

    @property
    def rows(self) -> np.ndarray:
        return self.own.rows

    @property
    def names(self) -> tuple[str, ...]:
        return self.own.names

    @property
    def dropped(self) -> np.ndarray:
        return self.own.dropped

    @property
    def offsets(self) -> np.ndarray:
        return self.own.offsets

    def __len__(self) -> int:
        return len(self.own)

    def take(self, positions: np.ndarray) -> Taught:
        starts, counts = self.offsets[positions], np.diff(self.offsets)[positions]
        ends = offsets_of(counts)
        own = np.repeat(starts - ends[:-1], counts) + np.arange(ends[-1])
        return Taught(self.own.take(positions), self.logits[own])

    def strata(self) -> np.ndarray:
        return self.own.strata()

    def said_of_strata(self) -> str:
        return self.own.said_of_strata()

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """What `own` fills in and, for each prediction of the batch, 'teacher' [..., C] float32 and
        'teacher_weight' [...] float32, what being near to it counts; 0 where there is nothing.

        It counts 1 or, where classes have weights, their mean over all examples: these change which
        labels count more, and not what the labels count beside the teacher.
        """
        at = self.own.word_of(slots, inputs) if isinstance(self.own, Tags) else slots
        found = self.logits[at]
        known = (at >= 0) & ~np.isnan(found[..., 0])
        return self.own.fill(slots, inputs) | {
            "teacher": np.where(known[..., None], found, 0).astype(np.float32),
            "teacher_weight": (known * self._each).astype(np.float32),
        }

    @functools.cached_property
    def _each(self) -> float:
        return self.own.mean_weight() if isinstance(self.own, Labels) else 1.0

    def contents(self) -> tuple[np.ndarray, ...]:
        return self.own.contents()
