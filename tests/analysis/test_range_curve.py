"""The rules that read a learning-rate range test, on curves whose answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxft.analysis.range_curve import (
    BETA,
    RangeCurve,
    minimum,
    slide,
    smoothed,
    steep,
    suggestions,
    valley,
)

RATES = np.geomspace(1e-6, 1.0, 60)


def bowl(bottom: int, top: int = 60) -> np.ndarray:
    """Flat, then down to the `bottom`th point, then steeply up."""
    x = np.arange(top)
    down = 1 - 0.5 * np.clip((x - 15) / (bottom - 15), 0, 1)
    return down + np.where(x > bottom, 0.02 * (x - bottom) ** 2, 0)


def test_smoothing_is_a_mean_with_weights_that_fall_off_and_add_up_to_one():
    losses = np.random.default_rng(0).random((3, 40))
    for step in range(40):
        weights = BETA ** np.arange(step + 1)[::-1]
        expected = (losses[:, : step + 1] * weights).sum(1) / weights.sum()
        np.testing.assert_allclose(smoothed(losses)[:, step], expected, rtol=1e-12)
    losses[1, 30] = np.nan
    assert np.isnan(smoothed(losses)[1, 30:]).all() and np.isfinite(smoothed(losses)[0]).all()


def test_valley_is_the_middle_of_the_longest_way_down():
    # Ten steps down with a bump that is not on the way.
    losses = np.array([5.0, 5.0, 5.0, 4.5, 4.0, 4.2, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 9.0, 9.5])
    longest = max(
        length
        for length in range(1, 12)
        for way in itertools.combinations(losses[:12], length)
        if all(a > b for a, b in itertools.pairwise(way))
    )
    assert longest == 9  # it ends at the point 11, so it begins at 2 and has the thirds 2-5-8-11
    assert valley(np.arange(14.0), losses) == 2 + 3 + 1
    assert valley(RATES, np.linspace(1, 2, 60)) is None


def test_slide_goes_left_until_the_slopes_are_alike():
    # Straight up to the point 50, and then up by more and more: 15 steps before the last point at which the
    # slope is that of the line, two slopes are alike.
    x = np.arange(60)
    losses = 1 + np.where(x > 50, 0.1 * (x - 50) ** 2, 0.0)
    found = slide(RATES, losses)
    bend = 50 - 15
    assert found is not None and abs(np.log(found / RATES[bend])) < 1.5 * np.log(
        RATES[1] / RATES[0]
    )
    assert slide(RATES[:12], losses[:12]) is None


def test_steep_and_minimum():
    losses = bowl(40)
    losses[30] -= 0.05
    assert steep(RATES, losses) == pytest.approx(RATES[29])
    assert minimum(RATES, bowl(40)) == pytest.approx(RATES[40] / 10)
    assert steep(RATES, np.linspace(1, 2, 60)) is None


def test_the_first_tenth_and_the_last_five_steps_are_not_read():
    losses = bowl(40)
    curve = RangeCurve(RATES, losses[None], 60)
    expected = {one.name: one.rate for one in suggestions(curve)}
    losses[:3] = 0.0  # would be the least
    changed = RangeCurve(RATES, np.stack([losses, losses]), 60)
    assert changed.read == slice(6, 55) == curve.read
    assert expected.keys() == {"valley", "slide", "steep", "minimum / 10"}
    assert RATES[6] < expected["valley"] < RATES[54]


def test_a_seed_that_ends_earlier_ends_what_is_read():
    losses = np.stack([bowl(40), bowl(35)])
    losses[1, 45:] = np.nan
    curve = RangeCurve(RATES, losses, 60)
    assert curve.common == 45 == len(curve.mean) and curve.read == slice(6, 40)
    np.testing.assert_allclose(curve.mean, smoothed(losses[:, :45]).mean(0))
    losses[1, 20:] = np.nan
    with pytest.raises(ValueError, match="diverged after 20 steps of 60, too few"):
        suggestions(RangeCurve(RATES, losses, 60))
