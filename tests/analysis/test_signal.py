"""What stands out of noise: gradients from batch to batch, and the spectrum of weights."""

from __future__ import annotations

import numpy as np
import pytest

from jaxft.analysis.signal import signal_to_noise, spectral_ratio


def of(gradients):
    """Of gradients [K, D], as they come one after another."""
    before = np.vstack([np.zeros(gradients.shape[1]), np.cumsum(gradients, 0)[:-1]])
    return signal_to_noise((gradients * before).sum(1), (gradients**2).sum(1))


def test_the_signal_of_a_mean_is_found_without_bias():
    """Known mean and covariance, the latter with directions of very different size, as of gradients."""
    rng = np.random.default_rng(0)
    spread = rng.gamma(1, size=50)
    for mean in (0.0, 0.8):
        found = [of(mean + rng.normal(size=(16, 50)) * spread) for _ in range(1000)]
        true = 50 * mean**2 / (spread**2).sum()
        ratios = np.array([one.ratio for one in found])
        standard_error = ratios.std() / np.sqrt(len(found))
        # That the quotient of two estimates without bias has one is below what is seen here.
        assert abs(ratios.mean() - true) < 3 * standard_error + 0.02 * true
        if not mean:  # and what is called noise is the deviation that there is without a signal
            noise = np.sqrt(np.mean([one.noise**2 for one in found]))
            assert noise == pytest.approx(ratios.std(), rel=0.1)
            assert np.mean([one.is_clear for one in found]) < 0.05
        else:
            assert np.mean([one.is_clear for one in found]) > 0.95


def test_the_whole_is_what_its_definition_says():
    """All pairs of different batches, against the running sum."""
    gradients = np.random.default_rng(1).normal(0.3, 1, (9, 7))
    products = gradients @ gradients.T
    mean_square = (products.sum() - np.trace(products)) / (9 * 8)
    variance = gradients.var(0, ddof=1).sum()
    assert of(gradients).ratio == pytest.approx(mean_square / variance)
    assert of(np.zeros((9, 7))) is None
    assert of(np.ones((9, 7))).is_clear  # batches that agree to the last bit


@pytest.mark.parametrize("shape", [(200, 200), (100, 400), (300, 100), (3, 3, 20, 60)])
def test_noise_has_no_spectrum_above_it_and_what_is_planted_has(shape):
    rng = np.random.default_rng(2)
    noise = rng.normal(size=shape)
    assert spectral_ratio(noise) < 0.02
    flat = noise.reshape(-1, shape[-1])
    n, m = flat.shape
    left, right = np.linalg.qr(rng.normal(size=(n, 2)))[0], np.linalg.qr(rng.normal(size=(m, 2)))[0]
    planted = 3 * (np.sqrt(n) + np.sqrt(m))
    values = np.linalg.svd(flat, compute_uv=False)
    found = spectral_ratio((flat + planted * left @ right.T).reshape(shape))
    assert found == pytest.approx(2 * planted / values.sum(), rel=0.15)
    assert spectral_ratio(1e-3 * noise) == pytest.approx(spectral_ratio(noise))


def test_what_has_too_few_values_is_left_out():
    rng = np.random.default_rng(3)
    assert spectral_ratio(rng.normal(size=(7, 100))) is None
    assert spectral_ratio(np.zeros((20, 20))) is None
    assert spectral_ratio(rng.normal(size=(20, 5)) @ rng.normal(size=(5, 20))) is None
