"""A linear head on frozen features whose scale and bias are right on other rows than it was fitted on."""

from __future__ import annotations

import numpy as np

from jaxft.analysis.probing import standards

_PRIOR = 1e-6  # of the bias, which would be minus infinity of a class without a row


def linear_head(
    features: np.ndarray, targets: np.ndarray, asked: np.ndarray, asked_targets: np.ndarray,
    weights: np.ndarray, *, classes: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(kernel [D, C], bias [C]) fp32: what a row's features are multiplied with, and what is added.

    Its direction is that of `probing.classify` or `regress`, and its scale (one number, as a temperature)
    and bias are those of the least loss on the rows `asked`. So the loss has no gradient there along
    either, and a head that learned nothing of use is nearly 0.

    Args:
      features, asked: [n, D] and [m, D].
      targets, asked_targets: [n, C] and [m, C]; one-hot for classes, two or more in the first.
      weights: [m] of the rows `asked`.
    """
    mean, scale = standards(features)
    fitted = (features.astype(np.float64) - mean) / scale
    kernel = (_logistic(fitted, targets) if classes else _ridge(fitted, targets)) / scale[:, None]
    shown = (asked.astype(np.float64) - mean) @ kernel
    settle = _least_cross_entropy if classes else _least_squares
    slope, bias = settle(shown, asked_targets, weights / weights.sum())
    kernel = kernel * slope
    return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)


def _logistic(fitted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / fitted.shape[1], max_iter=1000)
    model.fit(fitted, targets.argmax(1))
    kernel = np.zeros((fitted.shape[1], targets.shape[1]))
    # Of two classes scikit-learn fits the difference.
    two = len(model.classes_) == 2
    kernel[:, model.classes_] = model.coef_.T * [-0.5, 0.5] if two else model.coef_.T
    return kernel


def _ridge(fitted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=fitted.shape[1], solver="cholesky").fit(fitted, targets)
    return model.coef_.reshape(targets.shape[1], -1).T


def _least_squares(
    shown: np.ndarray, targets: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(slope [C], bias [C]) of the weighted regression of targets on what the head says, by column."""
    centre, middle = share @ shown, share @ targets
    spread = share @ (shown - centre) ** 2
    slope = (share @ ((shown - centre) * (targets - middle))) / np.maximum(spread, 1e-300)
    return slope, middle - slope * centre


def _least_cross_entropy(
    shown: np.ndarray, targets: np.ndarray, share: np.ndarray
) -> tuple[float, np.ndarray]:
    """(slope, bias [C])."""
    from scipy.optimize import minimize

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        logits = x[0] * shown + x[1:]
        logits = logits - logits.max(1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        error = share[:, None] * (np.exp(logs) - targets)
        loss = -(share @ (targets * logs).sum(1)) + _PRIOR * (x[1:] ** 2).sum()
        gradient = [[(error * shown).sum()], error.sum(0) + 2 * _PRIOR * x[1:]]
        return float(loss), np.concatenate(gradient)

    start = np.array([1.0, *np.zeros(shown.shape[1])])
    best = minimize(value, start, jac=True, method="L-BFGS-B").x
    return float(best[0]), best[1:]
