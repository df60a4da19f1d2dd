"""Mean, interval and paired test of a metric that was measured again and again on parts of the same data.

The values of the folds of a cross-validation depend on each other: any two models were trained on mostly the
same rows. The variance of their mean is therefore not s²/J, as of J independent ones, and is estimated as
(1/J + n_test/n_train) s² (Nadeau and Bengio 2003, "Inference for the Generalization Error", Machine
Learning 52; for repeated folds Bouckaert and Frank 2004, "Evaluating the Replicability of Significance
Tests").
Values of several seeds on the same rows are independent given these rows: n_test/n_train is then 0.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
FEWEST = 2


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean, and where the true one is, at `LEVEL`.

    Attributes:
      deviation: of the single values (n - 1 in the denominator), not of the mean.
      low, high: ends of the confidence interval, by Student's t with count - 1 degrees of freedom.
      count: of the values.
    """

    mean: float
    deviation: float
    low: float
    high: float
    count: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """Second minus first, pair by pair.

    Attributes:
      interval: of the mean difference.
      p: of the two-sided t test that the mean difference is 0, corrected where the pairs are of folds; 1
        where all differences are 0; None where they are all the same and not 0, which has no variance to
        test by.
      wilcoxon: p of the two-sided signed-rank test; None where pairs are of folds, which are not
        independent, or no difference is other than 0.
    """

    interval: Interval
    p: float | None
    wilcoxon: float | None


def interval(values: Sequence[float], ratio: float = 0.0) -> Interval:
    """The mean of `values`, with its interval.

    Args:
      ratio: rows tested over rows trained on, where the values are of parts of the same data; 0: they are
        independent.

    Raises:
      ValueError: fewer than two values, or one that is not finite.
    """
    from scipy import stats  # 0.4 s, which a command that measures nothing need not pay

    mean, deviation, error = _moments(values, ratio)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return Interval(mean, deviation, mean - reach, mean + reach, len(values))


def difference(first: Sequence[float], second: Sequence[float], ratio: float = 0.0) -> Difference:
    """How much more the second is than the first, of pairs that were measured on the same rows.

    Args:
      ratio: see `interval`.

    Raises:
      ValueError: not as many of one as of the other, or see `interval`.
    """
    from scipy import stats

    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    apart = [b - a for a, b in zip(first, second, strict=True)]
    found = interval(apart, ratio)
    _, _, error = _moments(apart, ratio)
    # Equal values of which one is 1e-17 off by the subtraction are equal.
    scale = max(map(abs, (*first, *second)))
    constant = found.deviation <= 1e-12 * scale
    if constant:
        p = 1.0 if abs(found.mean) <= 1e-12 * scale else None
    else:
        p = float(2 * stats.t.sf(abs(found.mean) / error, len(apart) - 1))
    some = bool(np.any(np.abs(apart) > 1e-12 * scale))
    signed = float(stats.wilcoxon(apart).pvalue) if some and not ratio else None
    return Difference(found, p, signed)


def _moments(values: Sequence[float], ratio: float) -> tuple[float, float, float]:
    """(mean, deviation, standard error of the mean)."""
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} value has no deviation; at least {FEWEST} are needed")
    if not all(map(math.isfinite, values)):
        raise ValueError("a value is not finite")
    deviation = statistics.stdev(values)
    return (
        statistics.fmean(values),
        deviation,
        math.sqrt(1 / len(values) + ratio) * deviation,
    )
