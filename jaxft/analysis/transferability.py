"""How well frozen features may serve a task, from the features and the targets alone.

Scores that need no training of their own: the evidence of a Bayesian linear model (LogME), and how far
the classes lie apart in units of the features' spread (H-score).
"""

from __future__ import annotations

import numpy as np

_ITERATIONS = 200
_TOLERANCE = 1e-6
_EPSILON = 1e-10  # keeps the precisions finite where targets are fitted exactly, or not at all


def logme(features: np.ndarray, targets: np.ndarray) -> float:
    """The logarithm of maximum evidence an example, averaged over the columns of the targets.

    You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning" (ICML 2021,
    arXiv:2102.11005): targets are F w plus noise, w and noise being Gaussian with precisions alpha and
    beta, and the evidence is maximised over both by the fixed-point iteration, which after one singular
    value decomposition costs O(D) a round.

    Args:
      features: [n, D].
      targets: [n, C]: one-hot for classes, one column for numbers.
    """
    features, targets = features.astype(np.float64), targets.astype(np.float64)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    projected = left.T @ targets  # [min(n, D), C]
    outside = np.maximum((targets**2).sum(0) - (projected**2).sum(0), 0.0)
    size = features.shape
    evidence = [
        _evidence(singular**2, projected[:, c] ** 2, outside[c], size)
        for c in range(targets.shape[1])
    ]
    return float(np.mean(evidence))


def _evidence(
    spectrum: np.ndarray, projected: np.ndarray, outside: float, size: tuple[int, int]
) -> float:
    """Of one column, an example.

    Args:
      spectrum: squared singular values of the features.
      projected: squared coordinates of the targets along the left singular vectors.
      outside: squared length of what of the targets lies outside of these.
      size: (n, D).
    """
    n, width = size
    ratio = 1.0  # alpha / beta
    for _ in range(_ITERATIONS):
        shrunk = spectrum + ratio
        effective = (spectrum / shrunk).sum()
        weights = (spectrum * projected / shrunk**2).sum()
        residual = ((ratio / shrunk) ** 2 * projected).sum() + outside
        alpha = (effective + _EPSILON) / (weights + _EPSILON)
        beta = (n - effective + _EPSILON) / (residual + _EPSILON)
        before, ratio = ratio, alpha / beta
        if abs(ratio - before) <= _TOLERANCE * before:
            break
    # At this alpha and beta, whatever is left of the iteration.
    shrunk = spectrum + alpha / beta
    weights = (spectrum * projected / shrunk**2).sum()
    residual = ((alpha / beta / shrunk) ** 2 * projected).sum() + outside
    volume = np.log(alpha + beta * spectrum).sum() + (width - len(spectrum)) * np.log(alpha)
    total = width * np.log(alpha) + n * np.log(beta) - volume
    return float(total - beta * residual - alpha * weights - n * np.log(2 * np.pi)) / (2 * n)


def h_score(features: np.ndarray, classes: np.ndarray) -> float:
    """tr(cov(F)^-1 cov(E[F | class])), with a shrunk covariance.

    Bao et al., "An Information-Theoretic Approach to Transferability in Task Transfer Learning" (ICIP
    2019). With fewer examples than a multiple of the dimensions the inverse is noise, so the covariance is
    shrunk by Ledoit and Wolf (2004), and that of the class means with it, as Ibrahim et al. propose in
    "Newer is not always better" (arXiv:2110.06893).

    Args:
      features: [n, D].
      classes: [n] class numbers.
    """
    from sklearn.covariance import ledoit_wolf

    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    if not covariance.any():
        return 0.0  # features that are all the same tell nothing apart
    counts = np.bincount(classes).astype(np.float64)
    present = np.flatnonzero(counts)
    means = np.stack([centred[classes == number].mean(0) for number in present])  # [C, D]
    shares = (1 - shrinkage) * counts[present] / len(centred)
    jitter = (
        _EPSILON * covariance.trace() / len(covariance)
    )  # of features of which one is redundant
    whitened = np.linalg.solve(covariance + jitter * np.eye(len(covariance)), means.T)
    return float((shares * (means * whitened.T).sum(1)).sum())
