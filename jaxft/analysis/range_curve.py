"""The curve of a learning-rate range test, and which rates it suggests.

The rate grows from step to step, and the loss tells from where on it is too high (Smith 2017,
arXiv:1506.01186). How the loss is smoothed, when the test ends and the four ways to read the curve are those
of fastai's `lr_find` (Howard and Gugger 2020, arXiv:2002.04688).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

BETA = 0.98  # of the moving average
DIVERGED = 4.0  # times the least smoothed loss: too high
_LAST = 5  # steps that no rule looks at: in them the loss runs away
_APART = 15  # steps between the two points of `slide`
_ALIKE = 0.005  # slopes, in loss a step
_FEWEST = _APART + 2  # points of a curve that is read
FEWEST_STEPS = 30  # of a test, of which it has them


def smoothed(losses: np.ndarray) -> np.ndarray:
    """[..., T] -> the same shape: moving average, bias-corrected, of each row; from a NaN on it is NaN.

    >>> smoothed(np.array([1.0, 1.0, 1.0])).round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    means = np.empty(np.shape(losses))
    value = np.zeros(np.shape(losses)[:-1])
    for step in range(losses.shape[-1]):
        value = BETA * value + (1 - BETA) * losses[..., step]
        means[..., step] = value / (1 - BETA ** (step + 1))
    return means


@dataclasses.dataclass(frozen=True)
class RangeCurve:
    """What was measured.

    Attributes:
      rates: [T] float64, of each step, growing.
      losses: [K, T] float64, of the batches, by seed; NaN behind a seed's last step.
      planned: steps that there would have been.
    """

    rates: np.ndarray
    losses: np.ndarray
    planned: int

    @property
    def common(self) -> int:
        """Steps that all seeds have."""
        return int(np.isfinite(self.losses).all(0).sum())

    @property
    def mean(self) -> np.ndarray:
        """[common] the smoothed mean loss over seeds: what the rules read."""
        return smoothed(self.losses[:, : self.common].mean(0))

    @property
    def read(self) -> slice:
        """The steps that they read: neither the first tenth of those planned, nor the last five."""
        return slice(self.planned // 10, max(0, self.common - _LAST))

    @property
    def ceiling(self) -> float:
        """As far above where the loss began as it fell below; higher it has run away."""
        means = self.mean
        return float(means[0] + max(means[0] - means.min(), 0.05 * abs(means[0])))

    @property
    def shown(self) -> int:
        """Steps until the loss has run away, at least two."""
        means = self.mean
        least = int(means.argmin())
        away = means[least:] > self.ceiling
        return max(2, least + int(away.argmax())) if away.any() else len(means)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A rate and how it was found."""

    name: str
    rate: float
    meaning: str


def valley(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The middle of the longest way down: of the longest subsequence in which every loss is less than the
    one before. None: there is none of three."""
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        higher = losses[:i] > losses[i]
        lengths[i] += lengths[:i].max(where=higher, initial=0)
    end = int(lengths.argmax())
    if lengths[end] < 3:
        return None
    third = lengths[end] / 3  # half of the middle third lies before it
    return float(rates[max(0, end - lengths[end]) + int(third) + int(third / 2)])


def slide(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """Where the curve becomes straight, seen from its right end: two points `_APART` steps from each other
    go left together until their slopes are alike; the left one."""
    slopes, found = np.gradient(losses), None
    for left in range(len(losses) - 1 - _APART, -1, -1):
        if found is not None and abs(slopes[left + _APART] - slopes[left]) <= _ALIKE:
            break
        found = float(rates[left])
    return found


def steep(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """Where the loss falls most by the logarithm of the rate."""
    slopes = np.diff(losses) / np.diff(np.log(rates))
    return float(rates[slopes.argmin()]) if slopes.min() < 0 else None


def minimum(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """A tenth of the rate at which the loss is least."""
    return float(rates[losses.argmin()] / 10)


_RULES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float | None], str]] = {
    "valley": (valley, "the middle of the longest way down"),
    "slide": (slide, "before the curve bends up"),
    "steep": (steep, "where the loss falls most"),
    "minimum / 10": (minimum, "a tenth of the rate at which the loss is least"),
}
# By how near they came to the best rate of grids, where valley was up to 15 times too low by the loss and a
# tenth of the minimum 29 times too high (BUILD_NOTES.md, "Which learning rate").
_ORDER = ("steep", "slide", "valley", "minimum / 10")


def suggestions(curve: RangeCurve) -> tuple[Suggestion, ...]:
    """Of every rule that finds something.

    Raises:
      ValueError: the test is too short to be read.
    """
    rates, losses = curve.rates[curve.read], curve.mean[curve.read]
    if len(losses) < _FEWEST:
        raise ValueError(
            f"the loss diverged after {curve.common} steps of {curve.planned}, too few to be read; give a "
            f"--lowest below {curve.rates[0]:.3g}, or more --steps"
        )
    found: list[Suggestion] = []
    for name, (rule, meaning) in _RULES.items():
        if (rate := rule(rates, losses)) is not None:
            found.append(Suggestion(name, rate, meaning))
    return tuple(found)


def recommended(found: Sequence[Suggestion]) -> Suggestion:
    """The first of the rules that found something, in the order in which runs agree with them."""
    return min(found, key=lambda one: _ORDER.index(one.name))
