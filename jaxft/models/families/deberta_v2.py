"""DeBERTa-v2 and v3 (He et al., 2021, arXiv:2006.03654 and 2111.09543) with a head for sequences or tokens.

An encoder like BERT's on packed rows, whose attention also weighs how far two tokens are apart: content to
position ("c2p") and position to content ("p2c"), distances in buckets that widen with them. The table of
relative positions belongs to the stem. Attributes are named as in HF's classes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
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
from jaxft.models.heads import Classifier, bare, every_token, first_token, question
from jaxft.models.layers import disentangled, encoder, modules, ops

_WAYS = ("c2p", "p2c")
_FLAG = config_json.Rule(lambda x: isinstance(x, bool), "true or false")
_SPAN = config_json.Rule(
    lambda x: isinstance(x, int) and not isinstance(x, bool) and -1 <= x <= config_json.SIZE,
    f"a whole number from -1 to {config_json.SIZE:,}",
)
_RULES = {
    "max_position_embeddings": config_json.whole(config_json.SIZE),
    "type_vocab_size": config_json.whole(10**6, least=0),
    "relative_attention": _FLAG,
    "position_biased_input": _FLAG,
    "share_att_key": _FLAG,
    "legacy": _FLAG,
    "max_relative_positions": _SPAN,
    "position_buckets": _SPAN,
    "norm_rel_ebd": config_json.Rule(lambda x: x in ("none", "layer_norm"), "none or layer_norm"),
    "pos_att_type": config_json.Rule(
        lambda x: x is None or (isinstance(x, str | list) and set(_ways(x)) <= set(_WAYS)),
        "c2p, p2c, or both as a list or with a | between",
    ),
    "pooler_hidden_act": config_json.ACTIVATION,
    "pooler_dropout": config_json.RATE,
    "cls_dropout": config_json.optional(config_json.RATE),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's DebertaV2Config, with its defaults."""

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    relative_attention: bool = False
    max_relative_positions: int = -1  # below 1: max_position_embeddings
    position_buckets: int = -1  # below 1: a distance each
    norm_rel_ebd: str = "none"
    share_att_key: bool = False
    pos_att_type: str | list[str] | tuple[str, ...] | None = None
    position_biased_input: bool = True
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | None = None  # None: hidden_dropout_prob
    tie_word_embeddings: bool = True
    legacy: bool = True  # the head for masked tokens is as BERT's

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        width = raw.get("hidden_size", cls.hidden_size)
        only = {
            "conv_kernel_size": 0,
            "position_embedding_type": "absolute",
            "pooler_hidden_size": width,
        }
        config = config_json.fields(
            cls, raw, ignored={"conv_act"}, only=only, rules=_RULES, check=_sizes_fit,
            elsewhere={"conv_kernel_size"},
        )  # fmt: skip
        return dataclasses.replace(config, pos_att_type=_ways(config.pos_att_type))

    @property
    def ways(self) -> tuple[str, ...]:
        """Those of "c2p" and "p2c" that count."""
        return _ways(self.pos_att_type) if self.relative_attention else ()

    @property
    def furthest(self) -> int:
        """The distance from which on all are one bucket."""
        given = self.max_relative_positions
        return self.max_position_embeddings if given < 1 else given

    @property
    def span(self) -> int:
        """Half the rows of the table of relative positions."""
        return self.position_buckets if self.position_buckets > 0 else self.furthest

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout


def _ways(given: Any) -> tuple[str, ...]:
    """'p2c|c2p' or a list of them, as a tuple."""
    parts = given.lower().split("|") if isinstance(given, str) else (given or ())
    return tuple(part.strip() if isinstance(part, str) else "" for part in parts)


def _sizes_fit(config: Config) -> list[str]:
    wrong = config_json.heads_fit(config)
    if 0 < config.position_buckets and config.furthest - 1 <= config.position_buckets // 2:
        wrong.append(
            f"position_buckets {config.position_buckets} are more than the {config.furthest} "
            "distances that they hold"
        )
    return wrong


