"""DistilBERT (Sanh et al., 2019, arXiv:1910.01108) with a head on packed rows.

BERT's encoder without token types; its sequence head has a hidden layer in place of the pooler.
Attributes are named as in HF's classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from jaxft.models import cuts, vocabulary
from jaxft.models.checkpoint import config_json
from jaxft.models.family import (
    Carry,
    Context,
    Family,
    Head,
    Kept,
    Outputs,
    TextLimits,
    depth_rules,
)
from jaxft.models.heads import Classifier, Spans, bare, every_token, first_token, question
from jaxft.models.layers import attention, modules, ops
from jaxft.models.layers.sight import Places, Sight

_EPSILON = 1e-12  # of all norms; HF's config has no field for it
_IGNORED = frozenset({"sinusoidal_pos_embds", "tie_weights_"})  # of how they are initialised
_RULES = {
    "dim": config_json.RULES["hidden_size"],
    "hidden_dim": config_json.RULES["intermediate_size"],
    "n_layers": config_json.RULES["num_hidden_layers"],
    "n_heads": config_json.RULES["num_attention_heads"],
    "activation": config_json.ACTIVATION,
    "dropout": config_json.RATE,
    "attention_dropout": config_json.RATE,
    "seq_classif_dropout": config_json.RATE,
    "qa_dropout": config_json.RATE,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's DistilBertConfig, with its defaults."""

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    qa_dropout: float = 0.1
    activation: str = "gelu"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        return config_json.fields(cls, raw, ignored=_IGNORED, rules=_RULES, check=_heads_fit)


def _heads_fit(config: Config) -> list[str]:
    if config.dim % config.n_heads:
        return [f"dim {config.dim} is not a multiple of n_heads {config.n_heads}"]
    return []


