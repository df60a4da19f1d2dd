"""Regression of one number on a text, a pair or an image: mean squared error, in the unit of the data.

As in transformers, numbers are not standardised, so an exported model predicts in the unit of the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis import regression as analysis
from jaxft.analysis import residuals
from jaxft.analysis.metrics import shorten
from jaxft.analysis.view import View
from jaxft.data.files import Source
from jaxft.data.numbers import Numbers, find_number_column, read_numbers
from jaxft.data.targets import Unlabelled
from jaxft.tasks.contract import Arrays, Predicted, Reading
from jaxft.tasks.distillation import number_distance


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a model says of one input: a number."""

    value: float

    def cells(self) -> tuple[float]:
        return (self.value,)


@dataclasses.dataclass(frozen=True)
class Regression:
    """A task (see contract.py) whose predictions are 'logits' [N, 1] float32: the numbers."""

    inputs: str
    head: str | None = None
    problem_type: str | None = "regression"
    fewest_names: int = 0
    unused: tuple[str, ...] = (
        "data.classes",
        "data.examples_per_class",
        "data.cutmix",
        "train.label_smoothing",
        "distill.temperature",
    )
    shown: tuple[str, ...] = ("loss", "pearson", "spearman", "rmse")
    headline: tuple[str, ...] = ("loss", "pearson", "spearman", "rmse", "mae", "r2")
    compared: tuple[str, ...] = ("pearson", "spearman", "rmse", "loss")
    join: None = None

    @property
    def view(self) -> View:
        return residuals.VIEW

    def find_column(self, source: Source, given: str) -> str:
        return find_number_column(source, given)

    def read(self, source: Source, column: str, inputs: Sequence[str], reading: Reading) -> Numbers:
        numbers = read_numbers(source, column, drop_bad=reading.drop, advice=reading.advice)
        if reading.names is None and numbers.values.min() == numbers.values.max():
            raise ValueError(
                f"{source.name}: column {column!r} holds {numbers.values[0]:g} in every row; there is "
                "nothing to learn"
            )
        return numbers

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Sum over examples of weight x squared error, and the sum of the weights.

        outputs: 'logits' [..., 1]. batch: 'labels' [...] and 'weight' [...] float32.
        """
        error = outputs["logits"][..., 0].astype(jnp.float32) - batch["labels"]
        return jnp.sum(error**2 * batch["weight"]), jnp.sum(batch["weight"])

    def logits(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return {"logits": outputs["logits"].astype(jnp.float32), "index": batch["index"]}

    def distance(self, outputs: Arrays, batch: Arrays, temperature: float) -> jax.Array:
        return number_distance(outputs["logits"], batch["teacher"])

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return self.logits(outputs, batch)

    def kept(
        self, targets: Numbers, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """All of it."""
        return found

    def scores(
        self, predicted: Predicted, targets: Numbers
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `regression_metrics`; there are no details."""
        return analysis.regression_metrics(predicted["logits"][:, 0], targets.values), {}

    def rows(
        self, predicted: Predicted, targets: Numbers, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        values = predicted["logits"][:, 0].astype(float)
        return [
            {"index": int(row), "label": label, "predicted": value, "error": value - label,
             self.inputs: shorten(text) if self.inputs == "text" else text}
            for row, label, value, text in zip(
                targets.rows, targets.values.tolist(), values.tolist(), inputs, strict=True
            )
        ]  # fmt: skip

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return analysis.warnings_of(metrics)

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        return {"predicted_value": "number"}

    def is_output(self, row: Mapping[str, Any]) -> bool:
        """Its last column is 'predicted_value', which hardly anybody else has, and holds a number."""
        if not row or not list(row)[-1].endswith("predicted_value"):
            return False
        try:
            return math.isfinite(float(list(row.values())[-1]))
        except (TypeError, ValueError):
            return False

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Estimate]:
        return map(Estimate, predicted["logits"][:, 0].tolist())

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        """One output, under the name that transformers gives it."""
        return {0: "LABEL_0"}

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        return hf_config.get("problem_type") == self.problem_type

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        """None. ValueError: the checkpoint predicts several numbers."""
        labels = hf_config.get("id2label")
        if not isinstance(labels, dict) or len(labels) != 1:
            raise ValueError("a regression with one number has one label in id2label")
        return ()
