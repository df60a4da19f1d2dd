"""Llama 2 and 3 (Touvron et al., 2023, arXiv:2307.09288; Grattafiori et al., 2024, arXiv:2407.21783).

With a head for sequences, at their last token, or for tokens, on packed rows. Without `pad_token_id` in
its config.json transformers takes an export for sequences one example at a time.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxft.models.checkpoint import config_json, decoder_json
from jaxft.models.decoder_family import decoder_family
from jaxft.models.layers import decoder, rotary

# How one product was cut over devices once, and what conversions of SmolLM2 say of themselves.
_IGNORED = ("pretraining_tp", "is_llama_config", "transformers.js_config")
_ONLY = {"rope_interleaved": False, "token_classification_bias": True}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's LlamaConfig, with its defaults."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: num_attention_heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    classifier_dropout: float | None = None  # of the head for tokens; None: 0.1
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        given = decoder_json.with_rope(raw, theta=1e4, positions=cls.max_position_embeddings)
        config: Config = config_json.fields(
            cls, given, ignored=_IGNORED, only=_ONLY, rules=decoder_json.RULES, check=_heads_fit
        )
        return decoder_json.completed(config)


def _heads_fit(config: Config) -> list[str]:
    """As HF's class has it, hidden_size is a multiple also where head_dim is given."""
    own = config_json.heads_fit(config) if config.head_dim is not None else []
    return own + decoder_json.heads_fit(config)


def _backbone(config: Any, kind: str, rngs: nnx.Rngs) -> decoder.Decoder:
    layer = dataclasses.replace(
        decoder.layer_of(config),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )
    turns = {decoder.GLOBAL: rotary.frequencies(config.rope_parameters, config.head_dim)}
    layers = [layer] * config.num_hidden_layers
    padding = config.pad_token_id
    return decoder.Decoder(config.vocab_size, layers, turns, rngs=rngs, padding=padding)


FAMILY = decoder_family("llama", "Llama", Config, _backbone)
