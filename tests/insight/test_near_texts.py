"""The candidates that hashing finds are those that comparing all pairs finds."""

from __future__ import annotations

import random

import numpy as np

from jaxft.data.files import table
from jaxft.insight.duplicates import normalised
from jaxft.insight.near_texts import near_pairs, resemblance
from jaxft.insight.parts import Part


def test_hashing_finds_what_comparing_all_pairs_finds():
    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefghiklmnoprstuvwy", k=draw.randint(2, 8))) for _ in range(300)
    ]
    texts = [" ".join(draw.choices(words, k=12)) for _ in range(60)]
    for text in list(texts):
        changed = text.split()
        changed[draw.randrange(12)] = draw.choice(words)
        texts.append(" ".join(changed))
    source = table("t", {"text": texts})
    part = Part("train", source, np.arange(len(texts)), "text", ("text",))
    found = {(a, b) for a, b, _ in near_pairs([part], np.arange(len(texts)))}
    plain = [(normalised(text),) for text in texts]
    alike = {(a, b): resemblance(plain[a], plain[b]) for b in range(len(texts)) for a in range(b)}
    assert found <= {pair for pair, value in alike.items() if value >= 0.7}
    sure = {pair for pair, value in alike.items() if value >= 0.75}
    assert len(sure) > 20 and len(sure & found) >= 0.95 * len(sure)


def test_the_least_alike_column_decides():
    premise = "a man in a red coat walks his dog along the beach"
    assert resemblance((premise, "he sleeps at home"), (premise, "a woman is cooking")) < 0.2
    assert resemblance((premise, "x y z"), (premise, "x y z")) == 1
