"""The encoder that BERT, RoBERTa and ELECTRA share: a norm after each residual sum, learned positions.

Attributes are named as in HF's BertEmbeddings and BertEncoder.
"""

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.family import Carry, Context, Kept
from jaxft.models.layers import modules, ops
from jaxft.models.layers.sight import Places, Sight
from jaxft.models.layers.stochastic_depth import Branch


class Config(Protocol):
    """The fields of a family's config that the encoder reads."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def hidden_dropout_prob(self) -> float: ...
    @property
    def attention_probs_dropout_prob(self) -> float: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def type_vocab_size(self) -> int: ...
    @property
    def initializer_range(self) -> float: ...
    @property
    def layer_norm_eps(self) -> float: ...


class Embeddings(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs, width: int | None = None):
        """`width`: of the embeddings, where it is not the encoder's."""
        width, std = width or config.hidden_size, config.initializer_range
        self.word_embeddings = modules.Embedding(config.vocab_size, width, std=std, rngs=rngs)
        self.position_embeddings = modules.Embedding(
            config.max_position_embeddings, width, std=std, rngs=rngs
        )
        self.token_type_embeddings = modules.Embedding(
            config.type_vocab_size, width, std=std, rngs=rngs
        )
        self.LayerNorm = modules.LayerNorm(width, epsilon=config.layer_norm_eps)
        self.rate = config.hidden_dropout_prob

    def __call__(self, batch: Mapping[str, jax.Array], seed: ops.Seed) -> jax.Array:
        hidden = (
            self.word_embeddings(batch["input_ids"])
            + self.token_type_embeddings(batch["token_type_ids"])
            + self.position_embeddings(batch["positions"])
        )
        return ops.dropout(self.LayerNorm(hidden), self.rate, seed)


class ResidualOutput(nnx.Module):
    """LayerNorm(residual + branch(dropout(dense(x)))): HF's BertSelfOutput and BertOutput alike."""

    def __init__(self, inputs: int, config: Config, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.dense = modules.Linear(inputs, width, std=config.initializer_range, rngs=rngs)
        self.LayerNorm = modules.LayerNorm(width, epsilon=config.layer_norm_eps)
        self.rate = config.hidden_dropout_prob

    def __call__(
        self, x: jax.Array, residual: jax.Array, seed: ops.Seed, branch: Branch
    ) -> jax.Array:
        update = ops.dropout(self.dense(x), self.rate, seed)
        return self.LayerNorm(residual + branch(update))


class Attention(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.self = modules.SelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            rate=config.attention_probs_dropout_prob,
            std=config.initializer_range,
            rngs=rngs,
        )
        self.output = ResidualOutput(config.hidden_size, config, rngs=rngs)


class Intermediate(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.dense = modules.Linear(
            config.hidden_size, config.intermediate_size, std=config.initializer_range, rngs=rngs
        )
        self.activation = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.ACTIVATIONS[self.activation](self.dense(x))


class Block(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.intermediate = Intermediate(config, rngs=rngs)
        self.output = ResidualOutput(config.intermediate_size, config, rngs=rngs)

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        tokens, segment_ids = carry["hidden"], carry["segment_ids"]
        weights_seed, attention_seed, output_seed = ops.split(context.seed, 3)
        first, second = context.branches(2, segment_ids)
        hidden = ops.take(tokens, context.reads)
        sight = Sight(Places(segment_ids), context.reads)
        attended = self.attention.self(hidden, tokens, sight, weights_seed)
        hidden = self.attention.output(attended, hidden, attention_seed, first)
        hidden = self.output(self.intermediate(hidden), hidden, output_seed, second)
        return {**carry, "hidden": hidden}, {}


class Pooler(nnx.Module):
    """A layer on the first token of each example."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.dense = modules.Linear(width, width, std=config.initializer_range, rngs=rngs)

    def __call__(self, first: jax.Array) -> jax.Array:
        return jnp.tanh(self.dense(first))


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
