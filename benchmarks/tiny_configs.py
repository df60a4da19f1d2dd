"""Any model of transformers at a small size: its default config with every size in it made small."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

LAYERS, VOCABULARY = 2, 96
# Fields of configs that say how often something is built, and how large a model is.
COUNTS: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers",
                     "num_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks",
                     "depth"), LAYERS),
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "image_size": 64,
}  # fmt: skip
SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "emb_dim",
                     "num_features", "hidden_dim_size", "d_embed", "rnn_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_dim",
                     "hidden_dim", "n_inner", "moe_intermediate_size", "d_inner",
                     "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads",
                     "n_head", "n_heads", "num_heads", "num_experts", "num_local_experts",
                     "n_routed_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
                     "qk_rope_head_dim", "v_head_dim", "patch_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_2d_position_embeddings"), 64),
    "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "window_size": 2,
    "pooler_hidden_size": 32, "rotary_dim": 8,
    "mamba_n_heads": 4, "mamba_num_heads": 4, "mamba_d_state": 8,
}  # fmt: skip
# What the defaults of a model type leave out, or what else has to fit.
MORE: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots3_note": {"adapter_in_dim": 32},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},
    "esmc": {"pad_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 8}),
    "nemotron": {"num_key_value_heads": 2},
}  # fmt: skip
WIDTHS = (8, 16, 24, 32, 40, 48)
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def tiny_configs(config_class: Any) -> Iterator[Callable[[], Any]]:
    """Makers of configs: every size small, then counts and vocabulary small, then the default one.

    Each is made anew, so that what a config derives from its sizes fits them.
    """
    more = MORE.get(config_class.model_type, {})
    for small in ({**COUNTS, **SIZES}, COUNTS, {}):
        yield functools.partial(_made, config_class, small, more)


def _made(config_class: Any, small: dict[str, int], more: dict[str, Any]) -> Any:
    return config_class(**{**_settings(config_class(), small), **more})


def _settings(default: Any, small: dict[str, int]) -> dict[str, Any]:
    """Arguments of the config's class, of the values in `default` that are to be other ones."""
    own = vars(default)
    layers = next((own[key] for key in COUNTS if type(own.get(key)) is int), 0)
    values = {one.name: own[one.name] for one in dataclasses.fields(default) if one.name in own}
    if values.get("num_key_value_heads") == values.get("num_attention_heads"):
        small = {**small, "num_key_value_heads": small.get("num_attention_heads", 10**6)}
    chosen = _layers(values, layers)
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if hasattr(value, "to_dict"):
            changed[name] = type(value)(**_settings(value, small))
        elif name in small and type(value) is int:
            changed[name] = min(value, small[name])
        elif name in TOKENS and type(value) is int and value >= VOCABULARY:
            changed[name] = 1 + TOKENS.index(name)
        elif isinstance(value, list | tuple) and "vocab_size" in small:
            if layers > LAYERS and len(value) == layers:
                changed[name] = [value[index] for index in chosen]
            elif name in ("depths", "layers_per_stage", "num_layers", "layer_depths"):
                changed[name] = [1] * len(value)
            elif (
                name in ("hidden_sizes", "embed_dims", "encoder_hidden_sizes")
                and "hidden_size" in small
            ):
                changed[name] = list(WIDTHS[: len(value)])
            elif name == "num_heads" and "hidden_size" in small:
                changed[name] = [2] * len(value)
    return changed


def _layers(values: dict[str, Any], layers: int) -> tuple[int, int]:
    """The first layer, and the first of another kind."""
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = values.get(name)
        if isinstance(kinds, list) and len(kinds) == layers:
            for index, kind in enumerate(kinds):
                if kind != kinds[0]:
                    return 0, index
    return 0, 1
