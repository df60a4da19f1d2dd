"""LogME, H-score and the folds of a probe, against slow formulas and on cases whose order is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.covariance import ledoit_wolf

from jaxft.analysis import probing
from jaxft.analysis.candidate import Estimate
from jaxft.analysis.transferability import h_score, logme
from jaxft.analysis.tuning import blocks_to_tune


def evidence(features: np.ndarray, y: np.ndarray, alpha: float, beta: float) -> float:
    """log N(y | 0, F F' / alpha + 1 / beta), an example: the density itself, no shortcut."""
    covariance = features @ features.T / alpha + np.eye(len(y)) / beta
    _, volume = np.linalg.slogdet(2 * np.pi * covariance)
    return float(-(volume + y @ np.linalg.solve(covariance, y)) / 2 / len(y))


@pytest.mark.parametrize("shape", [(40, 5), (20, 30)])
def test_logme_is_the_maximum_of_the_evidence(shape):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape) * np.linspace(0.2, 3, shape[1])
    columns = features @ rng.normal(size=(shape[1], 2)) + rng.normal(size=(shape[0], 2))
    best = [
        -minimize(
            lambda x, y=y: -evidence(features, y, *np.exp(x)), np.zeros(2), method="Nelder-Mead",
            options={"xatol": 1e-8, "fatol": 1e-12},
        ).fun
        for y in columns.T
    ]  # fmt: skip
    assert logme(features, columns) == pytest.approx(np.mean(best), abs=1e-6)


def test_h_score_is_the_trace_of_its_definition():
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 3, 50)
    features = rng.normal(size=(50, 8)) + classes[:, None] * rng.normal(size=8)
    shrunk, shrinkage = ledoit_wolf(features)
    means = np.stack([features[classes == c].mean(0) for c in classes]) - features.mean(0)
    between = (1 - shrinkage) * np.cov(means.T, bias=True)
    assert h_score(features, classes) == pytest.approx(np.trace(np.linalg.inv(shrunk) @ between))
    assert h_score(np.ones((50, 8)), classes) == 0


def test_both_order_features_by_how_much_of_the_target_they_hold():
    rng = np.random.default_rng(2)
    classes = rng.integers(0, 4, 200)
    noise, signal = rng.normal(size=(200, 16)), rng.normal(size=(4, 16))[classes]
    levels = [noise + share * signal for share in (0.0, 0.3, 1.0, 3.0)]
    for scores in (
        [logme(x, np.eye(4)[classes]) for x in levels],
        [h_score(x, classes) for x in levels],
    ):
        assert scores == sorted(scores) and scores[-1] > scores[0] + 0.1


def test_folds_ask_every_row_once_and_fit_every_class():
    strata = np.array([0] * 30 + [1] * 9 + [2] * 2)
    found = probing.folds(strata, 5, seed=0)
    assert sorted(np.concatenate([asked for _, asked in found]).tolist()) == list(range(41))
    for fitted, asked in found:
        assert not set(fitted) & set(asked) and set(strata[fitted]) == {0, 1, 2}
        assert (strata[asked] == 0).sum() == 6 and (strata[asked] == 1).sum() in (1, 2)
    assert all(
        (a[1] == b[1]).all() for a, b in zip(found, probing.folds(strata, 5, 0), strict=True)
    )


def test_the_probes_find_a_linear_rule_and_give_an_unseen_class_hardly_any_probability():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(300, 6))
    features[:, 5] = 1.0  # what does not vary is no trouble
    numbers = features[:, 0] * 2 + 7
    classes = (features[:, 0] > 0).astype(int) * 2  # class 1 does not occur
    logits = probing.classify(features[:200], classes[:200], features[200:], 3)
    assert (logits.argmax(1) == classes[200:]).mean() > 0.9 and (logits[:, 1] < -20).all()
    found = probing.regress(features[:200], numbers[:200, None], features[200:])
    assert np.abs(found[:, 0] - numbers[200:]).max() < 0.5


@pytest.mark.parametrize(
    ("means", "depth"), [((0.3, 0.7, 0.71, 0.6), 2), ((0.3, 0.5, 0.6, 0.9), None), ((0.5,), None)]
)
def test_the_blocks_above_the_first_that_is_as_good_as_any_are_to_be_tuned(means, depth):
    assert blocks_to_tune([Estimate(mean, 0.02) for mean in means])[0] == depth
