"""ModernBERT (Warner et al., 2024, arXiv:2412.13663) with a head for sequences or tokens, on packed rows.

An encoder with norms before its layers, rotary positions, gated feed-forward, and windows in most blocks.
Attributes are named as in HF's classes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from jaxft.models import cuts, vocabulary
from jaxft.models.checkpoint import config_json, decoder_json
from jaxft.models.checkpoint.decoder_json import FLAG, FULL, SLIDING
from jaxft.models.family import (
    Batch,
    Carry,
    Context,
    Family,
    Head,
    Kept,
    Outputs,
    TextLimits,
    depth_rules,
)
from jaxft.models.heads import bare, every_token, first_token, mean_of_tokens
from jaxft.models.layers import attention, modules, ops, rotary
from jaxft.models.layers.sight import Places, Sight

# How weights are drawn, of a loss, of kernels that are not used here, and what files of ModernBERT say
# though no code reads it.
_IGNORED = frozenset(
    "initializer_cutoff_factor deterministic_flash_attn sparse_prediction "
    "sparse_pred_ignore_index reference_compile repad_logits_with_grad layer_norm_eps "
    "position_embedding_type".split()
)
_THETAS = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}
_RULES = {
    "hidden_activation": config_json.ACTIVATION,
    "classifier_activation": config_json.ACTIVATION,
    "norm_eps": config_json.RULES["layer_norm_eps"],
    "norm_bias": FLAG,
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "classifier_bias": FLAG,
    "decoder_bias": FLAG,
    "attention_dropout": config_json.RATE,
    "embedding_dropout": config_json.RATE,
    "mlp_dropout": config_json.RATE,
    "classifier_dropout": config_json.RATE,
    "classifier_pooling": config_json.Rule(lambda x: x in ("cls", "mean"), "cls or mean"),
    "local_attention": config_json.whole(10**7),
    "global_attn_every_n_layers": config_json.whole(512),
    "layer_types": decoder_json.RULES["layer_types"],
    "rope_parameters": decoder_json.ROPES,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's ModernBertConfig, with its defaults."""

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    attention_dropout: float = 0.0
    layer_types: Sequence[str] | None = None  # None: every third is full, from the first on
    global_attn_every_n_layers: int = 3
    rope_parameters: Mapping[str, Any] | None = None
    local_attention: int = 128  # tokens that a token sees in blocks that slide, half to either side
    embedding_dropout: float = 0.0
    mlp_bias: bool = False
    mlp_dropout: float = 0.0
    classifier_pooling: str = "cls"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    tie_word_embeddings: bool = True
    decoder_bias: bool = True  # of the head for masked tokens

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        given = _with_ropes(raw)
        config: Config = config_json.fields(
            cls, given, ignored=_IGNORED, rules=_RULES, check=_sizes_fit
        )
        return dataclasses.replace(config, layer_types=_types(config))

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def _with_ropes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with `rope_parameters` for each type of block, whichever keys it has."""
    given, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    old = {"rope_scaling", *(name for name, _ in _THETAS.values())}
    found = {name: value for name, value in raw.items() if name not in old}
    if not isinstance(given, Mapping) or not isinstance(scaling, Mapping):
        return {**found, "rope_parameters": [given, scaling]}  # which no rule lets pass
    ropes = dict(given)
    for kind, (name, default) in _THETAS.items():
        own = given.get(kind) or {}
        if isinstance(own, Mapping):
            theta = default if raw.get(name) is None else raw[name]
            ropes[kind] = {"rope_type": "default", "rope_theta": theta, **own, **scaling}
    return {**found, "rope_parameters": ropes}


def _types(config: Config) -> tuple[str, ...]:
    every = config.global_attn_every_n_layers
    return decoder_json.layer_types(config, lambda n: n % every != 0)


def _sizes_fit(config: Config) -> list[str]:
    wrong = config_json.heads_fit(config)
    if config.head_dim % 2 or not config.head_dim:
        wrong.append(
            f"a head's width {config.head_dim} must be even, as rotary positions turn pairs"
        )
    types, window = _types(config), config.local_attention
    return [*wrong, *decoder_json.types_fit(types, config.num_hidden_layers, window)]


def _norm(config: Config) -> modules.LayerNorm:
    return modules.LayerNorm(config.hidden_size, epsilon=config.norm_eps, use_bias=config.norm_bias)


class Embeddings(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.tok_embeddings = modules.Embedding(
            config.vocab_size, config.hidden_size, std=config.initializer_range, rngs=rngs
        )
        self.norm = _norm(config)
        self.rate = config.embedding_dropout

    def __call__(self, ids: jax.Array, seed: ops.Seed) -> jax.Array:
        return ops.dropout(self.norm(self.tok_embeddings(ids)), self.rate, seed)


class Attention(nnx.Module):
    """Query, key and value are one layer. HF drops weights and outputs at the same rate."""

    def __init__(self, config: Config, kind: str, *, std: float, rngs: nnx.Rngs):
        width, use_bias = config.hidden_size, config.attention_bias
        self.Wqkv = modules.Linear(
            width, 3 * width, std=config.initializer_range, rngs=rngs, use_bias=use_bias
        )
        self.Wo = modules.Linear(width, width, std=std, rngs=rngs, use_bias=use_bias)
        self.heads, self.rate = config.num_attention_heads, config.attention_dropout
        self.kind = kind
        self.reach = config.local_attention // 2 if kind == SLIDING else None

    def __call__(
        self, tokens: jax.Array, carry: Carry, reads: jax.Array | None, seed: ops.Seed
    ) -> jax.Array:
        """Normalised tokens [R, L, D] -> [R, K, D] at `reads`, or [R, L, D] where it is None."""
        weights_seed, output_seed = ops.split(seed, 2)
        cosines, sines = turn = carry["rotary"][self.kind]
        query, key, value = modules.fused_heads(self.Wqkv, tokens, reads, self.heads)
        query = rotary.rotate(query, (ops.take(cosines, reads), ops.take(sines, reads)))
        key = rotary.rotate(key, turn)
        sight = Sight(Places(carry["segment_ids"], carry["positions"]), reads, reach=self.reach)
        attended = attention.among(query, key, value, sight, rate=self.rate, seed=weights_seed)
        update = self.Wo(attended.reshape(*attended.shape[:2], -1))
        return ops.dropout(update, self.rate, output_seed)


class FeedForward(nnx.Module):
    """The gated linear unit of Shazeer, 2020, arXiv:2002.05202, its two inputs one layer."""

    def __init__(self, config: Config, *, std: float, rngs: nnx.Rngs):
        width, wide, use_bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.Wi = modules.Linear(
            width, 2 * wide, std=config.initializer_range, rngs=rngs, use_bias=use_bias
        )
        self.Wo = modules.Linear(wide, width, std=std, rngs=rngs, use_bias=use_bias)
        self.activation, self.rate = config.hidden_activation, config.mlp_dropout

    def __call__(self, x: jax.Array, seed: ops.Seed) -> jax.Array:
        value, gate = modules.fused_parts(self.Wi, [x, x], self.Wo.kernel.shape[0])
        gated = ops.ACTIVATIONS[self.activation](value) * gate
        return self.Wo(ops.dropout(gated, self.rate, seed))


class Block(nnx.Module):
    def __init__(self, config: Config, number: int, kind: str, *, rngs: nnx.Rngs):
        # Smaller where a block adds to the residual, so that its variance does not grow with depth.
        std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
        self.attn_norm = _norm(config) if number else None  # the stem's norm is just before
        self.attn = Attention(config, kind, std=std, rngs=rngs)
        self.mlp_norm = _norm(config)
        self.mlp = FeedForward(config, std=std, rngs=rngs)

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        hidden, reads = carry["hidden"], context.reads
        attention_seed, mlp_seed = ops.split(context.seed, 2)
        first, second = context.branches(2, carry["segment_ids"])
        tokens = hidden if self.attn_norm is None else self.attn_norm(hidden)
        hidden = ops.take(hidden, reads) + first(self.attn(tokens, carry, reads, attention_seed))
        hidden = hidden + second(self.mlp(self.mlp_norm(hidden), mlp_seed))
        return {**carry, "hidden": hidden}, {}


class ModernBert(nnx.Module):
    """The carry holds hidden [R, L, D], the batch's segment_ids and positions, and rotary tables."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        kinds = tuple(config.layer_types or ())
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = nnx.List(
            [Block(config, number, kind, rngs=rngs) for number, kind in enumerate(kinds)]
        )
        self.final_norm = _norm(config)
        ropes = config.rope_parameters or {}
        self.turns = tuple(
            (kind, rotary.frequencies(ropes[kind], config.head_dim)) for kind in sorted(set(kinds))
        )

    def stem(self, batch: Batch, context: Context) -> Carry:
        positions = batch["positions"]
        return {
            "hidden": self.embeddings(batch["input_ids"], context.seed),
            "segment_ids": batch["segment_ids"],
            "positions": positions,
            "rotary": {kind: rotary.table(positions, turns) for kind, turns in self.turns},
        }

    @property
    def blocks(self) -> nnx.List:
        return self.layers

    def finish(self, hidden: jax.Array) -> jax.Array:
        return self.final_norm(hidden)


