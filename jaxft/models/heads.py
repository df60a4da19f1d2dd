"""What the heads of several families share: which tokens they read, and the plain classifier."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.base.nearest import nearest
from jaxft.models.family import Batch, Family, Head, Outputs, Stored
from jaxft.models.layers import ops
from jaxft.models.layers.modules import Linear


def first_token(config: Any, batch: Batch) -> jax.Array:
    """[R, K]: where each example of a text row starts. [B, 1] zeros for images: the class token."""
    if "starts" in batch:
        return batch["starts"]
    return jnp.zeros((len(batch["pixel_values"]), 1), jnp.int32)


def last_token(config: Any, batch: Batch) -> jax.Array:
    """[R, K]: the last token of each example of a text row that is not `config.pad_token_id`.

    So HF's classes for causal models choose it, also where an example ends in such tokens of its own;
    of an example that has no others it is the first. None: no token is left out.
    """
    ids, segments, starts = batch["input_ids"], batch["segment_ids"], batch["starts"]
    columns = jnp.arange(ids.shape[1], dtype=starts.dtype)
    own = segments[:, None, :] == 1 + jnp.arange(starts.shape[1])[:, None]  # [R, K, L]
    if config.pad_token_id is not None:
        own &= (ids != config.pad_token_id)[:, None, :]
    return jnp.where(own, columns, starts[:, :, None]).max(-1)


def mean_of_tokens(batch: Batch) -> jax.Array:
    """Weights [R, K, L] fp32 of the tokens of each example of a text row in their mean; 0 of others."""
    segments, slots = batch["segment_ids"], batch["starts"].shape[1]
    own = segments[:, None, :] == 1 + jnp.arange(slots, dtype=segments.dtype)[None, :, None]
    return own / jnp.maximum(own.sum(-1, keepdims=True), 1).astype(jnp.float32)


def every_token(config: Any, batch: Batch) -> None:
    """None: the head has an output for each token of a row."""


# Path of a classifier of sentences, and its name in files; no class of transformers has it.
SENTENCE = "sentence_classifier"


class NoHeadError(ValueError):
    """A model has no head of the kind that is asked for.

    Attributes:
        what: the message without the kinds that there are.
        has: these.
    """

    def __init__(self, what: str, kind: str, has: Collection[str]):
        super().__init__(f"{what}; it has {', '.join(has) or 'none'}{nearest(kind, has)}")
        self.what, self.has = what, tuple(has)


class Classifier(nnx.Module):
    """Dropout and one linear map, `classifier`."""

    def __init__(self, width: int, num_labels: int, *, rate: float, std: float, rngs: nnx.Rngs):
        self.classifier = Linear(width, num_labels, std=std, rngs=rngs)
        self.rate = rate

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, K, D] -> logits [B, K, C]."""
        return {"logits": self.classifier(ops.dropout(hidden, self.rate, seed))}


class Spans(nnx.Module):
    """Dropout and one linear map, `qa_outputs`: where the answer to a question begins and ends."""

    def __init__(self, width: int, *, rate: float = 0.0, std: float, rngs: nnx.Rngs):
        self.qa_outputs = Linear(width, 2, std=std, rngs=rngs)
        self.rate = rate

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, L, D] -> logits [R, L, 2]: of each token to be the first and to be the last."""
        return {"logits": self.qa_outputs(ops.dropout(hidden, self.rate, seed))}


def spans(config: Any, num_labels: int, rngs: nnx.Rngs) -> Spans:
    """Without dropout. Of a config it reads `hidden_size` and `initializer_range`."""
    return Spans(config.hidden_size, std=config.initializer_range, rngs=rngs)


def question(
    architecture: str, unused: str, module: Callable[[Any, int, nnx.Rngs], Spans] = spans
) -> Head[Any]:
    """The head of HF's class for questions.

    Args:
        unused: pattern of tensors of other heads.
    """
    return Head(architecture, module, every_token, classifier="qa_outputs", unused=(unused,))


class Plain(nnx.Module):
    """No parameters: the tokens as the backbone leaves them."""

    def __init__(self, config: Any, num_labels: int, rngs: nnx.Rngs):
        pass

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, L, D] -> 'tokens', the same."""
        return {"tokens": hidden}


class Fitted(nnx.Variable):
    """What is no parameter: it is fitted to what the model says of the training rows, and never trained."""


