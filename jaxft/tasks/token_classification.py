"""Tags of words, such as named entities: softmax cross-entropy on the first token of each word.

The other tokens of a word have no weight, as in the recipe of transformers for the task. An evaluation
returns the tag, probability and loss of a token, never its logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis import entities as analysis
from jaxft.analysis import tagging
from jaxft.analysis.entities import Span, spans_of
from jaxft.analysis.view import View
from jaxft.data.files import Source
from jaxft.data.labels import find_target_column
from jaxft.data.tags import OUTSIDE, TAG_COLUMNS, Tags, read_tags, split_tag, type_of
from jaxft.data.targets import Unlabelled
from jaxft.tasks import classification
from jaxft.tasks.contract import Arrays, Predicted, Reading
from jaxft.tasks.distillation import class_distance

_EXAMPLES = 1024  # whose tags are texts at a time


@dataclasses.dataclass(frozen=True)
class Tagged:
    """What a model says of the words of one input.

    Attributes:
      tags: one a word.
      entities: {'type', 'start', 'end', 'text'} each; start and end (one past the last) count words.
    """

    tags: list[str]
    entities: list[dict[str, Any]]

    def cells(self) -> tuple[Any, ...]:
        return self.tags, self.entities


@dataclasses.dataclass(frozen=True)
class TokenClassification:
    """A task (see contract.py) with 'tag' int32, 'probability' and 'loss' float32 [E] of E words."""

    inputs: str = "words"
    head: str | None = "token"
    problem_type: str | None = None
    fewest_names: int = 2
    unused: tuple[str, ...] = ("data.classes", "data.examples_per_class")
    shown: tuple[str, ...] = ("loss", "f1", "precision", "recall")
    headline: tuple[str, ...] = ("loss", "f1", "precision", "recall", "f1_macro", "accuracy")
    compared: tuple[str, ...] = ("f1", "precision", "recall", "loss")
    join: None = None

    @property
    def view(self) -> View:
        return tagging.VIEW

    def find_column(self, source: Source, given: str) -> str:
        return find_target_column(source, given, source.item_names, TAG_COLUMNS, "tag")

    def read(self, source: Source, column: str, inputs: Sequence[str], reading: Reading) -> Tags:
        tags = read_tags(
            source, column, inputs[0], names=reading.names, drop_bad=reading.drop,
            advice=reading.advice,
        )  # fmt: skip
        same = sorted(tags.names) == sorted(reading.order)
        return tags.numbered_as(reading.order) if same else tags

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over words. outputs: 'logits' [R, L, C]. batch: 'labels', 'weight' [R, L]."""
        return classification.loss(outputs, batch, label_smoothing)

    def logits(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return {"logits": outputs["logits"].astype(jnp.float32), **_words(batch)}

    def distance(self, outputs: Arrays, batch: Arrays, temperature: float) -> jax.Array:
        return class_distance(outputs["logits"], batch["teacher"], temperature)

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        scores = jax.nn.log_softmax(outputs["logits"].astype(jnp.float32))
        found = {
            **_words(batch),
            "tag": jnp.argmax(scores, -1).astype(jnp.int32),
            "probability": jnp.exp(jnp.max(scores, -1)),
        }
        if "labels" in batch:
            own = jnp.take_along_axis(scores, batch["labels"][..., None], axis=-1)
            found["loss"] = -own[..., 0]
        return found

    def kept(self, targets: Tags, found: Mapping[str, np.ndarray], places: np.ndarray) -> Predicted:
        """Tags and losses."""
        return {"tag": found["tag"], "loss": found["loss"]}

    def scores(self, predicted: Predicted, targets: Tags) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `EntityCounts.metrics`; besides 'loss' (mean over the words that were read), 'accuracy' of
        all words, 'examples', 'words' and 'unread_words', which count as outside of any entity."""
        seen, names = predicted["seen"], targets.names
        losses = predicted["loss"][seen].astype(np.float64)
        if not np.isfinite(losses).all():
            broken = int((~np.isfinite(losses)).sum())
            raise FloatingPointError(f"the loss of {broken} of {len(losses)} words is not finite")
        counts, right = analysis.EntityCounts(), 0
        for start in range(0, len(targets), _EXAMPLES):
            ends = targets.offsets[start : start + _EXAMPLES + 1]
            own = slice(ends[0], ends[-1])
            tags = _tags({name: array[own] for name, array in predicted.items()}, names)
            true = [names[i] for i in targets.ids[own].tolist()]
            counts.add(*(_spans(of, ends - ends[0], start) for of in (tags, true)))
            right += sum(a == b for a, b in zip(tags, true, strict=True))
        metrics = {
            "loss": float(losses.mean()) if len(losses) else 0.0,
            **counts.metrics(),
            "accuracy": right / max(1, len(seen)),
            "examples": len(targets),
            "words": len(seen),
            "unread_words": int((~seen).sum()),
        }
        types = list(dict.fromkeys(type_of(name) for name in names if name != OUTSIDE))
        return metrics, {"confusion": counts.confusion(types).to_json()}

    def rows(
        self, predicted: Predicted, targets: Tags, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One an example: its words, their tags and predicted tags, the entities that are missed or
        made up, and the sum of the losses of its words."""
        tags, ends = _tags(predicted, targets.names), targets.offsets
        true = [targets.names[i] for i in targets.ids.tolist()]
        rows = []
        for j, words in enumerate(targets.words):
            own = slice(ends[j], ends[j + 1])
            found, there = (set(spans_of(t[own], split_tag)) for t in (tags, true))
            rows.append(
                {
                    "index": int(targets.rows[j]),
                    "words": list(words),
                    "label": true[own],
                    "predicted": tags[own],
                    "missed": _named(sorted(there - found), words),
                    "spurious": _named(sorted(found - there), words),
                    "loss": float(predicted["loss"][own].sum()),
                    "text": inputs[j],
                }
            )
        return rows

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return analysis.warnings_of(metrics)

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        """The tags of the words, and the entities that follow from them."""
        return {"predicted": "nested", "entities": "nested"}

    def is_output(self, row: Mapping[str, Any]) -> bool:
        last = list(row)[-2:]
        prefix = last[0].removesuffix("predicted") if last else ""
        return last == [f"{prefix}predicted", f"{prefix}entities"]

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Tagged]:
        ends = given.offsets
        for j, words in enumerate(given.words or ()):
            own = slice(ends[j], ends[j + 1])
            tags = _tags({name: array[own] for name, array in predicted.items()}, names)
            yield Tagged(tags, _named(spans_of(tags, split_tag), words))

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        return dict(enumerate(names))

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        heads = [str(name) for name in hf_config.get("architectures") or ()]
        return any(name.endswith("ForTokenClassification") for name in heads)

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        return classification.class_names(hf_config)