class Hidden(nnx.Module):
    """The layer before the labels; of the language model's head, too."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range
        std = std / math.sqrt(2 * config.num_hidden_layers)
        self.dense = modules.Linear(
            width, width, std=std, rngs=rngs, use_bias=config.classifier_bias
        )
        self.norm = _norm(config)
        self.activation = config.classifier_activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(ops.ACTIVATIONS[self.activation](self.dense(x)))


class Classifier(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        width = config.hidden_size
        self.head = Hidden(config, rngs=rngs)
        self.classifier = modules.Linear(width, num_labels, std=1 / math.sqrt(width), rngs=rngs)
        self.rate = config.classifier_dropout

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, K, D] of examples or tokens -> logits [R, K, C]."""
        return {"logits": self.classifier(ops.dropout(self.head(hidden), self.rate, seed))}


class MaskedHead(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        self.head = Hidden(config, rngs=rngs)
        self.decoder = vocabulary.Unembedding(
            config.vocab_size,
            config.hidden_size,
            tied=config.tie_word_embeddings,
            use_bias=config.decoder_bias,
            std=config.initializer_range / math.sqrt(2 * config.num_hidden_layers),
            rngs=rngs,
        )

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        return self.decoder(self.head(hidden), table)


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"model/layers/{n}/.*" for n in range(config.num_hidden_layers))
    return depth_rules(
        r"model/embeddings/.*", blocks, r"(head|classifier|decoder)/.*", last=r"model/final_norm/.*"
    )


