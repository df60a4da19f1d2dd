"""Gemma 2 (Gemma Team, 2024, arXiv:2408.00118): capped scores, every other block with a sliding window.

Norms stand before and after attention and feed-forward, with factors 1 + weight; embeddings are scaled by
the root of their width.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from jaxft.models.checkpoint import config_json, decoder_json
from jaxft.models.decoder_family import decoder_family
from jaxft.models.layers import decoder, rotary

# Of a cache, and the name that hidden_activation had before.
_IGNORED = ("cache_implementation", "hidden_act")
_ONLY = {"use_bidirectional_attention": False, "token_classification_bias": True}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's Gemma2Config, with its defaults."""

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256  # scores are divided by its root
    sliding_window: int | None = 4096  # tokens that a token sees in the blocks that slide
    layer_types: Sequence[str] | None = None  # None: sliding and full in turn
    attn_logit_softcapping: float | None = 50.0
    classifier_dropout: float | None = None  # of the head for tokens; None: 0.1
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    final_logit_softcapping: float | None = 30.0  # of the language model's logits

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        given = decoder_json.with_rope(raw, theta=1e4, positions=cls.max_position_embeddings)
        rules = {**decoder_json.RULES, **decoder_json.OWN_HEADS}
        config: Config = config_json.fields(
            cls, given, ignored=_IGNORED, only=_ONLY, rules=rules, check=_fits
        )
        return dataclasses.replace(config, layer_types=_types(config))

    @property
    def hidden_act(self) -> str:
        """By the name that other decoders have for it."""
        return self.hidden_activation


def _types(config: Config) -> tuple[str, ...]:
    return decoder_json.layer_types(config, lambda n: n % 2 == 0)


def _fits(config: Config) -> list[str]:
    return [
        *config_json.heads_fit(config),
        *decoder_json.heads_fit(config),
        *decoder_json.types_fit(_types(config), config.num_hidden_layers, config.sliding_window),
    ]


def _backbone(config: Any, kind: str, rngs: nnx.Rngs) -> decoder.Decoder:
    plain = dataclasses.replace(
        decoder.layer_of(config),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        norm_offset=1.0,
        scale=1 / math.sqrt(config.query_pre_attn_scalar),
        cap=config.attn_logit_softcapping,
    )
    return decoder.Decoder(
        config.vocab_size,
        decoder.sliding(plain, config.layer_types, config.sliding_window),
        {decoder.GLOBAL: rotary.frequencies(config.rope_parameters, config.head_dim)},
        rngs=rngs,
        padding=config.pad_token_id,
        block=decoder.SandwichBlock,
        multiplier=math.sqrt(config.hidden_size),
    )


FAMILY = decoder_family("gemma2", "Gemma2", Config, _backbone)
