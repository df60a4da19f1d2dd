"""Labels that a probe disagrees with: confident learning over predictions of rows it has not seen.

Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021, by cleanlab.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxft.analysis import probing
from jaxft.insight.extra import needed
from jaxft.insight.finding import SHOWN, Finding, cut, graded
from jaxft.insight.parts import Part, said_of_sample

FOLDS = 5
FEWEST = (
    100  # rows, and `FEW_EACH` of a class, below which a probe knows too little to doubt a label
)
FEW_EACH = FOLDS
# What is told as an alarm: the probe is this sure of another label, and knows its task at all.
SURE, KNOWS = 0.9, 0.5

# (fitted, asked) positions -> log-probabilities [asked, C]
Probe = Callable[[np.ndarray, np.ndarray], np.ndarray]


def probe_of_features(features: np.ndarray, classes: np.ndarray, count: int) -> Probe:
    """Logistic regression on features [n, D]."""

    def probe(fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return probing.classify(features[fitted], classes[fitted], features[asked], count)

    return probe


def word_features(part: Part) -> Any:
    """[n, D], sparse: TF-IDF of words and pairs of words, each column on its own."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    columns = [
        TfidfVectorizer(
            ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]"
        ).fit_transform(texts)
        for texts in zip(*part.texts, strict=True)
    ]
    return hstack(columns).tocsr()


def probe_of_words(features: Any, classes: np.ndarray, count: int) -> Probe:
    """Logistic regression on `word_features` [n, D]."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    def probe(fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
        with threadpool_limits(1):  # of products this small, more threads cost 40 times the CPU
            model = LogisticRegression(C=10.0, max_iter=200).fit(features[fitted], classes[fitted])
        found = np.full((len(asked), count), np.log(1e-12))
        found[:, model.classes_] = np.maximum(
            model.predict_log_proba(features[asked]), np.log(1e-12)
        )
        return found

    return probe


def probabilities(part: Part, probe: Probe, seed: int) -> np.ndarray:
    """[n, C] of each row by a probe fitted on the other folds."""
    assert part.classes is not None
    found = np.zeros((len(part), len(part.names)))
    for fitted, asked in probing.folds(part.classes, FOLDS, seed):
        found[asked] = np.exp(probe(fitted, asked))
    return found / found.sum(1, keepdims=True)


def can_probe(part: Part) -> str:
    """Why the labels of a part cannot be doubted, or ''."""
    if part.classes is None:
        return "no labels are doubted, since the targets are neither classes, sets of them nor tags"
    enough = int((np.bincount(part.classes, minlength=len(part.names)) >= FEW_EACH).sum())
    if len(part) < FEWEST or enough < 2:
        return f"{len(part)} rows, {enough} labels of {FEW_EACH} rows or more, are too few to doubt a label"
    return ""


def ranked(classes: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions of the labels that confident learning doubts, worst first; [n] bool: is an alarm).

    Args:
      classes: [n]; `given`: [n, C] probabilities of rows that the probe has not seen.
    """
    find = needed("cleanlab.filter").find_label_issues
    rank = needed("cleanlab.rank").get_label_quality_scores
    own = given[np.arange(len(classes)), classes]
    doubted = find(classes, given, n_jobs=1)
    quality = rank(classes, given, method="normalized_margin")
    order = np.flatnonzero(doubted)[np.argsort(quality[doubted], kind="stable")]
    sure = (given.max(1) >= SURE) & (own < 1 - SURE) & doubted
    return order, sure


def findings(part: Part, probe: Probe, by: str, seed: int) -> list[Finding]:
    """The most suspicious labels of the training rows.

    Args:
      by: what the probe reads, in words.

    Raises ValueError: cleanlab is not installed.
    """
    assert part.classes is not None
    classes, names = part.classes, part.names
    given = probabilities(part, probe, seed)
    accuracy = float((given.argmax(1) == classes).mean())
    constant = float(np.bincount(classes).max() / len(classes))
    knows = (accuracy - constant) / max(1 - constant, 1e-9)
    order, sure = ranked(classes, given)
    count = int(sure.sum())
    told = f"a probe of {by} (accuracy {accuracy:.1%}; always the same: {constant:.1%})"
    summary = f"{told} doubts {len(order):,} of {len(part):,} labels, {count:,} of them surely"
    if knows < KNOWS:
        summary += "; it knows too little of the task for an alarm"
    rows = tuple(
        (
            part.where(i), names[classes[i]], names[given[i].argmax()], f"{given[i].max():.2f}",
            cut(part.shown(i)),
        )
        for i in order[:SHOWN].tolist()
    )  # fmt: skip
    images = part.are_images
    return [
        Finding(
            "suspicious labels",
            graded(count / len(part), 0.01, 0.1) if knows >= KNOWS else "note",
            summary + said_of_sample([part]),
            "look at the first ones: right labels of hard rows are among them, so drop none unseen",
            ("row", "label", "the probe says", "sure", *(() if images else ("input",))),
            tuple(row[:4] for row in rows) if images else rows,
            {
                "accuracy": accuracy,
                "probed": part.rows.tolist(),
                "rows": [
                    [
                        int(part.rows[i]),
                        names[classes[i]],
                        names[given[i].argmax()],
                        float(given[i].max()),
                    ]
                    for i in order.tolist()
                ],
            },
            tuple((part.picture(i),) for i in order[:SHOWN].tolist()) if images else (),
        )
    ]
