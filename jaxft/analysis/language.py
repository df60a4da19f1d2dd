"""How well a model predicts tokens: its metrics, and what the report shows of them."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from jaxft.analysis.page import Html, element, figure, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing
from jaxft.analysis.view import View
from jaxft.training.rows import Row

_MOST = 700.0  # whose exponential is still a number
_WORST = 15


def perplexity(loss: float) -> float:
    """The exponential of a mean loss in nats: among so many equally likely tokens one had to guess."""
    return math.exp(min(loss, _MOST))


def metrics(
    loss: np.ndarray, tokens: np.ndarray, right: np.ndarray, sizes: np.ndarray | None = None
) -> dict[str, Any]:
    """Metrics as plain JSON values.

    Args:
      loss, tokens, right: [N] of each text: the sum of its losses in nats, how many tokens were predicted,
        and how many of these were the likeliest.
      sizes: [N] bytes of each text, where all of it is predicted but its first token.

    Returns:
      'loss' (mean over tokens), 'perplexity', 'accuracy', 'examples', 'tokens', and with sizes
      'bits_per_byte', which, unlike the others, can be compared between tokenizers.

    Raises:
      FloatingPointError: losses that are not finite.
    """
    broken = int((~np.isfinite(loss)).sum())
    if broken:
        raise FloatingPointError(f"the loss of {broken} of {len(loss)} texts is not finite")
    total, count = float(loss.sum(dtype=np.float64)), int(tokens.sum(dtype=np.float64))
    mean = total / max(1, count)
    found = {
        "loss": mean,
        "perplexity": perplexity(mean),
        "accuracy": float(right.sum(dtype=np.float64)) / max(1, count),
        "examples": len(loss),
        "tokens": count,
    }
    if sizes is not None and (size := int(sizes.sum())):
        found["bits_per_byte"] = total / math.log(2) / size
    return found


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What in the metrics is probably not meant, one line each."""
    if not metrics["tokens"]:
        return ["no token of the evaluation data is predicted: the texts are too short"]
    return []


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """The perplexity, and what it means."""
    which = {"test": "test", "eval": "evaluation"}[record.split]
    text = (
        f"On {metrics['tokens']:,} tokens of {metrics['examples']:,} {which} examples the loss is "
        f"{metrics['loss']:.4f} nats a token (perplexity {metrics['perplexity']:,.4g}: as if each were one "
        f"of so many, all equally likely), and {metrics['accuracy']:.1%} of the tokens are the likeliest "
        "one."
    )
    if "bits_per_byte" in metrics:
        text += f" That is {metrics['bits_per_byte']:.3f} bits a byte of text."
    return text


def predictions(record: Record, plots: ModuleType) -> Html:
    """How the losses of the texts are distributed."""
    losses = array("d", (row["loss"] for row in _rows(record)))
    if not losses:
        return missing(f"No predictions/{record.split}.jsonl.")
    return figure(
        plots.histogram(np.frombuffer(losses), "loss, nats a token"),
        "How many texts have which mean loss. A second hill is often another kind of text.",
    )


def extremes(record: Record, _: ModuleType) -> Html:
    """The texts that are predicted worst, and best."""
    worst = heapq.nsmallest(_WORST, _rows(record), key=lambda row: (-row["loss"], row["index"]))
    if not worst:
        return missing(f"No predictions/{record.split}.jsonl.")
    best = heapq.nsmallest(_WORST, _rows(record), key=lambda row: (row["loss"], row["index"]))
    return join(
        [
            element("p", "The texts with the largest loss a token: damaged ones are among them."),
            _table(worst),
            element("p", "Those with the smallest: what occurs in the training data too is here."),
            _table(best),
        ]
    )


def _table(rows: list[Row]) -> Html:
    cells = [
        [str(row["index"]), str(row["tokens"]), f"{row['loss']:.3f}",
         f"{perplexity(row['loss']):.4g}", str(row.get("text", ""))]
        for row in rows
    ]  # fmt: skip
    return table(["row", "tokens", "loss", "perplexity", "text"], cells, kinds="nnnnw")


def _rows(record: Record) -> Iterator[Row]:
    """Of predictions/*.jsonl, those that hold what was written, of which a token was predicted."""
    return (
        row
        for row in record.predictions.get(record.split, ())
        if type(row.get("loss")) in (int, float)
        and math.isfinite(row["loss"])
        and type(row.get("tokens")) is int
        and row["tokens"] > 0
    )


VIEW = View(
    tiles={
        "perplexity": "perplexity",
        "loss": "loss, nats a token",
        "accuracy": "tokens right",
    },
    result=result,
    sections={"Predictions": predictions, "Extremes": extremes},
    drawn=("perplexity",),  # beside which what is below 1 would be a flat line
)
