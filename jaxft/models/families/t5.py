"""T5 (Raffel et al., 2020, arXiv:1910.10683): v1.0, and v1.1 with gated GELU, of which Flan-T5 is.

On packed rows of both sides: a row of the encoder and that of the decoder at the same place hold the same
examples, told apart by segment ids, and no attention goes from one example to another. The blocks of the
encoder come before those of the decoder, also in their depths. The table of relative positions is in the
first block of each and serves the others. Attributes are named as in HF's T5ForConditionalGeneration.

transformers 5 ties the output to the embedding whatever config.json says, unless the checkpoint has
another lm_head.weight. `"tie_word_embeddings": false` means there, and here, that the decoder's output is
not scaled.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models import cuts
from jaxft.models.checkpoint import config_json, tensors
from jaxft.models.checkpoint.config_json import Rule
from jaxft.models.family import (
    Batch,
    Block,
    Carry,
    Context,
    Family,
    Head,
    Outputs,
    TextLimits,
    depth_rules,
)
from jaxft.models.heads import TwoLayers, every_token
from jaxft.models.layers import modules, ops
from jaxft.models.layers.encoder_decoder import Finishing, Layer, Stack
from jaxft.models.vocabulary import Unembedding

_WIDTH = config_json.RULES["hidden_size"]
_HEADS = config_json.RULES["num_attention_heads"]
_LAYERS = config_json.RULES["num_hidden_layers"]
_TOKEN = config_json.whole(10**7, least=0)
_FLAG = config_json.optional(config_json.FLAG)
_RULES = {
    "d_model": _WIDTH,
    "d_kv": _WIDTH,
    "d_ff": config_json.RULES["intermediate_size"],
    "num_layers": _LAYERS,
    "num_decoder_layers": config_json.optional(_LAYERS),
    "num_heads": _HEADS,
    "relative_attention_num_buckets": config_json.whole(10**6, least=4),
    "relative_attention_max_distance": config_json.whole(10**7, least=2),
    "dropout_rate": config_json.RATE,
    "classifier_dropout": config_json.RATE,
    "layer_norm_epsilon": config_json.RULES["layer_norm_eps"],
    "initializer_factor": config_json.RULES["initializer_range"],
    "feed_forward_proj": Rule(
        lambda x: isinstance(x, str) and x.removeprefix("gated-") in ops.ACTIVATIONS,
        f"an activation or gated-ACTIVATION, of {', '.join(ops.ACTIVATIONS)}",
    ),
    "dense_act_fn": config_json.optional(config_json.ACTIVATION),
    "is_gated_act": _FLAG,
    "scale_decoder_outputs": _FLAG,
    "tie_word_embeddings": _FLAG,
    "eos_token_id": config_json.optional(_TOKEN),
    "pad_token_id": config_json.optional(_TOKEN),
    "decoder_start_token_id": config_json.optional(_TOKEN),
    "n_positions": config_json.optional(config_json.RULES["max_position_embeddings"]),
    "own_output": Rule(lambda x: x is None, "left out, since the tensors say it"),
}
_USUAL = 512  # tokens with which published models were trained
_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_BODY = r"(transformer/)?"
_NEVER = 10**6  # no distance is too far, so this is no limit


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's T5Config, with its defaults.

    Attributes:
        n_positions: of old files, the tokens of the texts that the model was trained with.
        own_output: the output is not tied to the embedding; only the tensors say so.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    classifier_dropout: float = 0.0
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    dense_act_fn: str | None = None
    is_gated_act: bool | None = None
    scale_decoder_outputs: bool | None = None
    tie_word_embeddings: bool | None = None
    eos_token_id: int | None = 1
    pad_token_id: int | None = 0
    decoder_start_token_id: int | None = None
    n_positions: int | None = None
    own_output: bool | None = None

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        only = {"is_encoder_decoder": True}
        return _completed(config_json.fields(cls, raw, only=only, rules=_RULES, check=_fits))

    @property
    def blocks(self) -> dict[str, int]:
        """How many each stack has."""
        assert self.num_decoder_layers is not None  # as it is completed
        return {"encoder": self.num_layers, "decoder": self.num_decoder_layers}

    @property
    def start(self) -> int:
        """The token with which the decoder begins."""
        given = (self.decoder_start_token_id, self.pad_token_id)
        return next((token for token in given if token is not None), 0)


def _completed(config: Config) -> Config:
    """With what null stands for."""
    kind = config.feed_forward_proj
    activation = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    meant: dict[str, Any] = {
        "num_decoder_layers": config.num_layers,
        "dense_act_fn": activation,
        "is_gated_act": kind.startswith("gated-"),
        "scale_decoder_outputs": config.tie_word_embeddings is not False,
    }
    unsaid = {name: value for name, value in meant.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **unsaid, tie_word_embeddings=True)


def _fits(config: Config) -> list[str]:
    exact, farthest = (
        config.relative_attention_num_buckets // 2,
        config.relative_attention_max_distance,
    )
    if farthest <= exact:
        return [
            f"relative_attention_max_distance {farthest} must be above half of "
            f"relative_attention_num_buckets, {exact}"
        ]
    return []


def _settled(config: Config, directory: str) -> Config:
    """Whether the checkpoint has an output of its own, which one that equals the embedding is not."""
    try:
        found = tensors.entries(directory)
    except ValueError:  # there are none, or what reads them says what is wrong
        return config
    shared = next((name for name in ("shared.weight", *_EMBEDDINGS) if name in found), None)
    if "lm_head.weight" not in found or shared is None:
        return config
    try:
        tensors.require_equal(shared, found[shared], "lm_head.weight", found["lm_head.weight"])
    except ValueError:
        return dataclasses.replace(config, own_output=True)
    return config


class T5(nnx.Module):
    """The carry holds hidden [R, L, D] of the encoder, later of the decoder, and what either looks at.

    Beside the arrays of text rows the batch has `decoder_input_ids`, `decoder_segment_ids` and
    `decoder_positions` [R, M], in rows of the same examples. Without them the decoder reads the encoder's
    tokens, each one later, as HF's class for sequences lets it.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        assert config.dense_act_fn is not None  # as it is completed
        layer = Layer(
            width=config.d_model,
            heads=config.num_heads,
            head_dim=config.d_kv,
            intermediate=config.d_ff,
            gated=bool(config.is_gated_act),
            activation=config.dense_act_fn,
            epsilon=config.layer_norm_epsilon,
            rate=config.dropout_rate,
            factor=config.initializer_factor,
            buckets=config.relative_attention_num_buckets,
            farthest=config.relative_attention_max_distance,
        )
        self.shared = modules.Embedding(
            config.vocab_size, config.d_model, std=config.initializer_factor, rngs=rngs
        )
        self.encoder = Stack(layer, config.blocks["encoder"], decodes=False, rngs=rngs)
        self.decoder = Stack(layer, config.blocks["decoder"], decodes=True, rngs=rngs)
        self.start, self.rate = config.start, config.dropout_rate

    def stem(self, batch: Batch, context: Context) -> Carry:
        seed, decoder_seed = ops.split(context.seed, 2)
        side = self._decoded(batch)
        return {
            "hidden": ops.dropout(self.shared(batch["input_ids"]), self.rate, seed),
            "segment_ids": batch["segment_ids"],
            "decoder_hidden": ops.dropout(
                self.shared(side["decoder_input_ids"]), self.rate, decoder_seed
            ),
            "decoder_segment_ids": side["decoder_segment_ids"],
            "decoder_positions": side["decoder_positions"],
        }

    @property
    def blocks(self) -> list[Block]:
        *encoder, last = self.encoder.block
        return [*encoder, Finishing(last, self.encoder), *self.decoder.block]

    def finish(self, hidden: jax.Array) -> jax.Array:
        return self.decoder.final_layer_norm(hidden)

    def _decoded(self, batch: Batch) -> Batch:
        """The arrays of the decoder's side."""
        if "decoder_input_ids" in batch:
            return batch
        later = jnp.roll(batch["input_ids"], 1, axis=1)
        return {
            "decoder_input_ids": jnp.where(batch["positions"] == 0, self.start, later),
            "decoder_segment_ids": batch["segment_ids"],
            "decoder_positions": batch["positions"],
        }


