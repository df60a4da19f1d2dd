"""Several labels an example, none to all of them: weighted sigmoid cross-entropy, of texts, pairs and images.

As in transformers, whose `problem_type` 'multi_label_classification' it is, the loss of an example is the
mean over the labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.analysis import calibration, labelling
from jaxft.analysis import multilabel as analysis
from jaxft.analysis.metrics import shorten
from jaxft.analysis.multilabel import Thresholds
from jaxft.analysis.view import View
from jaxft.data.files import Source
from jaxft.data.label_names import joined
from jaxft.data.label_sets import LabelSets, find_set_column, read_label_sets
from jaxft.data.targets import Unlabelled
from jaxft.tasks.classification import (
    class_names,
    has_probabilities,
    logits_of,
    with_probabilities,
)
from jaxft.tasks.contract import Arrays, Predicted, Reading
from jaxft.tasks.distillation import label_distance
from jaxft.tasks.shaping import focal_factor, label_divergence


def loss(outputs: Arrays, batch: Arrays, focal_gamma: float = 0.0) -> tuple[jax.Array, jax.Array]:
    """Sum over examples of weight x mean binary cross-entropy, and the sum of the weights.

    Args:
      outputs: 'logits' [..., C].
      batch: 'labels' [..., C] float32, 1 where a label applies; 'weight' [...] float32; 'label_weights'
        [..., C] float32, what each term counts, where these differ (the pos_weight of PyTorch).
      focal_gamma: see `focal_factor`.
    """
    logits = outputs["logits"].astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(logits, batch["labels"])
    losses = losses * focal_factor(-losses, focal_gamma) if focal_gamma else losses
    if "label_weights" in batch:
        losses = losses * batch["label_weights"]
    return jnp.sum(losses.mean(-1) * batch["weight"]), jnp.sum(batch["weight"])


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """What a model says of one input.

    Attributes:
      labels: those that apply, in the order of their numbers; () where none does.
      probabilities: by label name, in that order; each is by itself.
    """

    labels: tuple[str, ...]
    probabilities: dict[str, float]

    def cells(self) -> tuple[Any, ...]:
        """The labels joined (see `joined`), then each probability to six digits."""
        values = self.probabilities
        return (joined(self.labels, tuple(values)), *(round(x, 6) for x in values.values()))


@dataclasses.dataclass(frozen=True)
class MultiLabel:
    """A task (see contract.py) whose predictions are 'logits' [N, C] float32, all of which are kept.

    thresholds: tuned on the evaluation data; None: that is what is scored, and they are tuned on it.
    temperature: of all labels, fitted likewise. Thresholds are of probabilities without it.
    is_calibrated: whether probabilities in `answers` are at the temperature.
    """

    inputs: str
    thresholds: Thresholds | None = None
    head: str | None = None
    problem_type: str | None = "multi_label_classification"
    join: None = None
    focal_gamma: float = 0.0
    temperature: float | None = None
    is_calibrated: bool = False
    fewest_names: int = 2
    unused: tuple[str, ...] = ("data.examples_per_class", "train.label_smoothing")
    shown: tuple[str, ...] = ("loss", "f1_micro_tuned", "f1_macro_tuned", "average_precision_macro")
    headline: tuple[str, ...] = (
        "loss", "f1_micro", "f1_macro", "f1_micro_tuned", "f1_macro_tuned",
        "average_precision_micro", "average_precision_macro", "subset_accuracy_tuned",
    )  # fmt: skip
    compared: tuple[str, ...] = (
        "f1_micro_tuned",
        "f1_macro_tuned",
        "average_precision_macro",
        "loss",
    )

    @property
    def settings(self) -> Mapping[str, str]:
        return {"train.focal_gamma": "focal_gamma"}

    @property
    def view(self) -> View:
        return labelling.VIEW

    def find_column(self, source: Source, given: str) -> str:
        return find_set_column(source, given)

    def read(
        self, source: Source, column: str, inputs: Sequence[str], reading: Reading
    ) -> LabelSets:
        sets = read_label_sets(
            source, column, names=reading.names, classes=reading.classes,
            drop_missing=reading.drop, advice=reading.advice,
        )  # fmt: skip
        same = sorted(sets.names) == sorted(reading.order)
        return sets.numbered_as(reading.order) if same else sets

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        return loss(outputs, batch, self.focal_gamma)

    def disagreement(self, first: Arrays, second: Arrays, batch: Arrays) -> jax.Array:
        apart = label_divergence(first["logits"], second["logits"])
        return jnp.sum(apart * batch["weight"])

    def logits(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return logits_of(outputs, batch)

    def distance(self, outputs: Arrays, batch: Arrays, temperature: float) -> jax.Array:
        return label_distance(outputs["logits"], batch["teacher"], temperature)

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return logits_of(outputs, batch)

    def kept(
        self, targets: LabelSets, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """All of it: thresholds and average precisions need every score."""
        return found

    def scores(
        self, predicted: Predicted, targets: LabelSets
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `multilabel_metrics`; where logits are few also what `OneLabel.scores` says of calibration."""
        truth = targets.dense(np.arange(len(targets)))
        metrics = analysis.multilabel_metrics(
            predicted["logits"], truth, targets.names, self.thresholds
        )
        if predicted["logits"].size > calibration.MOST:
            return metrics, {}
        logits, given = predicted["logits"], self.temperature
        temperature = given or round(calibration.label_temperature(logits, truth), 6)
        before, after = (
            calibration.label_calibration(logits, truth, t) for t in (1.0, temperature)
        )
        metrics |= calibration.compared(before, after, temperature)
        return metrics, {"calibration": {"before": before, "after": after}}

    def rows(
        self, predicted: Predicted, targets: LabelSets, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        """'predicted' are the labels at the thresholds; 'probabilities' {name: p} of those that are
        predicted or true."""
        truth, logits = targets.dense(np.arange(len(targets))), predicted["logits"]
        scores = analysis.probabilities(logits)
        applies = self._apply(scores)
        losses = analysis.cross_entropy(logits, truth).tolist()
        return [
            {
                "index": int(targets.rows[j]),
                "labels": _chosen(targets.names, truth[j]),
                "predicted": _chosen(targets.names, applies[j]),
                "probabilities": {
                    targets.names[c]: round(float(scores[j, c]), 6)
                    for c in np.flatnonzero(truth[j] | applies[j])
                },
                "loss": losses[j],
                self.inputs: shorten(text) if self.inputs == "text" else text,
            }
            for j, text in enumerate(inputs)
        ]

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return analysis.warnings_of(metrics)

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        return with_probabilities(names)

    def is_output(self, row: Mapping[str, Any]) -> bool:
        return has_probabilities(row)

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[LabelSet]:
        temperature = (self.temperature or 1.0) if self.is_calibrated else 1.0
        for logits in predicted["logits"]:
            applies = self._apply(analysis.probabilities(logits))
            scores = analysis.probabilities(logits / temperature).tolist()
            yield LabelSet(tuple(_chosen(names, applies)), dict(zip(names, scores, strict=True)))

    def _apply(self, scores: np.ndarray) -> np.ndarray:
        return scores >= (0.5 if self.thresholds is None else self.thresholds.single)

    def fits(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        fitted = ("threshold", "thresholds", "temperature")
        return {key: metrics[key] for key in fitted if key in metrics}

    def fitted(self, found: Mapping[str, Any], names: Sequence[str]) -> MultiLabel:
        """With the thresholds that were tuned, else with 0.5 for all, and with the temperature, else with 1:
        other data must fit none."""
        return dataclasses.replace(
            self,
            thresholds=Thresholds.of(found, len(names)),
            temperature=calibration.sound_temperature(found),
        )

    def calibrated(self) -> MultiLabel:
        return dataclasses.replace(self, is_calibrated=True)

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        return dict(enumerate(names))

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        return hf_config.get("problem_type") == self.problem_type

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        return class_names(hf_config)


def _chosen(names: Sequence[str], which: np.ndarray) -> list[str]:
    return [name for name, yes in zip(names, which.tolist(), strict=True) if yes]
