"""Multiple choice: softmax cross-entropy over the scores of the texts that an example is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis import choosing
from jaxft.analysis import metrics as analysis
from jaxft.analysis.view import View
from jaxft.data.choices import ANSWER_COLUMNS, read_choices
from jaxft.data.files import Source
from jaxft.data.labels import Labels, find_column
from jaxft.data.targets import Unlabelled
from jaxft.tasks import classification
from jaxft.tasks.contract import Arrays, Predicted, Reading
from jaxft.tasks.distillation import class_distance


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a model says of one example.

    Attributes:
      label: what its choice is called, as in the data it was trained on.
      number: of the choice, from 0.
      probabilities: one a choice; they sum to 1.
    """

    label: str
    number: int
    probabilities: list[float]

    def cells(self) -> tuple[Any, ...]:
        return self.label, [round(value, 6) for value in self.probabilities]


@dataclasses.dataclass(frozen=True)
class MultipleChoice:
    """A task (see contract.py) whose predictions are 'logits' [N, G] float32: the scores of G choices."""

    inputs: str = "choices"
    head: str | None = "choice"
    problem_type: str | None = None
    fewest_names: int = 0
    unused: tuple[str, ...] = ("data.classes", "data.examples_per_class")
    shown: tuple[str, ...] = ("loss", "accuracy")
    headline: tuple[str, ...] = ("loss", "accuracy")
    compared: tuple[str, ...] = ("accuracy", "loss")
    join: None = None

    @property
    def view(self) -> View:
        return choosing.VIEW

    def find_column(self, source: Source, given: str) -> str:
        return find_column(source, given, ANSWER_COLUMNS, "label", option="label")

    def read(self, source: Source, column: str, inputs: Sequence[str], reading: Reading) -> Labels:
        return read_choices(
            source, column, inputs, names=reading.names, drop_bad=reading.drop,
            advice=reading.advice,
        )  # fmt: skip

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over examples. outputs: 'logits' [R, K * G, 1]. batch: 'labels', 'weight' [R, K]."""
        return classification.loss({"logits": _scores(outputs, batch)}, batch, label_smoothing)

    def logits(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return classification.logits_of({"logits": _scores(outputs, batch)}, batch)

    def distance(self, outputs: Arrays, batch: Arrays, temperature: float) -> jax.Array:
        return class_distance(_scores(outputs, batch), batch["teacher"], temperature)

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return self.logits(outputs, batch)

    def kept(
        self, targets: Labels, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """See `outcomes`."""
        return analysis.outcomes(found["logits"], targets.ids[places])

    def scores(
        self, predicted: Predicted, targets: Labels
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """'loss', 'accuracy', 'examples', 'choices', and what `warnings` reads; the detail 'confusion' tells
        whether a place is preferred."""
        metrics, counts = analysis.classification_metrics(predicted, targets.ids, targets.names)
        own = ("loss", "accuracy", "examples", "majority_accuracy", "predicted_classes",
               "most_predicted")  # fmt: skip
        found = {name: metrics[name] for name in own} | {"choices": len(targets.names)}
        return found, {"confusion": counts.to_json()}

    def rows(
        self, predicted: Predicted, targets: Labels, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        """See `prediction_rows`."""
        return analysis.prediction_rows(
            predicted, targets.ids, targets.names, index=targets.rows, kind="text", inputs=inputs
        )

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return analysis.warnings_of(metrics)

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        """The choice, and the probability of each."""
        return {"predicted": "text", "probabilities": "nested"}

    def is_output(self, row: Mapping[str, Any]) -> bool:
        last = list(row)[-2:]
        prefix = last[0].removesuffix("predicted") if last else ""
        return last == [f"{prefix}predicted", f"{prefix}probabilities"]

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Choice]:
        for scores in predicted["logits"]:
            number = int(scores.argmax())
            name = names[number] if number < len(names) else str(number)
            yield Choice(name, number, analysis.softmax(scores).tolist())

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        """The one output, the score of a choice, under the name that transformers gives it."""
        return {0: "LABEL_0"}

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        heads = [str(name) for name in hf_config.get("architectures") or ()]
        return any(name.endswith("ForMultipleChoice") for name in heads)

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        """None: a checkpoint does not say what the choices were called."""
        return ()


def _scores(outputs: Arrays, batch: Arrays) -> jax.Array:
    """[R, K, G] float32 of the texts [R, K * G, 1]."""
    return jnp.reshape(outputs["logits"].astype(jnp.float32), (*batch["index"].shape, -1))
