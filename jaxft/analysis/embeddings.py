"""Numbers and pictures of embedded texts: how similarities follow scores, and how pairs find each other."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from jaxft.analysis.page import Html, element, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing
from jaxft.analysis.view import View
from jaxft.training.rows import Row

_BLOCK = 1 << 24  # similarities at a time
_WORST = 15


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[n] float64 of two [n, D] of unit length."""
    return np.einsum("nd,nd->n", first.astype(np.float64), second.astype(np.float64))


def similarity_metrics(found: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """'loss' (mean squared error), 'spearman' and 'pearson' (0 where one of the two is constant), [n]."""
    from scipy import stats  # a tenth of a second at the start of every command

    constant = len(set(found)) < 2 or len(set(scores)) < 2
    return {
        "loss": float(np.mean((found - scores) ** 2)),
        "spearman": 0.0 if constant else float(stats.spearmanr(found, scores).statistic),
        "pearson": 0.0 if constant else float(stats.pearsonr(found, scores).statistic),
    }


def ranks(embeddings: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each anchor among all texts that are no anchor: its positive's rank from 1, and the loss.

    embeddings [n, G, D] float32 of unit length: anchor, positive, and what is unlike the anchor. A text with
      the same similarity as the positive does not stand before it.
    """
    count, texts, _ = embeddings.shape
    others = np.concatenate([embeddings[:, g] for g in range(1, texts)])  # the positives first
    rank, loss = np.zeros(count, np.int64), np.zeros(count)
    rows = max(1, _BLOCK // len(others))
    for start in range(0, count, rows):
        some = np.arange(start, min(start + rows, count))
        similar = embeddings[some, 0] @ others.T
        own = similar[np.arange(len(some)), some][:, None]
        rank[some] = 1 + (similar > own + 1e-6).sum(1)
        logits = (similar - own).astype(np.float64) / temperature
        loss[some] = np.logaddexp.reduce(logits, axis=1)
    return rank, loss


def retrieval_metrics(rank: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    """'loss', 'recall_at_1', …, and 'mrr', the mean of one over the rank."""
    shares = {f"recall_at_{k}": float((rank <= k).mean()) for k in (1, 5, 10)}
    return {"loss": float(loss.mean()), **shares, "mrr": float((1 / rank).mean())}


# The report


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """How good the embeddings are."""
    which = {"test": "test", "eval": "evaluation"}[record.split]
    if "spearman" in metrics:
        return (
            f"Over {metrics['examples']:,} {which} pairs the similarities rank as the scores do with a "
            f"Spearman correlation of {metrics['spearman']:.3f}."
        )
    return (
        f"{metrics['recall_at_1']:.1%} of {metrics['examples']:,} {which} anchors are more similar to their "
        f"own positive than to any other of {metrics['candidates']:,} texts; {metrics['recall_at_10']:.1%} "
        "have it among the first ten."
    )


def predictions(record: Record, _: ModuleType) -> Html:
    """The metrics, each in its row."""
    metrics = record.metrics(record.split)
    if not metrics:
        return missing("No evaluation yet.")
    names = ("spearman", "pearson", "recall_at_1", "recall_at_5", "recall_at_10", "mrr", "loss")
    cells = [[name, f"{metrics[name]:.4f}"] for name in names if name in metrics]
    return table(["", ""], cells, kinds="tn")


def worst(record: Record, _: ModuleType) -> Html:
    """The pairs with the largest error, or whose positive is furthest behind."""
    rows = list(filter(_is_prediction, record.predictions.get(record.split, ())))
    if not rows:
        return missing(f"No predictions/{record.split}.jsonl.")
    scored = "error" in rows[0]
    key = "error" if scored else "similarity"
    first = heapq.nsmallest(
        _WORST, rows, key=lambda row: -abs(row[key]) if scored and key in row else row["similarity"]
    )
    cells = [
        [
            str(row["index"]),
            f"{row['similarity']:.3f}",
            _number(row.get("label")),
            str(row.get("text", "")),
        ]
        for row in first
    ]
    note = (
        "The pairs whose similarity is furthest from their score are first."
        if scored
        else "The pairs of anchor and positive that are least similar are first."
    )
    heads = ["row", "similarity", "score", "texts"]
    return join([element("p", note), table(heads, cells, kinds="nnnw")])


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"


def _is_prediction(row: Row) -> bool:
    """Whether it holds what was written."""
    return type(row.get("similarity")) in (int, float) and type(row.get("error", 0)) in (int, float)


VIEW = View(
    tiles={
        "spearman": "Spearman",
        "recall_at_1": "first is right",
        "recall_at_10": "among ten",
        "mrr": "mean reciprocal rank",
        "loss": "loss",
    },
    result=result,
    sections={"Predictions": predictions, "Mistakes": worst},
)
