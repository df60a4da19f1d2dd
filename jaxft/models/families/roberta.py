"""RoBERTa (Liu et al., 2019, arXiv:1907.11692), XLM-RoBERTa and CamemBERT, on packed rows.

BERT's encoder, but positions count from `pad_token_id` + 1, and pairs of texts are told apart by
the tokens between them, `<s> a </s></s> b </s>`. Attributes are named as in HF's classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models import cuts, vocabulary
from jaxft.models.checkpoint import config_json
from jaxft.models.family import Carry, Context, Family, Head, Outputs, TextLimits, depth_rules
from jaxft.models.heads import (
    Classifier,
    TwoLayerClassifier,
    bare,
    every_token,
    first_token,
    question,
)
from jaxft.models.layers import encoder, modules, ops


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's RobertaConfig, with its defaults."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    max_position_embeddings: int = 512  # rows of the table, the first of which no token has
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 1
    tie_word_embeddings: bool = True

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        only = {"position_embedding_type": "absolute"}
        rules = {"pad_token_id": config_json.whole(10**7, least=0)}
        return config_json.fields(cls, raw, only=only, rules=rules, check=_sizes_fit)

    @property
    def first_position(self) -> int:
        """The row of the position table that an example's first token has."""
        return self.pad_token_id + 1


@dataclasses.dataclass(frozen=True)
class LaterConfig(Config):
    """XLM-RoBERTa's and CamemBERT's, whose classes in HF have another default."""

    vocab_size: int = 30522


def _sizes_fit(config: Config) -> list[str]:
    wrong = config_json.heads_fit(config)
    if config.first_position >= config.max_position_embeddings:
        wrong.append(
            f"max_position_embeddings {config.max_position_embeddings} leaves no position after "
            f"pad_token_id {config.pad_token_id}"
        )
    return wrong


class Roberta(nnx.Module):
    """The carry holds hidden [R, L, D] and the batch's segment_ids."""

    def __init__(self, config: Config, *, pooler: bool, rngs: nnx.Rngs):
        self.embeddings = encoder.Embeddings(config, rngs=rngs)
        self.encoder = encoder.Encoder(config, rngs=rngs)
        self.pooler = encoder.Pooler(config, rngs=rngs) if pooler else None
        self.first_position = config.first_position

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        shifted = {**batch, "positions": batch["positions"] + self.first_position}
        return {
            "hidden": self.embeddings(shifted, context.seed),
            "segment_ids": batch["segment_ids"],
        }

    @property
    def blocks(self) -> nnx.List:
        return self.encoder.layer

    def finish(self, hidden: jax.Array) -> jax.Array:
        return hidden if self.pooler is None else self.pooler(hidden)


def _sequence_classifier(config: Config, num_labels: int, rngs: nnx.Rngs) -> TwoLayerClassifier:
    width, std = config.hidden_size, config.initializer_range
    return TwoLayerClassifier(
        width, num_labels, rate=_head_rate(config), std=std, activation="tanh", rngs=rngs
    )


def _head_rate(config: Config) -> float:
    given = config.classifier_dropout
    return config.hidden_dropout_prob if given is None else given


def _token_classifier(config: Config, num_labels: int, rngs: nnx.Rngs) -> Classifier:
    width, std = config.hidden_size, config.initializer_range
    return Classifier(width, num_labels, rate=_head_rate(config), std=std, rngs=rngs)


class Predictions(nnx.Module):
    """As BERT's, but the activation is always GELU, and `bias` as in `vocabulary.Predictions`."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width, std, tied = config.hidden_size, config.initializer_range, config.tie_word_embeddings
        self.dense = modules.Linear(width, width, std=std, rngs=rngs)
        self.layer_norm = modules.LayerNorm(width, epsilon=config.layer_norm_eps)
        self.decoder = vocabulary.Unembedding(
            config.vocab_size, width, tied=tied, use_bias=not tied, std=std, rngs=rngs
        )
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))

    def __call__(self, hidden: jax.Array, table: jax.Array) -> Outputs:
        features = self.layer_norm(ops.gelu(self.dense(hidden)))
        return vocabulary.with_bias(self.decoder(features, table), self.bias[...])


class MaskedHead(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        self.lm_head = Predictions(config, rngs)

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        return self.lm_head(hidden, table)


def _choice(config: Config, num_labels: int, rngs: nnx.Rngs) -> Classifier:
    width, rate = config.hidden_size, config.hidden_dropout_prob
    return Classifier(width, num_labels, rate=rate, std=config.initializer_range, rngs=rngs)


def _limits(config: Config) -> TextLimits:
    positions = config.max_position_embeddings - config.first_position
    return TextLimits(config.vocab_size, positions, pairs=True, cut=True)


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"roberta/encoder/layer/{n}/.*" for n in range(config.num_hidden_layers))
    head = r"(roberta/pooler|classifier|qa_outputs|lm_head)/.*"
    return depth_rules(r"roberta/embeddings/.*", blocks, head)


_TABLE = "roberta/embeddings/word_embeddings/embedding"


def _family(model_type: str, classes: str, config: type[Config]) -> Family[Config]:
    """The network under another name; HF's classes begin with `classes`."""
    return Family(
        model_type=model_type,
        config=config,
        dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
        limits=_limits,
        base="roberta",
        # Of HF's classes only the one for choices has BERT's pooler.
        backbone=lambda config, kind, rngs: Roberta(config, pooler=kind == "choice", rngs=rngs),
        heads={
            "sequence": Head(
                f"{classes}ForSequenceClassification",
                _sequence_classifier,
                first_token,
                classifier="classifier/out_proj",
                unused=(r"classifier\.(weight|bias)",),
            ),
            "token": Head(
                f"{classes}ForTokenClassification",
                _token_classifier,
                every_token,
                unused=(r"classifier\.(dense|out_proj)\..*",),
            ),
            "question": question(f"{classes}ForQuestionAnswering", r"classifier\..*"),
            "choice": Head(
                f"{classes}ForMultipleChoice",
                _choice,
                first_token,
                unused=(r"classifier\.(dense|out_proj)\..*",),
            ),
            **bare(f"{classes}Model", r"classifier\..*"),
            "masked": Head(
                f"{classes}ForMaskedLM",
                MaskedHead,
                every_token,
                classifier="",
                unused=(r"classifier\..*",),
                table=_TABLE,
                ties=vocabulary.tied(
                    _TABLE, "lm_head.decoder.weight", "lm_head/bias", "lm_head.decoder.bias"
                ),
            ),
        },
        depth_rules=_depth_rules,
        tensor_rules=lambda config: cuts.encoder(config.num_attention_heads),
        # RobertaModel's pooler, where no head stands on it; a buffer that old versions saved.
        other_heads=(
            r"lm_head\..*",
            r"qa_outputs\..*",
            r"(roberta\.)?pooler\..*",
            r"(roberta\.)?embeddings\.position_ids",
        ),
    )


FAMILY = _family("roberta", "Roberta", Config)
# Conneau et al., 2020, arXiv:1911.02116, and Martin et al., 2020, arXiv:1911.03894: RoBERTa on other
# texts, with SentencePiece tokenizers.
XLM_ROBERTA = _family("xlm-roberta", "XLMRoberta", LaterConfig)
CAMEMBERT = _family("camembert", "Camembert", LaterConfig)
