"""Language models: the next token of documents, or masked tokens of texts, by cross-entropy in nats.

The loss is summed over tokens, so a batch's is the mean over its tokens, as in transformers. An evaluation
brings back sums of each text, never what the model says of a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft.analysis import language
from jaxft.analysis.view import View
from jaxft.data.documents import Documents, read_documents
from jaxft.data.files import Source
from jaxft.data.targets import Unlabelled, unlabelled
from jaxft.tasks.contract import Arrays, Join, Predicted, Reading
from jaxft.tasks.token_losses import by_text, loss_sum, next_tokens, statistics

_COLUMNS = {"perplexity": "number", "loss": "number", "tokens": "whole"}
_SUMS = ("loss", "tokens", "right")


@dataclasses.dataclass(frozen=True)
class Surprise:
    """What a model says of one text.

    Attributes:
      loss: mean over the tokens that are predicted, in nats; 0 where there is none.
      tokens: how many are predicted.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return language.perplexity(self.loss)

    def cells(self) -> tuple[Any, ...]:
        return self.perplexity, self.loss, self.tokens


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """A task (see contract.py) whose predictions are 'loss', 'tokens' and 'right' [E] float32, sums.

    Attributes:
      endings: of the names of transformers' classes of such a model.
    """

    inputs: str = "document"
    head: str | None = "causal"
    endings: tuple[str, ...] = ("ForCausalLM", "LMHeadModel")
    problem_type: str | None = None
    fewest_names: int = 0
    unused: tuple[str, ...] = ("data.label", "data.classes", "data.examples_per_class")
    shown: tuple[str, ...] = ("loss", "perplexity", "accuracy")
    headline: tuple[str, ...] = ("loss", "perplexity", "accuracy")
    compared: tuple[str, ...] = ("loss", "perplexity", "accuracy")

    @property
    def join(self) -> Join | None:
        return _join

    @property
    def view(self) -> View:
        return language.VIEW

    def find_column(self, source: Source, given: str) -> str:
        if given:
            raise ValueError(
                f"{source.name}: a language model has no label column, got {given!r}; name the texts by "
                "config.data.text"
            )
        return ""

    def read(
        self, source: Source, column: str, inputs: Sequence[str], reading: Reading
    ) -> Unlabelled:
        return read_documents(source, inputs[0])

    def asked(self, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """(labels, weight), both [R, L]: what is to be predicted at each token, and whether."""
        return next_tokens(batch)

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over tokens. outputs: see `token_losses.loss_sum`."""
        labels, weight = self.asked(batch)
        return loss_sum(outputs, labels, weight, label_smoothing), weight.sum()

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        labels, weight = self.asked(batch)
        losses, right = statistics(outputs, labels, weight)
        sums = (by_text(values, batch) for values in (losses, weight, right))
        window = {"item": batch["window"]} if "window" in batch else {}
        return {"index": batch["index"], **window, **dict(zip(_SUMS, sums, strict=True))}

    def kept(
        self, targets: Unlabelled, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """All of it."""
        return found

    def scores(
        self, predicted: Predicted, targets: Unlabelled
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `language.metrics`; there are no details."""
        sizes = targets.sizes if isinstance(targets, Documents) else None
        loss, tokens, right = (predicted[name] for name in _SUMS)
        return language.metrics(loss, tokens, right, sizes), {}

    def rows(
        self, predicted: Predicted, targets: Unlabelled, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        loss, tokens, right = (predicted[name].astype(float).tolist() for name in _SUMS)
        return [
            {"index": int(row), "loss": loss[j] / max(1, tokens[j]), "tokens": int(tokens[j]),
             "accuracy": right[j] / max(1, tokens[j]), "text": inputs[j]}
            for j, row in enumerate(targets.rows)
        ]  # fmt: skip

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return language.warnings_of(metrics)

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        return dict(_COLUMNS)

    def is_output(self, row: Mapping[str, Any]) -> bool:
        last = list(row)[-len(_COLUMNS) :]
        prefix = last[0].removesuffix("perplexity") if last else ""
        return last == [f"{prefix}{name}" for name in _COLUMNS]

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Surprise]:
        pairs = zip(predicted["loss"].tolist(), predicted["tokens"].tolist(), strict=True)
        return (Surprise(loss / max(1, tokens), int(tokens)) for loss, tokens in pairs)

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        """None: its outputs are the tokenizer's."""
        return {}

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        heads = [str(name) for name in hf_config.get("architectures") or ()]
        return any(name.endswith(self.endings) for name in heads)

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        return ()


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModelling(LanguageModelling):
    """Masked tokens, by what is left of their text; an evaluation masks the same ones each time."""

    inputs: str = "masked text"
    head: str | None = "masked"
    endings: tuple[str, ...] = ("ForMaskedLM",)

    def read(
        self, source: Source, column: str, inputs: Sequence[str], reading: Reading
    ) -> Unlabelled:
        return unlabelled(len(source))

    def asked(self, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        chosen = batch["chosen"] & (batch["segment_ids"] > 0)
        return batch["original"], chosen.astype("float32")


def _join(found: Predicted, windows: np.ndarray, targets: Any) -> Predicted:
    """Sums over the windows of each text, float64."""
    return {name: np.add.reduceat(found[name].astype(np.float64), windows[:-1]) for name in _SUMS}
