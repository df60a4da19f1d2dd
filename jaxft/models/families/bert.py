"""BERT (Devlin et al., 2019, arXiv:1810.04805) with a head on packed rows.

MiniLM, BGE, E5 and GTE checkpoints of `model_type: bert` are the same network. Attributes are named
as in HF's classes, so that parameter paths are checkpoint names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from jaxft.models import cuts, vocabulary
from jaxft.models.checkpoint import config_json
from jaxft.models.family import Carry, Context, Family, Head, TextLimits, depth_rules
from jaxft.models.heads import Classifier, bare, every_token, first_token, question
from jaxft.models.layers import encoder

# Read by Google's original multilingual and Chinese configs, by no code of HF's BERT.
_IGNORED = frozenset(
    "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
    "pooler_size_per_head pooler_type".split()
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's BertConfig, with its defaults."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
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
        check = config_json.heads_fit
        return config_json.fields(cls, raw, ignored=_IGNORED, only=only, check=check)


class Bert(nnx.Module):
    """The carry holds hidden [R, L, D] and the batch's segment_ids."""

    def __init__(self, config: Config, *, pooler: bool, rngs: nnx.Rngs):
        self.embeddings = encoder.Embeddings(config, rngs=rngs)
        self.encoder = encoder.Encoder(config, rngs=rngs)
        self.pooler = encoder.Pooler(config, rngs=rngs) if pooler else None

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        return {"hidden": self.embeddings(batch, context.seed), "segment_ids": batch["segment_ids"]}

    @property
    def blocks(self) -> nnx.List:
        return self.encoder.layer

    def finish(self, hidden: jax.Array) -> jax.Array:
        return hidden if self.pooler is None else self.pooler(hidden)


def _backbone(config: Config, kind: str, rngs: nnx.Rngs) -> Bert:
    # HF's classes for tokens have no pooler.
    return Bert(config, pooler=kind in ("sequence", "choice"), rngs=rngs)


def _classifier(config: Config, num_labels: int, rngs: nnx.Rngs) -> Classifier:
    given, width = config.classifier_dropout, config.hidden_size
    rate = config.hidden_dropout_prob if given is None else given
    return Classifier(width, num_labels, rate=rate, std=config.initializer_range, rngs=rngs)


def _limits(config: Config) -> TextLimits:
    pairs = config.type_vocab_size > 1
    return TextLimits(config.vocab_size, config.max_position_embeddings, pairs, cut=True)


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"bert/encoder/layer/{n}/.*" for n in range(config.num_hidden_layers))
    return depth_rules(r"bert/embeddings/.*", blocks, r"(bert/pooler|classifier|qa_outputs|cls)/.*")


_TABLE = "bert/embeddings/word_embeddings/embedding"
FAMILY = Family(
    model_type="bert",
    config=Config,
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    limits=_limits,
    base="bert",
    backbone=_backbone,
    heads={
        "sequence": Head("BertForSequenceClassification", _classifier, first_token),
        "token": Head(
            "BertForTokenClassification", _classifier, every_token, unused=(r"(bert\.)?pooler\..*",)
        ),
        "question": question("BertForQuestionAnswering", r"((bert\.)?pooler|classifier)\..*"),
        "choice": Head("BertForMultipleChoice", _classifier, first_token),
        **bare("BertModel", r"((bert\.)?pooler|classifier)\..*"),
        "masked": Head(
            "BertForMaskedLM",
            vocabulary.MaskedHead,
            every_token,
            classifier="",
            unused=(r"((bert\.)?pooler|classifier)\..*",),
            table=_TABLE,
            ties=vocabulary.tied(_TABLE, *vocabulary.DECODER),
        ),
    },
    depth_rules=_depth_rules,
    tensor_rules=lambda config: cuts.encoder(config.num_attention_heads),
    # A buffer that old versions saved.
    other_heads=(r"cls\..*", r"qa_outputs\..*", r"(bert\.)?embeddings\.position_ids"),
    aliases=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
)
