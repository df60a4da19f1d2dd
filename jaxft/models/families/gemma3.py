"""Gemma 3, its text models (Gemma Team, 2025, arXiv:2503.19786): blocks with a window rotate otherwise.

Else Gemma 2 with a norm of each head's queries and keys in place of capped scores.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from jaxft.models.checkpoint import config_json, decoder_json
from jaxft.models.decoder_family import decoder_family
from jaxft.models.layers import decoder, rotary

# Of a cache, the name that hidden_activation had before, a cap that transformers' class does not apply,
# and what a pattern was before it became layer_types.
_IGNORED = (
    "cache_implementation",
    "hidden_act",
    "attn_logit_softcapping",
    "_sliding_window_pattern",
)
_PATTERN = 6  # one block in so many looks at everything
_ONLY = {"use_bidirectional_attention": False}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's Gemma3TextConfig, with its defaults."""

    vocab_size: int = 262_208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131_072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256  # scores are divided by its root
    sliding_window: int | None = 4096  # tokens that a token sees in the blocks that slide
    layer_types: Sequence[str] | None = None  # None: every sixth is full
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    final_logit_softcapping: float | None = None  # of the language model's logits

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        given = decoder_json.with_ropes(_with_types(raw), positions=cls.max_position_embeddings)
        ropes = {"rope_parameters": decoder_json.ROPES}
        rules = {**decoder_json.RULES, **decoder_json.OWN_HEADS, **ropes}
        config: Config = config_json.fields(
            cls, given, ignored=_IGNORED, only=_ONLY, rules=rules, check=_fits
        )
        return dataclasses.replace(config, layer_types=_types(config))

    @property
    def hidden_act(self) -> str:
        """By the name that other decoders have for it."""
        return self.hidden_activation


def _with_types(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with `layer_types` in place of the old `sliding_window_pattern`, of which the last is full."""
    given = dict(raw)
    blocks = given.get("num_hidden_layers", Config.num_hidden_layers)
    pattern: Any = given.get("sliding_window_pattern")
    count = config_json.RULES["num_hidden_layers"]
    if count.fits(pattern) and count.fits(blocks):
        del given["sliding_window_pattern"]
        types = [
            decoder_json.SLIDING if (n + 1) % pattern else decoder_json.FULL for n in range(blocks)
        ]
        given["layer_types"] = given.get("layer_types") or types
    return given


def _types(config: Config) -> tuple[str, ...]:
    return decoder_json.layer_types(config, lambda n: (n + 1) % _PATTERN != 0)


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
        head_norms=True,
    )
    tables = {decoder.LOCAL: decoder_json.SLIDING, decoder.GLOBAL: decoder_json.FULL}
    turns = {
        name: rotary.frequencies(config.rope_parameters[kind], config.head_dim)
        for name, kind in tables.items()
    }
    return decoder.Decoder(
        config.vocab_size,
        decoder.sliding(plain, config.layer_types, config.sliding_window, table=decoder.LOCAL),
        turns,
        rngs=rngs,
        padding=config.pad_token_id,
        block=decoder.SandwichBlock,
        multiplier=math.sqrt(config.hidden_size),
    )


FAMILY = decoder_family(
    "gemma3_text", "Gemma3Text", Config, _backbone, tokens=False, languages="Gemma3"
)
