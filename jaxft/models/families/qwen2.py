"""Qwen2 and Qwen2.5 (Yang et al., 2024, arXiv:2407.10671): Llama with biases of query, key and value."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from jaxft.models.checkpoint import config_json, decoder_json
from jaxft.models.decoder_family import decoder_family
from jaxft.models.layers import decoder, rotary


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's Qwen2Config, with its defaults."""

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32  # None: num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096  # tokens that a token sees in the blocks that slide
    max_window_layers: int = 28  # blocks before it do not slide
    layer_types: Sequence[str] | None = None  # None: by max_window_layers
    attention_dropout: float = 0.0
    classifier_dropout: float | None = None  # of the head for tokens; None: 0.1
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        given = decoder_json.with_rope(raw, theta=1e4, positions=cls.max_position_embeddings)
        only = {"use_mrope": False, "token_classification_bias": True}
        config: Config = config_json.fields(
            cls, given, only=only, rules=decoder_json.RULES, check=_fits
        )
        config = decoder_json.with_late_windows(config)
        return dataclasses.replace(config, num_key_value_heads=decoder_json.key_heads(config))

    @property
    def head_dim(self) -> int:
        """Of queries, keys and values."""
        return self.hidden_size // self.num_attention_heads


def _fits(config: Config) -> list[str]:
    return [
        *config_json.heads_fit(config),
        *decoder_json.heads_fit(config),
        *decoder_json.late_windows_fit(config),
    ]


def _backbone(config: Any, kind: str, rngs: nnx.Rngs) -> decoder.Decoder:
    plain = dataclasses.replace(decoder.layer_of(config), qkv_bias=True)
    turns = {decoder.GLOBAL: rotary.frequencies(config.rope_parameters, config.head_dim)}
    layers = decoder.sliding(plain, config.layer_types, config.sliding_window)
    padding = config.pad_token_id
    return decoder.Decoder(config.vocab_size, layers, turns, rngs=rngs, padding=padding)


FAMILY = decoder_family("qwen2", "Qwen2", Config, _backbone)
