"""Embeddings of texts: pairs that are alike are to be similar, by cosine, and others not.

Rows of an anchor and a positive, with negatives after them, are told from all other texts of the batch by the
cross-entropy over similarities (Henderson et al. 2017, arXiv:1705.00652; van den Oord et al. 2018,
arXiv:1807.03748). Of pairs with a score the squared error of the similarity is the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis import embeddings as analysis
from jaxft.analysis.view import View
from jaxft.data.files import Source
from jaxft.data.labels import find_column
from jaxft.data.numbers import Numbers, read_numbers
from jaxft.data.targets import Unlabelled, unlabelled
from jaxft.data.text_groups import SCORE_COLUMNS
from jaxft.tasks.contract import Arrays, Predicted, Reading

# In the config.json of an export that has a classifier of vectors beside it, which few_shot.py fits.
CLASSIFIER = "sentence_classifier"
_NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What a model says of one row.

    Attributes:
      vector: [D] float32 of unit length.
    """

    vector: np.ndarray

    def cells(self) -> tuple[Any, ...]:
        return ([round(x, 8) for x in self.vector.astype(float).tolist()],)


def pooled(outputs: Arrays, batch: Arrays, pooling: str) -> jax.Array:
    """Vectors [R, K, G, D] float32 of the G texts of each example; any of empty slots.

    outputs: 'tokens' [R, L, D]. pooling: 'mean' of the tokens of a text, or 'cls', its first.
    """
    tokens, starts = outputs["tokens"].astype(jnp.float32), batch["starts"]
    if pooling == "cls":
        found = jnp.take_along_axis(tokens, starts[..., None], axis=1)
    else:
        slots = jnp.arange(1, starts.shape[1] + 1, dtype=batch["segment_ids"].dtype)
        own = (batch["segment_ids"][:, None, :] == slots[:, None]).astype(jnp.float32)
        found = own @ tokens / jnp.maximum(own.sum(-1, keepdims=True), 1)
    return found.reshape(*batch["index"].shape, -1, tokens.shape[-1])