def _words(batch: Arrays) -> Arrays:
    """[R, L]: 'index', the row of the source that each first token of a word is of, else -1, and 'item',
    the word's number in it."""
    slot = jnp.maximum(batch["segment_ids"] - 1, 0)
    row = jnp.take_along_axis(batch["index"], slot, axis=1)
    return {
        "index": jnp.where(batch["words"] >= 0, row, -1),
        "item": jnp.maximum(batch["words"], 0),
    }


def _tags(predicted: Predicted, names: Sequence[str]) -> list[str]:
    """The predicted tag of every word; of one that was not read 'O', whether that is a tag or not."""
    pairs = zip(predicted["tag"].tolist(), predicted["seen"].tolist(), strict=True)
    return [names[tag] if seen else OUTSIDE for tag, seen in pairs]


def _spans(tags: Sequence[str], ends: np.ndarray, first: int) -> set[Span]:
    """The entities of some examples, the first of which has this number; `tags` one after the other."""
    return {
        span
        for j in range(len(ends) - 1)
        for span in spans_of(tags[ends[j] : ends[j + 1]], split_tag, first + j)
    }


def _named(spans: Iterator[Span] | list[Span], words: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"type": kind, "start": start, "end": end, "text": " ".join(words[start:end])}
        for _, start, end, kind in spans
    ]
