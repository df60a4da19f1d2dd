"""What heads that predict tokens share: the unembedding, which may be the table of input embeddings.

Such a head gives no logits [N, V], which would be the largest array of a step, but what they are made of.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.family import Outputs
from jaxft.models.layers import modules, ops


def outputs(
    features: jax.Array, unembedding: jax.Array, bias: jax.Array | None, cap: float | None = None
) -> Outputs:
    """What a head that predicts tokens gives.

    Returns:
        'features': [R, L, D] fp32, one for each token of a row;
        'unembedding': [V, D], tied to the input embeddings or not;
        'bias': [V], where there is one;
        'cap': a float, where logits x become cap * tanh(x / cap).
    """
    found: Outputs = {"features": features, "unembedding": unembedding}
    if bias is not None:
        found["bias"] = bias
    if cap is not None:
        found["cap"] = cap
    return found


def logits(found: Outputs) -> jax.Array:
    """[R, L, V] fp32, from `outputs`: for few tokens at a time."""
    given = jnp.einsum("...d,vd->...v", found["features"], found["unembedding"])
    given = given.astype(jnp.float32)
    if "bias" in found:
        given = given + found["bias"]
    return found["cap"] * jnp.tanh(given / found["cap"]) if "cap" in found else given


class Unembedding(nnx.Module):
    """The linear layer to the vocabulary, its weights [V, D] as HF has them.

    Args:
        tied: the table of input embeddings is its weights, so it has none of its own.
    """

    def __init__(
        self, rows: int, width: int, *, tied: bool, use_bias: bool, std: float, rngs: nnx.Rngs
    ):
        own = None if tied else nnx.Param(std * jax.random.normal(rngs.params(), (rows, width)))
        self.embedding = own
        self.bias = nnx.Param(jnp.zeros(rows)) if use_bias else None

    def __call__(self, features: jax.Array, table: jax.Array, cap: float | None = None) -> Outputs:
        """Features [R, L, D] and the input embeddings [V, D] -> `outputs`."""
        weights = table if self.embedding is None else self.embedding[...]
        return outputs(features, weights, None if self.bias is None else self.bias[...], cap)


class LMHead(nnx.Module):
    """`lm_head`, without a bias: of all decoders here.

    Of a config it reads `vocab_size`, `hidden_size`, `initializer_range`, `tie_word_embeddings` and,
    where it has it, `final_logit_softcapping`.
    """

    def __init__(self, config: Any, num_labels: int, rngs: nnx.Rngs):
        self.lm_head = Unembedding(
            config.vocab_size,
            config.hidden_size,
            tied=config.tie_word_embeddings,
            use_bias=False,
            std=config.initializer_range,
            rngs=rngs,
        )
        self.cap = getattr(config, "final_logit_softcapping", None)

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        return self.lm_head(hidden, table, self.cap)


class Transform(nnx.Module):
    """A dense layer, an activation and a norm, before the unembedding."""

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        activation: str,
        epsilon: float,
        std: float,
        rngs: nnx.Rngs,
    ):
        self.dense = modules.Linear(inputs, width, std=std, rngs=rngs)
        self.LayerNorm = modules.LayerNorm(width, epsilon=epsilon)
        self.activation = activation

    def __call__(self, hidden: jax.Array) -> jax.Array:
        return self.LayerNorm(ops.ACTIVATIONS[self.activation](self.dense(hidden)))


class Predictions(nnx.Module):
    """`transform`, and `decoder` with a bias. A tied decoder has neither weights nor bias of its own.

    HF's class has `bias` also where the decoder is not tied, and does not use it then: it is kept, so
    that an export has all that was read, and has no gradient.
    """

    def __init__(self, config: Any, rngs: nnx.Rngs):
        width, std, tied = config.hidden_size, config.initializer_range, config.tie_word_embeddings
        self.transform = Transform(
            width,
            width,
            activation=config.hidden_act,
            epsilon=config.layer_norm_eps,
            std=std,
            rngs=rngs,
        )
        self.decoder = Unembedding(
            config.vocab_size, width, tied=tied, use_bias=not tied, std=std, rngs=rngs
        )
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))

    def __call__(self, hidden: jax.Array, table: jax.Array) -> Outputs:
        return with_bias(self.decoder(self.transform(hidden), table), self.bias[...])


def with_bias(found: Outputs, bias: jax.Array) -> Outputs:
    """`outputs` with this bias, where they have none."""
    return {"bias": bias, **found}


class MaskedHead(nnx.Module):
    """`cls.predictions`, of BERT and DeBERTa."""

    def __init__(self, config: Any, num_labels: int, rngs: nnx.Rngs):
        self.cls = _Only(config, rngs)

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        return self.cls.predictions(hidden, table)


class _Only(nnx.Module):
    def __init__(self, config: Any, rngs: nnx.Rngs):
        self.predictions = Predictions(config, rngs)


# Of `tied`, where the decoder is `Predictions`'.
DECODER = ("cls.predictions.decoder.weight", "cls/predictions/bias", "cls.predictions.decoder.bias")


def tied(table: str, weights: str, *bias: str) -> Callable[[Any], Mapping[str, tuple[str, ...]]]:
    """`Head.ties` where config.json ties them: the names of the table as the decoder's weights, and of
    a bias, by its path, as the decoder's."""
    names = {table: (weights,)}
    if bias:
        path, name = bias
        names[path] = (name,)
    return lambda config: names if config.tie_word_embeddings else {}
