"""Labels that were flipped are doubted, and before others."""

from __future__ import annotations

import numpy as np

from jaxft.data.files import table
from jaxft.insight import suspicious
from jaxft.insight.parts import Part


def test_flipped_labels_are_doubted_before_others():
    draw = np.random.default_rng(0)
    right = draw.integers(0, 3, 600)
    features = (4 * np.eye(8)[right] + draw.normal(size=(600, 8))).astype(np.float32)
    flipped = np.sort(draw.choice(600, 30, replace=False))
    given = right.copy()
    given[flipped] = (given[flipped] + draw.integers(1, 3, 30)) % 3
    part = Part("train", table("t", {"text": ["a"] * 600}), np.arange(600), "text", ("text",),
                classes=given, names=("a", "b", "c"), whole=600)  # fmt: skip
    assert suspicious.can_probe(part) == ""
    probe = suspicious.probe_of_features(features, given, 3)
    (found,) = suspicious.findings(part, probe, "features", 0)
    doubted = [row[0] for row in found.details["rows"]]
    assert np.isin(doubted[:27], flipped).mean() > 0.9 and found.level != "note"
    assert [row[2] for row in found.details["rows"][:10]] == [
        "abc"[right[row]] for row in doubted[:10]
    ]
    assert "too few" in suspicious.can_probe(part.take(np.arange(50)))
