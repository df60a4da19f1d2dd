"""GPT-2 (Radford et al., 2019) with a head for sequences, at their last token, or for the next token.

Attributes are named as in HF's classes. Its linear layers in blocks are stored
as [in, out], and query, key and value are one layer there and here. Without `pad_token_id` in its
config.json, transformers runs an export on one example at a time only.
"""

import dataclasses
import math
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
    Stored,
    TextLimits,
    depth_rules,
    stored_by_leaf,
)
from jaxft.models.heads import every_token, last_token
from jaxft.models.layers import cached, modules, ops

# GPT2DoubleHeadsModel's further head, the old name of n_positions, and in which dtype the softmax
# is: here always fp32.
_IGNORED = frozenset(
    "summary_type summary_use_proj summary_activation summary_proj_to_labels "
    "summary_first_dropout n_ctx reorder_and_upcast_attn".split()
)
_ONLY = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
_RULES = {
    "n_positions": config_json.RULES["max_position_embeddings"],
    "n_embd": config_json.RULES["hidden_size"],
    "n_layer": config_json.RULES["num_hidden_layers"],
    "n_head": config_json.RULES["num_attention_heads"],
    "n_inner": config_json.optional(config_json.RULES["intermediate_size"]),
    "activation_function": config_json.ACTIVATION,
    "resid_pdrop": config_json.RATE,
    "embd_pdrop": config_json.RATE,
    "attn_pdrop": config_json.RATE,
    "layer_norm_epsilon": config_json.RULES["layer_norm_eps"],
    "pad_token_id": config_json.optional(config_json.whole(10**7, least=0)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's GPT2Config, with its defaults."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # None: 4 * n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        return config_json.fields(
            cls, raw, ignored=_IGNORED, only=_ONLY, rules=_RULES, check=_heads_fit
        )

    @property
    def hidden_size(self) -> int:
        """By the name that other decoders have for it."""
        return self.n_embd


def _heads_fit(config: Config) -> list[str]:
    if config.n_embd % config.n_head:
        return [f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}"]
    return []


class Attention(nnx.Module):
    def __init__(self, config: Config, *, std: float, residual_std: float, rngs: nnx.Rngs):
        width = config.n_embd
        self.c_attn = modules.Linear(width, 3 * width, std=std, rngs=rngs)
        self.c_proj = modules.Linear(width, width, std=residual_std, rngs=rngs)
        self.heads, self.rate = config.n_head, config.attn_pdrop

    def __call__(
        self, tokens: jax.Array, carry: Carry, context: Context, seed: ops.Seed
    ) -> tuple[jax.Array, Kept]:
        """[R, L, D] -> [R, K, D] of the tokens at `context.reads`, or of all [R, L, D]."""
        query, key, value = modules.fused_heads(self.c_attn, tokens, context.reads, self.heads)
        attended, kept = cached.attend(query, key, value, carry, context, rate=self.rate, seed=seed)
        return self.c_proj(attended.reshape(*attended.shape[:2], -1)), kept


class FeedForward(nnx.Module):
    def __init__(self, config: Config, *, std: float, residual_std: float, rngs: nnx.Rngs):
        width = config.n_embd
        wide = 4 * width if config.n_inner is None else config.n_inner
        self.c_fc = modules.Linear(width, wide, std=std, rngs=rngs)
        self.c_proj = modules.Linear(wide, width, std=residual_std, rngs=rngs)
        self.activation = config.activation_function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c_proj(ops.ACTIVATIONS[self.activation](self.c_fc(x)))


class Block(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, epsilon = config.n_embd, config.layer_norm_epsilon
        # Smaller where a block adds to the residual, so that its variance does not grow with depth.
        std = config.initializer_range
        stds = {"std": std, "residual_std": std / math.sqrt(2 * config.n_layer)}
        self.ln_1 = modules.LayerNorm(width, epsilon=epsilon)
        self.attn = Attention(config, **stds, rngs=rngs)
        self.ln_2 = modules.LayerNorm(width, epsilon=epsilon)
        self.mlp = FeedForward(config, **stds, rngs=rngs)
        self.rate = config.resid_pdrop

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        reads, hidden = context.reads, carry["hidden"]
        weights_seed, attention_seed, output_seed = ops.split(context.seed, 3)
        first, second = context.branches(2, carry["segment_ids"])
        update, kept = self.attn(self.ln_1(hidden), carry, context, weights_seed)
        hidden = ops.take(hidden, reads) + first(ops.dropout(update, self.rate, attention_seed))
        update = self.mlp(self.ln_2(hidden))
        hidden = hidden + second(ops.dropout(update, self.rate, output_seed))
        return {**carry, "hidden": hidden}, kept


class GPT2(nnx.Module):
    """The carry holds hidden [R, L, D] and the batch's segment_ids and positions."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, std = config.n_embd, config.initializer_range
        self.wte = modules.Embedding(config.vocab_size, width, std=std, rngs=rngs)
        self.wpe = modules.Embedding(config.n_positions, width, std=std, rngs=rngs)
        self.h = nnx.List([Block(config, rngs=rngs) for _ in range(config.n_layer)])
        self.ln_f = modules.LayerNorm(width, epsilon=config.layer_norm_epsilon)
        self.rate = config.embd_pdrop

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        hidden = self.wte(batch["input_ids"]) + self.wpe(batch["positions"])
        carried = {name: batch[name] for name in ("segment_ids", "positions")}
        return {"hidden": ops.dropout(hidden, self.rate, context.seed), **carried}

    @property
    def blocks(self) -> nnx.List:
        return self.h

    def finish(self, hidden: jax.Array) -> jax.Array:
        return self.ln_f(hidden)


class SequenceClassifier(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        self.score = modules.Linear(
            config.n_embd, num_labels, std=config.initializer_range, rngs=rngs, use_bias=False
        )

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[R, K, D] of each example's last token -> logits [R, K, C]; HF's has no dropout here."""
        return {"logits": self.score(hidden)}


def _stored(path: str, ndim: int, config: Config) -> Stored:
    """Kernels in blocks are [in, out] in the checkpoint, too: HF's Conv1D."""
    usual = stored_by_leaf(path, ndim)
    return Stored(usual.name, (0, 1)) if path.startswith("transformer/h/") and ndim == 2 else usual


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"transformer/h/{n}/.*" for n in range(config.n_layer))
    return depth_rules(
        r"transformer/w[tp]e/.*", blocks, r"(score|lm_head)/.*", last=r"transformer/ln_f/.*"
    )


def _tensor_rules(config: Config) -> cuts.Rules:
    """Of the fused layer only where it is kept: a device's columns are no one piece of it."""
    return (
        *cuts.rows(r"transformer/h/\d+/attn/(c_attn|c_proj)", config.n_head),
        *cuts.columns(r"transformer/h/\d+/mlp/c_fc"),
        *cuts.rows(r"transformer/h/\d+/mlp/c_proj"),
        *cuts.table("transformer/wte|lm_head"),
    )


_TABLE = "transformer/wte/embedding"
FAMILY = Family(
    model_type="gpt2",
    config=Config,
    dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    limits=lambda config: TextLimits(config.vocab_size, config.n_positions, pairs=False, cut=True),
    base="transformer",
    backbone=lambda config, kind, rngs: GPT2(config, rngs=rngs),
    heads={
        "sequence": Head(
            "GPT2ForSequenceClassification", SequenceClassifier, last_token, classifier="score"
        ),
        "causal": Head(
            "GPT2LMHeadModel",
            vocabulary.LMHead,
            every_token,
            classifier="",
            unused=(r"score\..*",),
            table=_TABLE,
            ties=vocabulary.tied(_TABLE, "lm_head.weight"),
        ),
    },
    depth_rules=_depth_rules,
    tensor_rules=_tensor_rules,
    stored=_stored,
    causal=True,
    # The heads of GPT2LMHeadModel, GPT2DoubleHeadsModel, of tokens and questions; masks that old
    # versions saved.
    other_heads=(
        r"(lm_head|multiple_choice_head|classifier|qa_outputs)\..*",
        r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",
    ),
)