class Embeddings(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        std = config.initializer_range
        self.word_embeddings = modules.Embedding(config.vocab_size, config.dim, std=std, rngs=rngs)
        self.position_embeddings = modules.Embedding(
            config.max_position_embeddings, config.dim, std=std, rngs=rngs
        )
        self.LayerNorm = modules.LayerNorm(config.dim, epsilon=_EPSILON)
        self.rate = config.dropout

    def __call__(self, batch: Mapping[str, jax.Array], seed: ops.Seed) -> jax.Array:
        words = self.word_embeddings(batch["input_ids"])
        hidden = self.LayerNorm(words + self.position_embeddings(batch["positions"]))
        return ops.dropout(hidden, self.rate, seed)


class Attention(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, std = config.dim, config.initializer_range
        self.q_lin = modules.Linear(width, width, std=std, rngs=rngs)
        self.k_lin = modules.Linear(width, width, std=std, rngs=rngs)
        self.v_lin = modules.Linear(width, width, std=std, rngs=rngs)
        self.out_lin = modules.Linear(width, width, std=std, rngs=rngs)
        self.heads, self.rate = config.n_heads, config.attention_dropout

    def __call__(
        self, looking: jax.Array, tokens: jax.Array, sight: Sight, seed: ops.Seed
    ) -> jax.Array:
        """Tokens that look [R, K, D] and those that are looked at [R, L, D] -> [R, K, D]."""
        query, key, value = (
            x.reshape(*x.shape[:2], self.heads, -1)
            for x in (self.q_lin(looking), self.k_lin(tokens), self.v_lin(tokens))
        )
        attended = attention.among(query, key, value, sight, rate=self.rate, seed=seed)
        return self.out_lin(attended.reshape(looking.shape))


class FeedForward(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, wide, std = config.dim, config.hidden_dim, config.initializer_range
        self.lin1 = modules.Linear(width, wide, std=std, rngs=rngs)
        self.lin2 = modules.Linear(wide, width, std=std, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.lin2(ops.ACTIVATIONS[self.activation](self.lin1(x)))


class Block(nnx.Module):
    """Dropout is on the attention's weights and after the feed-forward layers: HF has no other."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.sa_layer_norm = modules.LayerNorm(config.dim, epsilon=_EPSILON)
        self.ffn = FeedForward(config, rngs=rngs)
        self.output_layer_norm = modules.LayerNorm(config.dim, epsilon=_EPSILON)
        self.rate = config.dropout

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        tokens, segment_ids = carry["hidden"], carry["segment_ids"]
        weights_seed, output_seed = ops.split(context.seed, 2)
        first, second = context.branches(2, segment_ids)
        hidden = ops.take(tokens, context.reads)
        sight = Sight(Places(segment_ids), context.reads)
        attended = self.attention(hidden, tokens, sight, weights_seed)
        hidden = self.sa_layer_norm(hidden + first(attended))
        update = ops.dropout(self.ffn(hidden), self.rate, output_seed)
        return {**carry, "hidden": self.output_layer_norm(hidden + second(update))}, {}


class Transformer(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layers)])


class DistilBert(nnx.Module):
    """The carry holds hidden [R, L, D] and the batch's segment_ids."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.transformer = Transformer(config, rngs=rngs)

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        return {"hidden": self.embeddings(batch, context.seed), "segment_ids": batch["segment_ids"]}

    @property
    def blocks(self) -> nnx.List:
        return self.transformer.layer

    def finish(self, hidden: jax.Array) -> jax.Array:
        return hidden


class SequenceClassifier(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        std = config.initializer_range
        self.pre_classifier = modules.Linear(config.dim, config.dim, std=std, rngs=rngs)
        self.classifier = modules.Linear(config.dim, num_labels, std=std, rngs=rngs)
        self.rate = config.seq_classif_dropout

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, K, D] of each example's first token -> logits [R, K, C]."""
        pooled = ops.dropout(jax.nn.relu(self.pre_classifier(hidden)), self.rate, seed)
        return {"logits": self.classifier(pooled)}


def _token_classifier(config: Config, num_labels: int, rngs: nnx.Rngs) -> Classifier:
    std = config.initializer_range
    return Classifier(config.dim, num_labels, rate=config.dropout, std=std, rngs=rngs)


class MaskedHead(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        width, std, tied = config.dim, config.initializer_range, config.tie_word_embeddings
        self.vocab_transform = modules.Linear(width, width, std=std, rngs=rngs)
        self.vocab_layer_norm = modules.LayerNorm(width, epsilon=_EPSILON)
        self.vocab_projector = vocabulary.Unembedding(
            config.vocab_size, width, tied=tied, use_bias=True, std=std, rngs=rngs
        )
        self.activation = config.activation

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        features = ops.ACTIVATIONS[self.activation](self.vocab_transform(hidden))
        return self.vocab_projector(self.vocab_layer_norm(features), table)


def _spans(config: Config, num_labels: int, rngs: nnx.Rngs) -> Spans:
    return Spans(config.dim, rate=config.qa_dropout, std=config.initializer_range, rngs=rngs)


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"distilbert/transformer/layer/{n}/.*" for n in range(config.n_layers))
    return depth_rules(
        r"distilbert/embeddings/.*", blocks, r"((pre_)?classifier|qa_outputs|vocab_.*)/.*"
    )


def _tensor_rules(config: Config) -> cuts.Rules:
    return (
        *cuts.columns(r".*/layer/\d+/attention/[qkv]_lin", config.n_heads),
        *cuts.rows(r".*/layer/\d+/attention/out_lin", config.n_heads),
        *cuts.columns(r".*/layer/\d+/ffn/lin1"),
        *cuts.rows(r".*/layer/\d+/ffn/lin2"),
        *cuts.table(r".*embeddings/word_embeddings|vocab_projector"),
    )


_TABLE = "distilbert/embeddings/word_embeddings/embedding"
FAMILY = Family(
    model_type="distilbert",
    config=Config,
    dropouts=("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"),
    limits=lambda config: TextLimits(
        config.vocab_size, config.max_position_embeddings, pairs=True, cut=True
    ),
    base="distilbert",
    backbone=lambda config, kind, rngs: DistilBert(config, rngs=rngs),
    heads={
        "sequence": Head("DistilBertForSequenceClassification", SequenceClassifier, first_token),
        "token": Head(
            "DistilBertForTokenClassification",
            _token_classifier,
            every_token,
            unused=(r"pre_classifier\..*",),
        ),
        "question": question("DistilBertForQuestionAnswering", r"(pre_)?classifier\..*", _spans),
        "choice": Head("DistilBertForMultipleChoice", SequenceClassifier, first_token),
        **bare("DistilBertModel", r"(pre_)?classifier\..*"),
        "masked": Head(
            "DistilBertForMaskedLM",
            MaskedHead,
            every_token,
            classifier="",
            unused=(r"(pre_)?classifier\..*",),
            table=_TABLE,
            ties=vocabulary.tied(_TABLE, "vocab_projector.weight"),
        ),
    },
    depth_rules=_depth_rules,
    tensor_rules=_tensor_rules,
    # The heads of DistilBertForMaskedLM and for questions; a buffer that old versions saved.
    other_heads=(
        r"vocab_(transform|layer_norm|projector)\..*",
        r"qa_outputs\..*",
        r"(distilbert\.)?embeddings\.position_ids",
    ),
    aliases=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
)