def of_unit_length(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] by their norms. Zeros, as of an empty slot, have a gradient of zeros."""
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.sum(vectors**2, -1, keepdims=True), 1e-12))


@dataclasses.dataclass(frozen=True)
class Embedding:
    """A task (see contract.py) whose predictions are 'embeddings' [N, G, D] float32 of unit length.

    Attributes:
      pooling: 'mean' of the tokens of a text, or 'cls', its first.
      temperature: by which similarities are divided where texts are told from others.
      scale: by which scores are divided: they then lie between -1 and 1.
    """

    inputs: str = "texts"
    head: str | None = "embedding"
    problem_type: str | None = None
    fewest_names: int = 0
    unused: tuple[str, ...] = ("data.classes", "data.examples_per_class", "train.label_smoothing")
    shown: tuple[str, ...] = ("loss", "spearman", "recall_at_1", "mrr")
    headline: tuple[str, ...] = (
        "loss", "spearman", "pearson", "recall_at_1", "recall_at_5", "recall_at_10", "mrr",
    )  # fmt: skip
    compared: tuple[str, ...] = ("spearman", "mrr", "recall_at_1", "loss")
    join: None = None
    settings: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {
            "model.pooling": "pooling",
            "train.temperature": "temperature",
            "data.score_scale": "scale",
        }
    )
    pooling: str = "mean"
    temperature: float = 0.05
    scale: float = 1.0

    @property
    def view(self) -> View:
        return analysis.VIEW

    def find_column(self, source: Source, given: str) -> str:
        """That of the scores; '' where there is none."""
        if not given and not any(name in source.columns for name in SCORE_COLUMNS):
            return ""
        return find_column(source, given, SCORE_COLUMNS, "score", option="label")

    def read(
        self, source: Source, column: str, inputs: Sequence[str], reading: Reading
    ) -> Numbers | Unlabelled:
        if len(inputs) < 2 or (column and len(inputs) != 2):
            what = "two texts to a score" if column else "at least an anchor and a positive"
            raise ValueError(
                f"{source.name}: {what} are needed, and there is {', '.join(inputs)}; name the columns of "
                "texts by config.data.text"
            )
        if not column:
            return unlabelled(len(source))
        numbers = read_numbers(source, column, drop_bad=reading.drop, advice=reading.advice)
        scaled = dataclasses.replace(numbers, values=numbers.values / self.scale)
        outside = np.flatnonzero(np.abs(scaled.values) > 1)
        if len(outside):
            row, value = int(numbers.rows[outside[0]]), numbers.values[outside[0]]
            raise ValueError(
                f"{source.where(row)}: column {column!r} holds {value:g}, and a cosine lies between -1 and "
                f"1: give config.data.score_scale={np.abs(numbers.values).max():g}, by which scores are "
                "divided"
            )
        return scaled

    def lacking(self, targets: Numbers | Unlabelled) -> tuple[str, ...]:
        if isinstance(targets, Numbers):
            return "mrr", "recall_at_1", "recall_at_5", "recall_at_10"
        return "spearman", "pearson"

    def embed(self, outputs: Arrays, batch: Arrays) -> jax.Array:
        """[R, K, G, D] float32 of unit length; any of empty slots. outputs: 'tokens' [R, L, D]."""
        return of_unit_length(pooled(outputs, batch, self.pooling))

    def contrast(self, embeddings: jax.Array, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Sums over rows of the data; see `Contrastive`."""
        texts, width = embeddings.shape[-2:]
        flat, weight = embeddings.reshape(-1, texts, width), batch["weight"].reshape(-1)
        if "labels" in batch:
            error = jnp.sum(flat[:, 0] * flat[:, 1], -1) - batch["labels"].reshape(-1)
            return jnp.sum(error**2 * weight), jnp.sum(weight)
        others = jnp.concatenate([flat[:, g] for g in range(1, texts)])
        logits = flat[:, 0] @ others.T / self.temperature
        own = jnp.diagonal(logits)  # the positives come first
        real = jnp.tile(weight > 0, texts - 1)
        losses = jax.nn.logsumexp(jnp.where(real, logits, _NEVER), axis=-1) - own
        # Of an empty slot, against which nothing counts, whatever comes out must not be multiplied by 0.
        return jnp.sum(jnp.where(weight > 0, losses * weight, 0.0)), jnp.sum(weight)

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        return self.contrast(self.embed(outputs, batch), batch)

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return {"embeddings": self.embed(outputs, batch), "index": batch["index"]}

    def kept(
        self, targets: Numbers | Unlabelled, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """All of it."""
        return found

    def scores(
        self, predicted: Predicted, targets: Numbers | Unlabelled
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `similarity_metrics` and, of pairs without a score, `retrieval_metrics` over all texts of the
        split; with 'examples' (and 'candidates'). There are no details."""
        vectors = predicted["embeddings"]
        if not np.isfinite(vectors).all():
            broken = int((~np.isfinite(vectors).all((1, 2))).sum())
            raise FloatingPointError(f"the embeddings of {broken} rows are not finite")
        if isinstance(targets, Numbers):
            found = analysis.cosines(vectors[:, 0], vectors[:, 1])
            metrics = analysis.similarity_metrics(found, targets.values)
            return metrics | {"examples": len(targets)}, {}
        metrics = analysis.retrieval_metrics(*analysis.ranks(vectors, self.temperature))
        candidates = len(vectors) * (vectors.shape[1] - 1)
        return metrics | {"examples": len(targets), "candidates": candidates}, {}

    def rows(
        self, predicted: Predicted, targets: Numbers | Unlabelled, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One a row, with the similarity of its first two texts and how wrong that is."""
        vectors = predicted["embeddings"]
        similar = analysis.cosines(vectors[:, 0], vectors[:, 1]).tolist()
        rows: list[dict[str, Any]] = [
            {"index": int(row), "similarity": value, "text": text}
            for row, value, text in zip(targets.rows, similar, inputs, strict=True)
        ]
        if isinstance(targets, Numbers):
            for row, score in zip(rows, targets.values.tolist(), strict=True):
                row |= {"label": score, "error": row["similarity"] - score}
        return rows

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return []

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        return {"predicted_embedding": "numbers"}

    def is_output(self, row: Mapping[str, Any]) -> bool:
        return bool(row) and list(row)[-1].endswith("predicted_embedding")

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Embedded]:
        return map(Embedded, predicted["embeddings"][:, 0])

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        """None: there is no head."""
        return {}

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        heads = [str(name) for name in hf_config.get("architectures") or ()]
        bare = any(name.endswith("Model") and not name.endswith("HeadModel") for name in heads)
        return bare and not hf_config.get(CLASSIFIER)

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        return ()
