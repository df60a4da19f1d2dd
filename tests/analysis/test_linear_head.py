"""The linear head of the gradients: its scale and bias are right on the rows that are asked."""

from __future__ import annotations

import numpy as np
import pytest

from jaxft.analysis.linear_head import linear_head


def cross_entropy(logits, targets, weights):
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(weights / weights.sum()) @ (targets * logs).sum(1)


def test_no_scale_or_bias_is_better_on_the_rows_asked():
    rng = np.random.default_rng(0)
    x, asked = rng.normal(5, 3, (120, 10)), rng.normal(5, 3, (80, 10))
    for count in (2, 4):
        true = rng.normal(size=(10, count))
        one_hot = [
            np.eye(count)[((y - 5) @ true + 2 * rng.gumbel(size=(len(y), count))).argmax(1)]
            for y in (x, asked)
        ]
        weights = rng.uniform(0.5, 2, 80)
        kernel, bias = linear_head(x, one_hot[0], asked, one_hot[1], weights, classes=True)
        least = cross_entropy(asked @ kernel + bias, one_hot[1], weights)
        assert least < 0.9 * np.log(count)
        for factor in (0.95, 1.05):
            centre = asked.mean(0) @ kernel
            scaled = (asked @ kernel - centre) * factor + centre + bias
            assert cross_entropy(scaled, one_hot[1], weights) > least
        for moved in np.eye(count) * 0.1:
            assert cross_entropy(asked @ kernel + bias + moved, one_hot[1], weights) > least


def test_of_numbers_it_is_the_regression_on_what_it_says():
    rng = np.random.default_rng(1)
    x, asked, true = rng.normal(size=(90, 5)), rng.normal(size=(70, 5)), rng.normal(size=(5, 1))
    y = [3 + z @ true + 0.1 * rng.normal(size=(len(z), 1)) for z in (x, asked)]
    kernel, bias = linear_head(x, y[0], asked, y[1], np.ones(70), classes=False)
    np.testing.assert_allclose(kernel, true, atol=0.1)
    error = asked @ kernel + bias - y[1]
    assert abs(error.mean()) < 1e-5 and abs((error * (asked @ kernel)).mean()) < 1e-5


def test_a_head_that_learned_nothing_is_nearly_nothing():
    rng = np.random.default_rng(2)
    x, asked = rng.normal(size=(100, 20)), rng.normal(size=(400, 20))
    labels = [np.eye(3)[rng.integers(0, 3, n)] for n in (100, 400)]
    kernel, bias = linear_head(x, labels[0], asked, labels[1], np.ones(400), classes=True)
    assert (asked @ kernel).std() < 0.2
    shares = np.exp(bias) / np.exp(bias).sum()
    assert shares == pytest.approx(labels[1].mean(0), abs=0.03)
