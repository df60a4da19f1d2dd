"""Single-label classification of a text, a pair of texts or an image: weighted softmax cross-entropy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.analysis import calibration, mistakes
from jaxft.analysis import metrics as analysis
from jaxft.analysis.metrics import softmax
from jaxft.analysis.view import View
from jaxft.data.files import Source
from jaxft.data.labels import LABEL_COLUMNS, Labels, find_target_column, read_labels
from jaxft.data.targets import Unlabelled
from jaxft.tasks.contract import Arrays, Predicted, Reading
from jaxft.tasks.distillation import class_distance
from jaxft.tasks.shaping import divergence, focal_factor

# In the names of transformers' classes whose config.json says nothing else of what they are for.
_OTHER_HEADS = (
    "ForToken", "ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForQuestionAnswering",
    "ForMultipleChoice", "ForConditionalGeneration", "MarianMTModel", "EncoderDecoderModel",
)  # fmt: skip


def loss(
    outputs: dict[str, jax.Array],
    batch: dict[str, jax.Array],
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Sum over examples of weight x cross-entropy, and the sum of the weights.

    Args:
      outputs: 'logits' [..., C].
      batch: 'labels' [...] int and 'weight' [...] float32; weight 0 marks an empty slot.
      label_smoothing: share of the target spread evenly over the C classes (Szegedy et al. 2016).
      focal_gamma: see `focal_factor`.

    Returns:
      Two float32 scalars. Their quotient is the mean, to be taken after every sum over microbatches,
      devices and hosts: means of unequal batches must not be averaged.
    """
    logits = outputs["logits"].astype(jnp.float32)
    targets = jax.nn.one_hot(batch["labels"], logits.shape[-1], dtype=jnp.float32)
    targets = optax.smooth_labels(targets, label_smoothing) if label_smoothing else targets
    losses = optax.softmax_cross_entropy(logits, targets)
    losses = losses * focal_factor(-losses, focal_gamma) if focal_gamma else losses
    return jnp.sum(losses * batch["weight"]), jnp.sum(batch["weight"])


