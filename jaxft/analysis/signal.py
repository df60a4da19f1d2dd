"""How far a mean stands out of noise: of gradients from batch to batch, and of the spectrum of weights."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

_POINTS = 20_001  # of the grid on which the Marchenko-Pastur law is integrated
_FEWEST = 8  # singular values, below which their median says nothing
_MOST = 1024  # values; it takes 0.1 s on two cores, and eight times that for twice as many
_CLEAR = 2.0  # standard deviations of noise above 0


@dataclasses.dataclass(frozen=True)
class Signal:
    """Of the gradients of one block.

    Attributes:
      ratio: squared norm of the mean gradient over the variance of a batch's, both without bias; it may be
        below 0, and is 0 in the mean where there is no signal.
      noise: the standard deviation that the ratio would have then.
    """

    ratio: float
    noise: float

    @property
    def is_clear(self) -> bool:
        """Above 0 by two standard deviations."""
        return self.ratio > _CLEAR * self.noise

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ± {self.noise:.3f}"


def signal_to_noise(products: np.ndarray, squares: np.ndarray) -> Signal | None:
    """The signal of K gradients g_1..g_K, of batches that share no example; None where all are 0.

        |E g|^2  is estimated by  s = 2 / (K (K-1)) * sum_k p_k,    p_k = g_k . (g_1 + .. + g_{k-1}),
        tr Var g               by  v = (sum_k |g_k|^2 - |sum_k g_k|^2 / K) / (K-1),

    both without bias, and the ratio is s / v: the inverse, in batches, of the noise scale of McCandlish
    et al., "An Empirical Model of Large-Batch Training" (2018, arXiv:1812.06162). Where E g = 0 the p_k are
    martingale differences, so that the sum of their squares estimates the variance of their sum.

    Args:
      products: [K] the p_k, of which the first is 0.
      squares: [K] the |g_k|^2.
    """
    count = len(squares)
    pairs = count * (count - 1) / 2
    whole = squares.sum() + 2 * products.sum()  # of the sum of all
    variance = (squares.sum() - whole / count) / (count - 1)
    if not squares.any():
        return None
    variance = max(float(variance), float(np.finfo(np.float32).eps * squares.mean()))
    noise = math.sqrt(float((products**2).sum())) / pairs / variance
    return Signal(float(products.sum()) / pairs / variance, noise)


def spectral_ratio(matrix: np.ndarray) -> float | None:
    """Sum of a matrix' singular values above those of noise over the sum of the others.

    As "Spectrum" has it (Hartford et al. 2024, arXiv:2406.06623), where the edge of noise is that of the
    Marchenko-Pastur law, sigma (sqrt(n) + sqrt(m)). But sigma here follows from the median singular value,
    as in Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4/sqrt(3)" (2014,
    arXiv:1305.5870). Spectrum's own, the range of the middle half over 1.349, is smaller by a factor that
    depends on the shape: of noise of 384 x 384 it takes 23 % of the values for signal, of 384 x 1536 all.
    It also divides by the largest value, which makes the ratio depend on the scale of the weights.

    Args:
      matrix: [n, m] or an array of more axes, as of a convolution; all but one of its outer axes are taken
        together, that which leaves more singular values.

    Returns:
      None for fewer than 8 singular values or, as they would take long, more than 1024, or where half of
      them are 0.
    """
    ends = (matrix.reshape(len(matrix), -1), matrix.reshape(-1, matrix.shape[-1]))
    flat = max(ends, key=lambda one: min(one.shape))
    flat = flat if flat.shape[0] <= flat.shape[1] else flat.T
    if not _FEWEST <= len(flat) <= _MOST:
        return None
    flat = flat.astype(np.float64)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(flat @ flat.T), 0))
    middle = np.median(values)
    if middle <= 1e-6 * values[-1]:
        return None
    share = flat.shape[0] / flat.shape[1]
    edge = middle * (1 + math.sqrt(share)) / math.sqrt(_median_of_noise(share))
    return float(values[values > edge].sum() / values[values <= edge].sum())


@functools.lru_cache(maxsize=64)
def _median_of_noise(share: float) -> float:
    """The median of the Marchenko-Pastur law of unit variance, for a matrix of this ratio of its sides."""
    angles = np.linspace(0, np.pi, _POINTS)[1:-1]
    root = math.sqrt(share)
    # x = 1 + share - 2 root cos(angle), from the lower edge (1 - root)^2 up to the upper one.
    x = 1 + share - 2 * root * np.cos(angles)
    mass = np.cumsum(np.sin(angles) ** 2 / x)
    return float(np.interp(0.5, mass / mass[-1], x))
