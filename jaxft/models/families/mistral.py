"""Mistral (Jiang et al., 2023, arXiv:2310.06825): Llama with a sliding window and without biases."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxft.models.checkpoint import config_json, decoder_json
from jaxft.models.decoder_family import decoder_family
from jaxft.models.layers import decoder, rotary


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's MistralConfig, with its defaults."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8  # None: num_attention_heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096 * 32
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] | None = None
    sliding_window: int | None = 4096  # tokens that a token sees; None: all before it
    attention_dropout: float = 0.0
    classifier_dropout: float | None = None  # of the head for tokens; None: 0.1
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        given = decoder_json.with_rope(raw, theta=1e4, positions=cls.max_position_embeddings)
        only = {"token_classification_bias": True}
        rules, check = decoder_json.RULES, decoder_json.heads_fit
        config: Config = config_json.fields(cls, given, only=only, rules=rules, check=check)
        return decoder_json.completed(config)


def _backbone(config: Any, kind: str, rngs: nnx.Rngs) -> decoder.Decoder:
    layer = dataclasses.replace(decoder.layer_of(config), window=config.sliding_window)
    turns = {decoder.GLOBAL: rotary.frequencies(config.rope_parameters, config.head_dim)}
    layers = [layer] * config.num_hidden_layers
    padding = config.pad_token_id
    return decoder.Decoder(config.vocab_size, layers, turns, rngs=rngs, padding=padding)


FAMILY = decoder_family("mistral", "Mistral", Config, _backbone)
