"""Linear models on frozen features, fitted on some rows and asked about others."""

from __future__ import annotations

import numpy as np

_LEAST = 1e-12  # probability of a class that is not among the rows fitted


def folds(strata: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(fitted, asked) positions of each of `count` folds, sorted; each stratum is dealt out evenly.

    Every position is asked once. A stratum of two or more is in every fold's fitted positions.

    Args:
      strata: [n] int.
    """
    shuffled = np.random.default_rng(seed).permutation(len(strata))
    dealt = shuffled[np.argsort(strata[shuffled], kind="stable")]
    fold = np.empty(len(strata), np.int64)
    fold[dealt] = np.arange(len(strata)) % count
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(count)]


def classify(
    features: np.ndarray, classes: np.ndarray, asked: np.ndarray, count: int
) -> np.ndarray:
    """Log-probabilities [m, count] of rows `asked` [m, D], by logistic regression on the others.

    Features are standardised, and the prior of the weights is such that a row's logits have unit variance:
    C = 1 / D, so that candidates of different widths are held back alike.

    Args:
      features: [n, D] of the fitted rows.
      classes: [n] their class numbers, two or more different ones.
    """
    from sklearn.linear_model import LogisticRegression

    fitted, asked = _standardised(features, asked)
    model = LogisticRegression(C=1 / fitted.shape[1], max_iter=1000).fit(fitted, classes)
    found = np.full((len(asked), count), np.log(_LEAST))
    found[:, model.classes_] = np.maximum(model.predict_log_proba(asked), np.log(_LEAST))
    return found


def regress(features: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Ridge regression: what it gives for `asked` [m, D], of targets [n, C]. The prior is as in `classify`.

    Of one-hot targets the largest column is the class, as of `sklearn.linear_model.RidgeClassifier`.
    """
    from sklearn.linear_model import Ridge

    fitted, asked = _standardised(features, asked)
    centre = targets.mean(0)
    model = Ridge(alpha=fitted.shape[1], solver="cholesky", fit_intercept=False)
    return model.fit(fitted, targets - centre).predict(asked).reshape(len(asked), -1) + centre


def _standardised(features: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in fp64, by mean and deviation of the first; what hardly varies stays near 0."""
    mean, scale = standards(features)
    return (features.astype(np.float64) - mean) / scale, (asked.astype(np.float64) - mean) / scale


def standards(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, scale), fp64 [D], by which features are standardised."""
    features = features.astype(np.float64)
    scale = features.std(0) + 1e-6 * np.abs(features).max() + np.finfo(np.float64).tiny
    return features.mean(0), scale