class LMHead(nnx.Module):
    """`lm_head`, on the decoder's output."""

    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        self.lm_head = Unembedding(
            config.vocab_size,
            config.d_model,
            tied=not config.own_output,
            use_bias=False,
            std=config.initializer_factor,
            rngs=rngs,
        )
        self.rate = config.dropout_rate
        self.scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        """[R, M, D] and the embeddings [V, D] -> as `vocabulary.outputs`."""
        features = ops.dropout(hidden, self.rate, seed) * self.scale
        return self.lm_head(features, table)


class SequenceClassifier(nnx.Module):
    """`classification_head`, at the last token that ends a text."""

    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        self.classification_head = TwoLayers(
            config.d_model,
            num_labels,
            rate=config.classifier_dropout,
            std=config.initializer_factor * config.d_model**-0.5,
            activation="tanh",
            rngs=rngs,
        )
        self.rate = config.dropout_rate

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, K, D] -> logits [R, K, C]."""
        stack_seed, head_seed = ops.split(seed, 2)
        hidden = ops.dropout(hidden, self.rate, stack_seed)
        return {"logits": self.classification_head(hidden, head_seed)}


def _last_end(config: Config, batch: Batch) -> jax.Array:
    """[R, K]: the last eos token of each example; of one that has none its first token."""
    ids, starts = batch["input_ids"], batch["starts"]
    own = batch["segment_ids"][:, None, :] == 1 + jnp.arange(starts.shape[1])[:, None]  # [R, K, L]
    if config.eos_token_id is not None:
        own &= (ids == jnp.int32(config.eos_token_id))[:, None, :]
    columns = jnp.arange(ids.shape[1], dtype=starts.dtype)
    return jnp.where(own, columns, starts[:, :, None]).max(-1)


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = [
        rf"{_BODY}{stack}/(block/{n}{'|final_layer_norm' * (n == count - 1)})/.*"
        for stack, count in config.blocks.items()
        for n in range(count)
    ]
    return depth_rules(rf"{_BODY}shared/.*", blocks, r"(lm_head|classification_head)/.*")


def _ties(config: Config, prefix: str, *output: str) -> Mapping[str, tuple[str, ...]]:
    embeddings = tuple(f"{prefix}{name}" for name in _EMBEDDINGS)
    return {f"{prefix.replace('.', '/')}shared/embedding": (*embeddings, *output)}


def _tensor_rules(config: Config) -> cuts.Rules:
    heads = config.num_heads
    return (
        *cuts.columns(rf"{_BODY}.*/(Self|EncDec)Attention/[qkv]", heads),
        *cuts.rows(rf"{_BODY}.*/(Self|EncDec)Attention/o", heads),
        *cuts.columns(rf"{_BODY}.*/wi(_[01])?"),
        *cuts.rows(rf"{_BODY}.*/wo"),
        *cuts.table(rf"{_BODY}shared|lm_head"),
    )


FAMILY = Family(
    model_type="t5",
    config=Config,
    dropouts=("dropout_rate", "classifier_dropout"),
    shares=("biases", "encoded"),
    limits=lambda config: TextLimits(
        config.vocab_size, _NEVER, pairs=False, usual=config.n_positions or _USUAL, cut=True
    ),
    base="",
    backbone=lambda config, kind, rngs: T5(config, rngs=rngs),
    heads={
        "sequence": Head(
            "T5ForSequenceClassification",
            SequenceClassifier,
            _last_end,
            classifier="classification_head/out_proj",
            base="transformer",
            ties=lambda config: _ties(config, "transformer."),
        ),
        "seq2seq": Head(
            "T5ForConditionalGeneration",
            LMHead,
            every_token,
            classifier="",
            table="shared/embedding",
            ties=lambda config: _ties(config, "", *["lm_head.weight"] * (not config.own_output)),
        ),
    },
    depth_rules=_depth_rules,
    tensor_rules=_tensor_rules,
    settled=_settled,
    # The heads of HF's other classes, and a table that was saved and is not read.
    other_heads=(
        r"(lm_head|classification_head|classifier|qa_outputs)\..*",
        r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
)
