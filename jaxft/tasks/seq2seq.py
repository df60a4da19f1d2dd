"""A text to be given for each that is read: cross-entropy of its tokens, and how near generated ones come.

The loss is summed over tokens, so a batch's is the mean over its tokens, as in transformers. An evaluation
brings back sums of each text; texts are generated only where that is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxft.analysis import language, written
from jaxft.analysis.view import View
from jaxft.data.files import Source
from jaxft.data.targets import Unlabelled
from jaxft.data.text_to_text import Texts, find_target_column, read_texts
from jaxft.tasks.contract import Arrays, Join, Predicted, Reading
from jaxft.tasks.token_losses import by_text, loss_sum, statistics

# In the names of transformers' classes of encoders and decoders.
_CLASSES = ("ForConditionalGeneration", "MarianMTModel", "EncoderDecoderModel")
_SUMS = ("loss", "tokens", "right")


@dataclasses.dataclass(frozen=True)
class Written:
    """What a model says of one text."""

    text: str

    def cells(self) -> tuple[Any, ...]:
        return (self.text,)


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """A task (see contract.py) with 'loss', 'tokens' and 'right' float32 [E], sums over tokens, and where
    texts are generated 'written' [E], '' of the others."""

    inputs: str = "text to text"
    head: str | None = "seq2seq"
    problem_type: str | None = None
    fewest_names: int = 0
    unused: tuple[str, ...] = ("data.classes", "data.examples_per_class")
    shown: tuple[str, ...] = ("loss", "perplexity", "accuracy", *written.SHOWN)
    headline: tuple[str, ...] = ("loss", "perplexity", "accuracy", *written.SCORES)
    compared: tuple[str, ...] = ("loss", "perplexity", "accuracy", *written.SCORES)

    @property
    def join(self) -> Join | None:
        return None

    @property
    def view(self) -> View:
        return written.VIEW

    def find_column(self, source: Source, given: str) -> str:
        return find_target_column(source, given)

    def read(self, source: Source, column: str, inputs: Sequence[str], reading: Reading) -> Texts:
        return read_texts(source, column, drop=reading.drop, advice=reading.advice)

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over the tokens to be given. outputs: see `token_losses.loss_sum`."""
        labels, weight = batch["labels"], batch["weight"]
        return loss_sum(outputs, labels, weight, label_smoothing), weight.sum()

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        losses, right = statistics(outputs, batch["labels"], batch["weight"])
        side = {"starts": batch["starts"], "segment_ids": batch["decoder_segment_ids"]}
        sums = (by_text(values, side) for values in (losses, batch["weight"], right))
        return {"index": batch["index"], **dict(zip(_SUMS, sums, strict=True))}

    def kept(
        self, targets: Texts, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """All of it."""
        return found

    def scores(self, predicted: Predicted, targets: Texts) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `language.metrics`; there are no details."""
        return language.metrics(*(predicted[name] for name in _SUMS)), {}

    def text_scores(self, texts: Sequence[str], targets: Texts) -> dict[str, Any]:
        """See `written.scores`."""
        return written.scores(texts, list(targets.texts))

    def rows(
        self, predicted: Predicted, targets: Texts, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One an example: its mean loss a token, what was to be given and, where it was generated, what
        was."""
        loss, tokens, right = (predicted[name].astype(float).tolist() for name in _SUMS)
        texts = predicted.get("written", np.full(len(targets), None))
        rows = []
        for j, wanted in enumerate(targets.texts):
            found = {} if texts[j] is None else {"predicted": texts[j]}
            rows.append(
                {"index": int(targets.rows[j]), "label": wanted, **found,
                 "loss": loss[j] / max(1, tokens[j]), "tokens": int(tokens[j]),
                 "accuracy": right[j] / max(1, tokens[j]), "text": inputs[j]}
            )  # fmt: skip
        return rows

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return written.warnings_of(metrics)

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        return {"predicted_text": "text"}

    def is_output(self, row: Mapping[str, Any]) -> bool:
        last = (list(row) or [""])[-1]
        return last.endswith("predicted_text") and isinstance(row[last], str)

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Written]:
        return (Written(text) for text in predicted["written"])

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        """None: its outputs are the tokenizer's."""
        return {}

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        heads = [str(name) for name in hf_config.get("architectures") or ()]
        return any(name.endswith(_CLASSES) for name in heads)

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        return ()
