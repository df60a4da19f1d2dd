"""Whether probabilities are those of being right, and the temperature that makes them so: Guo et al. 2017."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# So many logits are kept of an evaluation for the temperature; of more, it is not fitted.
MOST = 1 << 22
# On fewer examples it would be chance; and within these bounds, beyond which only examples that are all
# right, or all wrong, lead.
FEWEST, LOWEST, HIGHEST = 30, 0.1, 10.0
BINS = 15
_BLOCK = 1 << 20


def temperature_of(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T for which softmax(logits / T) has the lowest cross-entropy; 1 for fewer than `FEWEST` examples.

    logits: [N, C]; labels: [N] class numbers.

    The cross-entropy is convex in 1 / T, so Newton's steps, at most a doubling each, find it.
    """
    if len(labels) < FEWEST:
        return 1.0
    inverse = 1.0
    for _ in range(50):
        slope = curvature = 0.0
        for z, own in _blocks(logits, labels):
            p = _softmax(inverse * z)
            mean = (p * z).sum(-1)
            slope += float((mean - z[np.arange(len(z)), own]).sum())
            curvature += float(((p * z**2).sum(-1) - mean**2).sum())
        step = inverse - slope / max(curvature, 1e-12)
        new = float(np.clip(step, inverse / 2, inverse * 2))
        new = min(max(new, 1 / HIGHEST), 1 / LOWEST)
        if abs(new - inverse) <= 1e-7 * inverse:
            break
        inverse = new
    return 1 / inverse


def calibration(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, Any]:
    """Whether the most probable class is as often right as it is probable, at a temperature.

    logits: [N, C]; labels: [N] class numbers.

    Returns:
      'ece', the expected calibration error: over `BINS` equal ranges of the probability, the mean of the
      distance between it and the share that is right, by how many fall there; 'loss', the cross-entropy; and
      of each range that is not empty 'count', 'probability' and 'accuracy' (lists).
    """
    top, right, loss = [], [], 0.0
    for z, own in _blocks(logits, labels):
        p = _softmax(z / temperature)
        top.append(p.max(-1))
        right.append(z.argmax(-1) == own)
        loss -= float(np.log(np.maximum(p[np.arange(len(p)), own], 1e-300)).sum())
    return {
        **_reliability(np.concatenate(top), np.concatenate(right)), "loss": loss / len(labels)
    }  # fmt: skip


def label_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """`temperature_of` of labels that each apply or not: the T for sigmoid(logits / T), one for all labels.

    logits: [N, C]; truth: [N, C] bool.
    """
    if len(truth) < FEWEST:
        return 1.0
    # The logistic function of z is the softmax of (0, z).
    pairs = np.stack([np.zeros(logits.size, logits.dtype), logits.ravel()], axis=-1)
    return temperature_of(pairs, truth.ravel().astype(np.int64))


def label_calibration(logits: np.ndarray, truth: np.ndarray, temperature: float) -> dict[str, Any]:
    """Whether labels apply as often as they are probable, all labels together, at a temperature.

    logits: [N, C]; truth: [N, C] bool.

    Returns:
      As `calibration`: 'probability' is that of a label, 'accuracy' the share of examples to which it
      applies, 'loss' the mean binary cross-entropy.
    """
    z, applies = logits.astype(np.float64).ravel() / temperature, truth.ravel()
    found = _reliability(np.exp(-np.logaddexp(0, -z)), applies)
    return {**found, "loss": float((np.logaddexp(0, z) - applies * z).mean())}


def _reliability(probability: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """What `calibration` says but for the loss, of [N] probabilities and whether each came true."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    filled = count > 0
    means = [
        np.bincount(place, x.astype(float), BINS)[filled] / count[filled]
        for x in (probability, correct)
    ]
    share = count[filled] / len(probability)
    return {
        "ece": float((share * np.abs(means[0] - means[1])).sum()),
        "count": count[filled].tolist(),
        "probability": means[0].tolist(),
        "accuracy": means[1].tolist(),
    }


def compared(before: dict[str, Any], after: dict[str, Any], temperature: float) -> dict[str, float]:
    """Metrics: 'temperature', 'ece' and, at it, 'ece_calibrated' and 'loss_calibrated'."""
    return {
        "temperature": temperature, "ece": before["ece"], "ece_calibrated": after["ece"],
        "loss_calibrated": after["loss"],
    }  # fmt: skip


def sound_temperature(found: Mapping[str, Any]) -> float:
    """The temperature that a file holds; 1 for what is none."""
    given = found.get("temperature")
    number = float(given) if isinstance(given, int | float) else 1.0
    return number if LOWEST <= number <= HIGHEST else 1.0


def _blocks(logits: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows by the block, in fp64, shifted so that the largest logit is 0."""
    size = max(1, _BLOCK // logits.shape[-1])
    for start in range(0, len(labels), size):
        z = logits[start : start + size].astype(np.float64)
        yield z - z.max(-1, keepdims=True), labels[start : start + size]


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True)
