"""Steps whose metrics are still to be fetched, and sums over those fetched since the last row of a log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Fed:
    """What the data pipeline gave the steps.

    Attributes:
      filled, places: of this batch, how many places hold something and how many are computed.
      waited: seconds for which the devices waited for batches, in this process so far.
    """

    filled: int
    places: int
    waited: float


@dataclasses.dataclass(frozen=True)
class Step:
    """A step whose metrics may still be computed on the device."""

    number: int
    metrics: Mapping[str, jax.Array]
    learning_rate: float
    handed_in: float
    fed: Fed | None

    def is_ready(self) -> bool:
        # jax.Array documents no is_ready, its implementation has it.
        return all(v.is_ready() for v in self.metrics.values())  # type: ignore[attr-defined]


@dataclasses.dataclass
class Window:
    """Sums over the fetched steps since the last row."""

    steps: int = 0
    last: Step | None = None
    weight: float = 0.0
    loss: float = 0.0
    grad_norm: float = 0.0
    tokens: float = 0.0
    # Of each name: [n, 2] sums of losses and of weights.
    tallies: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    filled: int = 0
    places: int = 0

    def add(
        self, step: Step, values: Mapping[str, float], tallies: Mapping[str, np.ndarray]
    ) -> None:
        self.steps += 1
        self._note(step)
        self.weight += values["weight"]
        self.loss += values["loss"] * values["weight"]
        self.grad_norm += values["grad_norm"]
        self.tokens += values.get("tokens", 0.0)
        for name, sums in tallies.items():
            self.tallies[name] = self.tallies.get(name, 0) + sums

    def add_left_out(self, step: Step) -> None:
        """A step whose update was not made: its loss and gradient are not finite."""
        self._note(step)

    def _note(self, step: Step) -> None:
        self.last = step
        if step.fed is not None:
            self.filled += step.fed.filled
            self.places += step.fed.places

    def tally(self, of: str, names: Sequence[str]) -> list[tuple[str, float, float]]:
        """(name, sum of its losses, of its weights) of each; [] where the steps had no such tally."""
        sums = self.tallies.get(of)
        if sums is None:
            return []
        pairs = np.asarray(sums, np.float64).tolist()
        return [(name, *pair) for name, pair in zip(names, pairs, strict=True)]
