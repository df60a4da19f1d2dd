"""What the report shows of a model that chooses: how often it is right, and what it chooses instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxft.analysis import mistakes
from jaxft.analysis.metrics import wilson_interval
from jaxft.analysis.record import Record
from jaxft.analysis.view import View


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """The share of right choices, beside chance."""
    total, which = metrics["examples"], {"test": "test", "eval": "evaluation"}[record.split]
    low, high = wilson_interval(round(metrics["accuracy"] * total), total)
    return (
        f"The right choice is made in {metrics['accuracy']:.1%} of {total:,} {which} examples (95% "
        f"interval {low:.1%} to {high:.1%}); by guessing it would be in {1 / metrics['choices']:.1%}."
    )


VIEW = View(
    tiles={"accuracy": "accuracy", "loss": "loss"},
    result=result,
    sections={"Predictions": mistakes.predictions, "Mistakes": mistakes.confident_mistakes},
)