def _of_examples(architecture: str) -> Head[Config]:
    """The head that reads each example's first token, or the mean of all."""
    return Head(
        architecture,
        Classifier,
        lambda config, batch: (
            first_token(config, batch) if config.classifier_pooling == "cls" else None
        ),
        averages=lambda config, batch: (
            mean_of_tokens(batch) if config.classifier_pooling == "mean" else None
        ),
    )


# Not the fused layers: a device's share of their columns would be no share of heads or gates.
# Of the fused layers only where they are kept: a device's columns are no one piece of them.
def _tensor_rules(config: Config) -> cuts.Rules:
    attention = cuts.rows(r"model/layers/\d+/attn/(Wqkv|Wo)", config.num_attention_heads)
    feed_forward = cuts.rows(r"model/layers/\d+/mlp/(Wi|Wo)")
    return (*attention, *feed_forward, *cuts.table(".*embeddings/tok_embeddings|decoder"))


_TABLE = "model/embeddings/tok_embeddings/embedding"

FAMILY = Family(
    model_type="modernbert",
    config=Config,
    dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
    limits=lambda c: TextLimits(c.vocab_size, c.max_position_embeddings, pairs=True, cut=True),
    base="model",
    backbone=lambda config, kind, rngs: ModernBert(config, rngs=rngs),
    heads={
        "sequence": _of_examples("ModernBertForSequenceClassification"),
        "token": Head("ModernBertForTokenClassification", Classifier, every_token),
        "question": Head("ModernBertForQuestionAnswering", Classifier, every_token),
        "choice": _of_examples("ModernBertForMultipleChoice"),
        **bare("ModernBertModel", r"(head|classifier)\..*"),
        "masked": Head(
            "ModernBertForMaskedLM",
            MaskedHead,
            every_token,
            classifier="",
            unused=(r"classifier\..*",),
            table=_TABLE,
            ties=vocabulary.tied(_TABLE, "decoder.weight"),
        ),
    },
    depth_rules=_depth_rules,
    tensor_rules=_tensor_rules,
    other_heads=(r"(decoder|qa_outputs)\..*",),
)
