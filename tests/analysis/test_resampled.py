"""Intervals and paired tests of values that share their training rows: against scipy, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from jaxft.analysis.resampled import difference, interval


def test_without_a_ratio_it_is_students_t():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.8, 0.05, (2, 7)).tolist()
    one = interval(first)
    low, high = stats.ttest_1samp(first, 0).confidence_interval()
    assert (one.low, one.high) == pytest.approx((low, high), rel=1e-12)
    assert (one.mean, one.deviation, one.count) == pytest.approx(
        (np.mean(first), np.std(first, ddof=1), 7)
    )
    apart = difference(first, second)
    assert apart.p == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-9)
    assert apart.wilcoxon == pytest.approx(stats.wilcoxon(second, first).pvalue)
    assert apart.interval.mean == pytest.approx(np.mean(second) - np.mean(first))


def test_the_correction_is_that_of_nadeau_and_bengio():
    """5 x 2 folds: (1/10 + 1/4) in place of 1/10, so that t is smaller by the root of 3.5."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.8, 0.05, (2, 10)).tolist()
    plain, corrected = difference(first, second), difference(first, second, 1 / 4)
    t = stats.ttest_rel(second, first).statistic / math.sqrt(3.5)
    assert corrected.p == pytest.approx(2 * stats.t.sf(abs(t), 9), rel=1e-9)
    reach, wider = (one.interval.high - one.interval.mean for one in (plain, corrected))
    assert wider == pytest.approx(reach * math.sqrt(3.5))
    assert corrected.wilcoxon is None  # the folds are not independent


def cross_validated(rng, rows=40, folds=5, repeats=2) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors [J] of two least-squares fits whose features are worth the same."""
    x = rng.normal(size=(rows, 2))
    y = x.sum(1) + rng.normal(size=rows)
    found = np.zeros((2, folds * repeats))
    for j in range(folds * repeats):
        if j % folds == 0:
            fold = rng.permutation(rows) % folds
        kept = fold != j % folds
        slopes = (x[kept] * y[kept, None]).sum(0) / (x[kept] ** 2).sum(0)
        found[:, j] = ((y[~kept, None] - x[~kept] * slopes) ** 2).mean(0)
    return found[0], found[1]


def test_two_that_are_equally_good_are_rarely_told_apart():
    """Of the tests on data sets where there is no difference, one in twenty may say that there is one."""
    rng = np.random.default_rng(2)
    pairs = [cross_validated(rng) for _ in range(150)]
    wrong = {
        ratio: np.mean([difference(*(v.tolist() for v in pair), ratio).p < 0.05 for pair in pairs])
        for ratio in (0.0, 0.25)
    }
    assert wrong[0.25] < 0.1 < 0.2 < wrong[0.0]  # of the uncorrected test many more do


def test_values_that_do_not_vary():
    same = difference([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (same.p, same.wilcoxon, same.interval.mean) == (1.0, None, 0.0)
    alike = difference([0.5, 0.6, 0.7], [0.6, 0.7, 0.8])
    assert alike.p is None and alike.interval.mean == pytest.approx(0.1)
    for values in ([0.5], [], [0.5, math.nan]):
        with pytest.raises(ValueError):
            interval(values)
    with pytest.raises(ValueError, match="cannot be paired"):
        difference([1.0, 2.0], [1.0, 2.0, 3.0])