class SentenceClassifier(nnx.Module):
    """One linear map, `sentence_classifier`, of the vector of a text; how texts are pooled is the task's."""

    def __init__(self, width: int, num_labels: int):
        self.sentence_classifier = nnx.data(
            {
                "kernel": Fitted(jnp.zeros((width, num_labels))),
                "bias": Fitted(jnp.zeros(num_labels)),
            }
        )

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, L, D] -> 'tokens', the same, and what logits are made of: 'kernel' [D, C] and 'bias' [C]."""
        given = self.sentence_classifier
        return {"tokens": hidden, "kernel": given["kernel"][...], "bias": given["bias"][...]}


def bare(architecture: str, unused: str) -> dict[str, Head[Any]]:
    """The heads of HF's class without one: 'embedding', the tokens as they are, and 'sentence', which has a
    classifier of sentences beside them, for which HF has no class.

    Of a config the latter reads `hidden_size` or, as DistilBERT's, `dim`.

    Args:
        unused: pattern of tensors of heads, and of a pooler that reads the first token.
    """

    def classifier(config: Any, num_labels: int, rngs: nnx.Rngs) -> SentenceClassifier:
        width = config.dim if hasattr(config, "dim") else config.hidden_size
        return SentenceClassifier(width, num_labels)

    return {
        "embedding": Head(architecture, Plain, every_token, classifier="", unused=(unused,)),
        "sentence": Head(
            architecture, classifier, every_token, classifier=SENTENCE, unused=(unused,)
        ),
    }


class ImageClassifier(nnx.Module):
    """One linear map, `classifier`, without dropout, as HF's image classifiers have it.

    Of a config it reads `hidden_size` and `initializer_range`.
    """

    def __init__(self, config: Any, num_labels: int, rngs: nnx.Rngs):
        std = config.initializer_range
        self.classifier = Linear(config.hidden_size, num_labels, std=std, rngs=rngs)

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, 1, D] -> logits [B, C]."""
        return {"logits": self.classifier(hidden[:, 0])}


class TwoLayers(nnx.Module):
    """A dense layer with an activation, and the linear map to labels; dropout before each."""

    def __init__(
        self,
        width: int,
        num_labels: int,
        *,
        rate: float,
        std: float,
        activation: str,
        rngs: nnx.Rngs,
    ):
        self.dense = Linear(width, width, std=std, rngs=rngs)
        self.out_proj = Linear(width, num_labels, std=std, rngs=rngs)
        self.rate, self.activation = rate, activation

    def __call__(self, x: jax.Array, seed: ops.Seed) -> jax.Array:
        dense_seed, out_seed = ops.split(seed, 2)
        hidden = self.dense(ops.dropout(x, self.rate, dense_seed))
        hidden = ops.ACTIVATIONS[self.activation](hidden)
        return self.out_proj(ops.dropout(hidden, self.rate, out_seed))


class TwoLayerClassifier(nnx.Module):
    """`classifier`, of two layers."""

    def __init__(
        self,
        width: int,
        num_labels: int,
        *,
        rate: float,
        std: float,
        activation: str,
        rngs: nnx.Rngs,
    ):
        self.classifier = TwoLayers(
            width, num_labels, rate=rate, std=std, activation=activation, rngs=rngs
        )

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, K, D] -> logits [B, K, C]."""
        return {"logits": self.classifier(hidden, seed)}


def choose(kinds: Collection[str], kind: str | None, model_type: str) -> str:
    """The kind of head that is asked for; None is the first, a family's classification head.

    Raises:
        NoHeadError: the family has no head of that kind.
    """
    if kind is None:
        return next(iter(kinds))
    if kind not in kinds:
        what = f"a head of kind {kind!r} is not implemented for model_type {model_type!r}"
        raise NoHeadError(what, kind, kinds)
    return kind


def stored(
    family: Family[Any], kind: str, config: Any, leaves: dict[str, Any]
) -> dict[str, Stored]:
    """How each leaf lies in a checkpoint of the model with this head."""
    ties = family.heads[kind].ties(config)
    return {
        path: dataclasses.replace(
            family.stored(path, leaf.ndim, config), ties=tuple(ties.get(path, ()))
        )
        for path, leaf in leaves.items()
    }
