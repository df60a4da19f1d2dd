"""ELECTRA's discriminator (Clark et al., 2020, arXiv:2003.10555) with a head for sequences or tokens.

BERT's encoder on packed rows, over embeddings that may be narrower than it; no pooler, but a hidden layer
in the sequence head. Attributes are named as in HF's classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
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

# Of HF's heads for multiple choice.
_IGNORED = frozenset(
    "summary_type summary_use_proj summary_activation summary_last_dropout".split()
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's ElectraConfig, with its defaults."""

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        only = {"position_embedding_type": "absolute"}
        rules = {"embedding_size": config_json.RULES["hidden_size"]}
        check = config_json.heads_fit
        return config_json.fields(cls, raw, ignored=_IGNORED, only=only, rules=rules, check=check)

    @property
    def head_dropout(self) -> float:
        given = self.classifier_dropout
        return self.hidden_dropout_prob if given is None else given


class Electra(nnx.Module):
    """The carry holds hidden [R, L, D] and the batch's segment_ids."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        narrow, width = config.embedding_size, config.hidden_size
        self.embeddings = encoder.Embeddings(config, width=narrow, rngs=rngs)
        self.embeddings_project = (
            None
            if narrow == width
            else modules.Linear(narrow, width, std=config.initializer_range, rngs=rngs)
        )
        self.encoder = encoder.Encoder(config, rngs=rngs)

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        hidden = self.embeddings(batch, context.seed)
        if self.embeddings_project is not None:
            hidden = self.embeddings_project(hidden)
        return {"hidden": hidden, "segment_ids": batch["segment_ids"]}

    @property
    def blocks(self) -> nnx.List:
        return self.encoder.layer

    def finish(self, hidden: jax.Array) -> jax.Array:
        return hidden


def _sequence_classifier(config: Config, num_labels: int, rngs: nnx.Rngs) -> TwoLayerClassifier:
    width, std = config.hidden_size, config.initializer_range
    return TwoLayerClassifier(
        width, num_labels, rate=config.head_dropout, std=std, activation="gelu", rngs=rngs
    )


def _token_classifier(config: Config, num_labels: int, rngs: nnx.Rngs) -> Classifier:
    width, std = config.hidden_size, config.initializer_range
    return Classifier(width, num_labels, rate=config.head_dropout, std=std, rngs=rngs)


class MaskedHead(nnx.Module):
    """The generator's, as wide as the embeddings."""

    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        narrow, std = config.embedding_size, config.initializer_range
        self.generator_predictions = vocabulary.Transform(
            config.hidden_size,
            narrow,
            activation="gelu",
            epsilon=config.layer_norm_eps,
            std=std,
            rngs=rngs,
        )
        self.generator_lm_head = vocabulary.Unembedding(
            config.vocab_size,
            narrow,
            tied=config.tie_word_embeddings,
            use_bias=True,
            std=std,
            rngs=rngs,
        )

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        return self.generator_lm_head(self.generator_predictions(hidden), table)


def _limits(config: Config) -> TextLimits:
    pairs = config.type_vocab_size > 1
    return TextLimits(config.vocab_size, config.max_position_embeddings, pairs, cut=True)


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"electra/encoder/layer/{n}/.*" for n in range(config.num_hidden_layers))
    return depth_rules(
        r"electra/embeddings(_project)?/.*", blocks, r"(classifier|qa_outputs|generator_.*)/.*"
    )


_TABLE = "electra/embeddings/word_embeddings/embedding"
FAMILY = Family(
    model_type="electra",
    config=Config,
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    limits=_limits,
    base="electra",
    backbone=lambda config, kind, rngs: Electra(config, rngs=rngs),
    heads={
        "sequence": Head(
            "ElectraForSequenceClassification",
            _sequence_classifier,
            first_token,
            classifier="classifier/out_proj",
            unused=(r"classifier\.(weight|bias)",),
        ),
        "token": Head(
            "ElectraForTokenClassification",
            _token_classifier,
            every_token,
            unused=(r"classifier\.(dense|out_proj)\..*",),
        ),
        "question": question("ElectraForQuestionAnswering", r"classifier\..*"),
        **bare("ElectraModel", r"classifier\..*"),
        "masked": Head(
            "ElectraForMaskedLM",
            MaskedHead,
            every_token,
            classifier="",
            unused=(r"classifier\..*",),
            table=_TABLE,
            ties=vocabulary.tied(_TABLE, "generator_lm_head.weight"),
        ),
    },
    depth_rules=_depth_rules,
    tensor_rules=lambda config: cuts.encoder(config.num_attention_heads),
    # The heads of ElectraForPreTraining, of the generator and for questions; a buffer of old versions.
    other_heads=(
        r"discriminator_predictions\..*",
        r"generator_(predictions|lm_head)\..*",
        r"qa_outputs\..*",
        r"(electra\.)?embeddings\.position_ids",
    ),
)
