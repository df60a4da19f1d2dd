"""How often a model finds the preferred answer likelier than it did, and what the report shows of it."""

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

_WORST = 15


def metrics(losses: np.ndarray, rewards: np.ndarray) -> dict[str, Any]:
    """Metrics as plain JSON values.

    Args:
      losses: [N] of each pair.
      rewards: [N, 2] of the preferred and the other answer.

    Returns:
      'loss'; 'accuracy', the share of pairs whose preferred answer has the larger reward; 'margin', by how
      much it is larger on average; 'chosen_reward', 'rejected_reward'; 'examples'.

    Raises:
      FloatingPointError: rewards that are not finite.
    """
    broken = int((~np.isfinite(rewards)).any(1).sum())
    if broken:
        raise FloatingPointError(f"the rewards of {broken} of {len(rewards)} pairs are not finite")
    chosen, rejected = rewards.astype(np.float64).T
    return {
        "loss": float(losses.mean(dtype=np.float64)),
        "accuracy": float((chosen > rejected).mean()),
        "margin": float((chosen - rejected).mean()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
        "examples": len(rewards),
    }


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """How many pairs are in the wanted order, and what happened to either answer."""
    which = {"test": "test", "eval": "evaluation"}[record.split]
    moved = {name: metrics[f"{name}_reward"] for name in ("chosen", "rejected")}
    both = ": both became less likely" if max(moved.values()) < 0 else ""
    return (
        f"In {metrics['accuracy']:.1%} of {metrics['examples']:,} {which} pairs the preferred answer gained "
        f"more than the other one, against the model that training began with. Rewards are "
        f"{moved['chosen']:+.4g} for preferred and {moved['rejected']:+.4g} for other answers on "
        f"average{both}."
    )


def predictions(record: Record, plots: ModuleType) -> Html:
    """How the margins are distributed."""
    margins = array("d", (row["margin"] for row in _rows(record)))
    if not margins:
        return missing(f"No predictions/{record.split}.jsonl.")
    return figure(
        plots.histogram(
            np.frombuffer(margins), "reward of the preferred answer less that of the other"
        ),
        "How many pairs have which margin; those left of 0 are in the wrong order.",
    )


def worst(record: Record, _: ModuleType) -> Html:
    """The pairs whose order is most wrong."""
    rows = heapq.nsmallest(_WORST, _rows(record), key=lambda row: (row["margin"], row["index"]))
    if not rows:
        return missing(f"No predictions/{record.split}.jsonl.")
    cells = [[str(r["index"]), f"{r['margin']:.4g}", str(r.get("text", ""))] for r in rows]
    note = (
        "The smallest margins first. Where the other answer is the better one, the data are wrong."
    )
    return join([element("p", note), table(["row", "margin", "text"], cells, kinds="nnw")])


def _rows(record: Record) -> Iterator[Row]:
    """Of predictions/*.jsonl, those that hold what was written."""
    return (
        row
        for row in record.predictions.get(record.split, ())
        if type(row.get("margin")) in (int, float) and math.isfinite(row["margin"])
    )


VIEW = View(
    tiles={
        "accuracy": "pairs in order",
        "margin": "mean margin",
        "loss": "loss",
    },
    result=result,
    sections={"Predictions": predictions, "Mistakes": worst},
)