class Embeddings(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range

        def table(rows: int) -> modules.Embedding:
            return modules.Embedding(rows, width, std=std, rngs=rngs)

        self.word_embeddings = table(config.vocab_size)
        positions, types = config.max_position_embeddings, config.type_vocab_size
        self.position_embeddings = table(positions) if config.position_biased_input else None
        self.token_type_embeddings = table(types) if types else None
        self.LayerNorm = modules.LayerNorm(width, epsilon=config.layer_norm_eps)
        self.rate = config.hidden_dropout_prob

    def __call__(self, batch: Mapping[str, jax.Array], seed: ops.Seed) -> jax.Array:
        hidden = self.word_embeddings(batch["input_ids"])
        if self.position_embeddings is not None:
            hidden = hidden + self.position_embeddings(batch["positions"])
        if self.token_type_embeddings is not None:
            hidden = hidden + self.token_type_embeddings(batch["token_type_ids"])
        return ops.dropout(self.LayerNorm(hidden), self.rate, seed)


class Attention(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.self = disentangled.Attention(config, rngs=rngs)
        self.output = encoder.ResidualOutput(config.hidden_size, config, rngs=rngs)


class Block(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.intermediate = encoder.Intermediate(config, rngs=rngs)
        self.output = encoder.ResidualOutput(config.intermediate_size, config, rngs=rngs)

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        tokens, segments, reads = carry["hidden"], carry["segment_ids"], context.reads
        seed, attention_seed, output_seed = ops.split(context.seed, 3)
        first, second = context.branches(2, segments)
        hidden, rows = ops.take(tokens, reads), carry.get("rows")
        mask = ops.segment_mask(ops.take(segments, reads), segments)
        rows = None if rows is None else ops.take(rows, reads)
        attended = self.attention.self(hidden, tokens, mask, carry.get("relative"), rows, seed)
        hidden = self.attention.output(attended, hidden, attention_seed, first)
        hidden = self.output(self.intermediate(hidden), hidden, output_seed, second)
        return {**carry, "hidden": hidden}, {}


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range
        self.layer = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        relative, normed = config.relative_attention, config.norm_rel_ebd == "layer_norm"
        self.rel_embeddings = (
            modules.Embedding(2 * config.span, width, std=std, rngs=rngs) if relative else None
        )
        self.LayerNorm = modules.LayerNorm(width, epsilon=config.layer_norm_eps) if normed else None


class Deberta(nnx.Module):
    """The carry holds hidden [R, L, D], segment_ids and, where attention is relative, the table
    'relative' [2 * span, D] and the row of it for each pair of tokens, 'rows' [R, L, L]."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.config = config

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        carry = {
            "hidden": self.embeddings(batch, context.seed),
            "segment_ids": batch["segment_ids"],
        }
        table, norm = self.encoder.rel_embeddings, self.encoder.LayerNorm
        if table is None or not self.config.ways:
            return carry
        relative = table.embedding[...]
        positions = batch["positions"]
        distance = positions[:, :, None] - positions[:, None, :]
        rows = jnp.asarray(disentangled.buckets(self.config))[
            distance + (self.config.max_position_embeddings - 1)
        ]
        return {**carry, "relative": relative if norm is None else norm(relative), "rows": rows}

    @property
    def blocks(self) -> nnx.List:
        return self.encoder.layer

    def finish(self, hidden: jax.Array) -> jax.Array:
        return hidden


class Pooler(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.dense = modules.Linear(width, width, std=config.initializer_range, rngs=rngs)
        self.rate, self.activation = config.pooler_dropout, config.pooler_hidden_act

    def __call__(self, first: jax.Array, seed: ops.Seed) -> jax.Array:
        hidden = self.dense(ops.dropout(first, self.rate, seed))
        return ops.ACTIVATIONS[self.activation](hidden)


class SequenceClassifier(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range
        self.pooler = Pooler(config, rngs=rngs)
        self.classifier = modules.Linear(width, num_labels, std=std, rngs=rngs)
        self.rate = config.head_dropout

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, K, D] of each example's first token -> logits [R, K, C]."""
        pooler_seed, seed = ops.split(seed, 2)
        pooled = ops.dropout(self.pooler(hidden, pooler_seed), self.rate, seed)
        return {"logits": self.classifier(pooled)}


def _token_classifier(config: Config, num_labels: int, rngs: nnx.Rngs) -> Classifier:
    width, std = config.hidden_size, config.initializer_range
    return Classifier(width, num_labels, rate=config.hidden_dropout_prob, std=std, rngs=rngs)


class LaterPredictions(vocabulary.Transform):
    """Microsoft's own: the unembedding is the table of input embeddings, whatever config.json says."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        super().__init__(
            config.hidden_size,
            config.hidden_size,
            activation=config.hidden_act,
            epsilon=config.layer_norm_eps,
            std=config.initializer_range,
            rngs=rngs,
        )
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))


class LaterMaskedHead(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.lm_predictions = nnx.Dict(lm_head=LaterPredictions(config, rngs))

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        head = self.lm_predictions["lm_head"]
        return vocabulary.outputs(head(hidden), table, head.bias[...])


def _masked_head(
    config: Config, num_labels: int, rngs: nnx.Rngs
) -> vocabulary.MaskedHead | LaterMaskedHead:
    if config.legacy:
        return vocabulary.MaskedHead(config, num_labels, rngs)
    return LaterMaskedHead(config, rngs)


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"deberta/encoder/layer/{n}/.*" for n in range(config.num_hidden_layers))
    stem = r"deberta/(embeddings|encoder/rel_embeddings|encoder/LayerNorm)/.*"
    return depth_rules(stem, blocks, r"(pooler|classifier|qa_outputs|cls|lm_predictions)/.*")


def _tensor_rules(config: Config) -> cuts.Rules:
    heads = config.num_attention_heads
    return (*cuts.columns(r".*/layer/\d+/.*_proj", heads), *cuts.encoder(heads))


_TABLE = "deberta/embeddings/word_embeddings/embedding"
FAMILY = Family(
    model_type="deberta-v2",
    config=Config,
    shares=("relative",),
    dropouts=(
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "pooler_dropout",
        "cls_dropout",
    ),  # fmt: skip
    limits=lambda config: TextLimits(config.vocab_size, config.max_position_embeddings, pairs=True),
    base="deberta",
    backbone=lambda config, kind, rngs: Deberta(config, rngs=rngs),
    heads={
        "sequence": Head("DebertaV2ForSequenceClassification", SequenceClassifier, first_token),
        "token": Head(
            "DebertaV2ForTokenClassification",
            _token_classifier,
            every_token,
            unused=(r"pooler\..*",),
        ),
        "question": question("DebertaV2ForQuestionAnswering", r"(pooler|classifier)\..*"),
        "choice": Head("DebertaV2ForMultipleChoice", SequenceClassifier, first_token),
        **bare("DebertaV2Model", r"(pooler|classifier)\..*"),
        "masked": Head(
            "DebertaV2ForMaskedLM",
            _masked_head,
            every_token,
            classifier="",
            unused=(r"(pooler|classifier)\..*",),
            table=_TABLE,
            ties=lambda config: (
                vocabulary.tied(_TABLE, *vocabulary.DECODER)(config) if config.legacy else {}
            ),
        ),
    },
    depth_rules=_depth_rules,
    tensor_rules=_tensor_rules,
    # The heads that predict tokens (v2's and v3's), the discriminator's of v3, for questions; buffers and
    # tables of absolute positions that files hold though their model does not use them.
    other_heads=(
        r"(cls|lm_predictions|mask_predictions|qa_outputs)\..*",
        r"(deberta\.)?embeddings\.position_(ids|embeddings\.weight)",
    ),
)