def logits_of(outputs: Arrays, batch: Arrays) -> Arrays:
    """'logits' [..., C] float32 and 'index' [...]: all outputs of each example, as they are."""
    return {"logits": outputs["logits"].astype(jnp.float32), "index": batch["index"]}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of one input.

    Attributes:
      label: name of the most probable class.
      probabilities: by label name, in the order of the class numbers; they sum to 1.
    """

    label: str
    probabilities: dict[str, float]

    @property
    def probability(self) -> float:
        """Of `label`."""
        return self.probabilities[self.label]

    def cells(self) -> tuple[Any, ...]:
        """The label, then each probability to six digits."""
        return (self.label, *(round(value, 6) for value in self.probabilities.values()))


@dataclasses.dataclass(frozen=True)
class OneLabel:
    """What tasks (see contract.py) have in common whose predictions are 'logits' [N, C] float32 of one label.

    Of them an evaluation keeps the predicted class, its probability and the loss, and itself where it is
    small enough to calibrate.

    temperature: fitted on the evaluation data; None: that is what is scored, and it is fitted on it.
    is_calibrated: whether `answers` divides logits by it.
    """

    inputs: str = "text"
    head: str | None = None
    problem_type: str | None = "single_label_classification"
    fewest_names: int = 2
    unused: tuple[str, ...] = ()
    shown: tuple[str, ...] = ("loss", "accuracy", "f1_macro", "mcc")
    headline: tuple[str, ...] = (
        "loss", "accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro", "mcc",
    )  # fmt: skip
    compared: tuple[str, ...] = ("accuracy", "f1_macro", "loss")
    join: None = None
    temperature: float | None = None
    is_calibrated: bool = False

    @property
    def view(self) -> View:
        return mistakes.VIEW

    def find_column(self, source: Source, given: str) -> str:
        return find_target_column(source, given, source.class_names, LABEL_COLUMNS, "label")

    def read(self, source: Source, column: str, inputs: Sequence[str], reading: Reading) -> Labels:
        labels = read_labels(
            source, column, names=reading.names, classes=reading.classes,
            drop_missing=reading.drop, advice=reading.advice,
        )  # fmt: skip
        same = sorted(labels.names) == sorted(reading.order)
        return labels.numbered_as(reading.order) if same else labels

    def kept(
        self, targets: Labels, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """See `outcomes`; 'logits' too, if all are few."""
        logits = found["logits"]
        kept = analysis.outcomes(logits, targets.ids[places])
        few = len(targets) * logits.shape[-1] <= calibration.MOST
        return {**kept, "logits": logits} if few else kept

    def scores(
        self, predicted: Predicted, targets: Labels
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `classification_metrics`; the detail 'confusion' is what `Confusion.to_json` gives.

        Where the logits are known also 'temperature', 'ece' and, at it, 'ece_calibrated' and
        'loss_calibrated'; and the detail 'calibration': {'before', 'after'} of `calibration`.
        """
        metrics, counts = analysis.classification_metrics(predicted, targets.ids, targets.names)
        details: dict[str, Any] = {"confusion": counts.to_json()}
        if "logits" in predicted:
            logits, labels = predicted["logits"], targets.ids
            temperature = self.temperature or round(calibration.temperature_of(logits, labels), 6)
            before, after = (calibration.calibration(logits, labels, t) for t in (1.0, temperature))
            metrics |= calibration.compared(before, after, temperature)
            details["calibration"] = {"before": before, "after": after}
        return metrics, details

    def rows(
        self, predicted: Predicted, targets: Labels, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        """See `prediction_rows`."""
        return analysis.prediction_rows(
            predicted, targets.ids, targets.names, index=targets.rows,
            kind=self.inputs, inputs=inputs,
        )  # fmt: skip

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return analysis.warnings_of(metrics)

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        return with_probabilities(names)

    def is_output(self, row: Mapping[str, Any]) -> bool:
        return has_probabilities(row)

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Prediction]:
        temperature = (self.temperature or 1.0) if self.is_calibrated else 1.0
        for scores in predicted["logits"]:
            probabilities = map(float, softmax(scores / temperature))
            yield Prediction(
                names[int(scores.argmax())], dict(zip(names, probabilities, strict=True))
            )

    def fits(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {key: metrics[key] for key in ("temperature",) if key in metrics}

    def fitted(self, found: Mapping[str, Any], names: Sequence[str]) -> Self:
        """With the temperature, else with 1: other data must fit none."""
        return dataclasses.replace(self, temperature=calibration.sound_temperature(found))

    def calibrated(self) -> Self:
        return dataclasses.replace(self, is_calibrated=True)

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        return dict(enumerate(names))

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        return class_names(hf_config)


@dataclasses.dataclass(frozen=True)
class Classification(OneLabel):
    """A task whose loss is the cross-entropy of the logits that the model gives."""

    focal_gamma: float = 0.0

    @property
    def settings(self) -> Mapping[str, str]:
        return {"train.focal_gamma": "focal_gamma"}

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        return loss(outputs, batch, label_smoothing, self.focal_gamma)

    def disagreement(self, first: Arrays, second: Arrays, batch: Arrays) -> jax.Array:
        apart = divergence(first["logits"], second["logits"])
        return jnp.sum(apart * batch["weight"])

    def logits(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return logits_of(outputs, batch)

    def distance(self, outputs: Arrays, batch: Arrays, temperature: float) -> jax.Array:
        return class_distance(outputs["logits"], batch["teacher"], temperature)

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return logits_of(outputs, batch)

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        problem = hf_config.get("problem_type") or self.problem_type
        heads = [str(name) for name in hf_config.get("architectures") or ()]
        others = any(kind in name for kind in _OTHER_HEADS for name in heads)
        others |= any(name.endswith("Model") for name in heads)  # without a head
        return problem == self.problem_type and not others


def with_probabilities(names: Sequence[str]) -> dict[str, str]:
    """What `predict` adds: what is predicted, then a probability a label."""
    return {"predicted": "text", **{f"probability_{name}": "number" for name in names}}


def has_probabilities(row: Mapping[str, Any]) -> bool:
    """Whether there is a column 'predicted', and one 'probability_NAME' with the same prefix."""
    prefixes = [name.removesuffix("predicted") for name in row if name.endswith("predicted")]
    return any(name.startswith(f"{p}probability_") for p in prefixes for name in row)


def class_names(hf_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of `id2label`, by class number; transformers writes none where there are its two default ones.

    Raises:
      ValueError: it does not name two or more classes, or two alike.
    """
    id2label = hf_config.get("id2label")
    if id2label is None:
        return ("LABEL_0", "LABEL_1")
    numbered = isinstance(id2label, dict) and len(id2label) >= 2
    if not numbered or set(id2label) != {str(i) for i in range(len(id2label))}:
        raise ValueError("id2label does not name two or more classes")
    names = tuple(str(id2label[str(i)]) for i in range(len(id2label)))
    if len(set(names)) < len(names):
        raise ValueError("id2label names two classes alike")
    return names
