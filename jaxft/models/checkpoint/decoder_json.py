"""What config.json says of decoders: rotary positions, old words and new, grouped heads, windows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jaxft.models.checkpoint import config_json
from jaxft.models.checkpoint.config_json import Rule

C = TypeVar("C")

_POSITIVE = config_json.number(1e-9, 1e30, "a positive number")
_THETA = "rope_theta"
_THETAS = {_THETA: 1e6, "rope_local_base_freq": 1e4}  # of Gemma 3
_SCALINGS = {
    "default": (),
    "dynamic": ("factor",),  # scales beyond max_position_embeddings only, which no text may exceed
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
_KNOWN = "; ".join(f"{name} ({', '.join((_THETA, *keys))})" for name, keys in _SCALINGS.items())


def _is_rope(x: Any) -> bool:
    if not isinstance(x, Mapping) or not isinstance(x.get("rope_type"), str):
        return False
    scaling = _SCALINGS.get(x["rope_type"])
    given = {key: value for key, value in x.items() if key not in ("rope_type", "type")}
    if scaling is None or given.pop("partial_rotary_factor", 1) != 1:
        return False
    if given.keys() != {_THETA, *scaling} or not all(map(_POSITIVE.fits, given.values())):
        return False
    return x["rope_type"] != "llama3" or x["low_freq_factor"] < x["high_freq_factor"]


def _is_rope_elsewhere(x: Any) -> bool:
    return isinstance(x, Mapping) and x.get("rope_type") in ("yarn", "longrope")


ROPE = Rule(
    _is_rope,
    f"of rope_type {_KNOWN}, all positive numbers, of the whole head",
    _is_rope_elsewhere,
)
FULL, SLIDING = LAYER_TYPES = ("full_attention", "sliding_attention")


def _are_layer_types(x: Any) -> bool:
    return isinstance(x, list | tuple) and all(one in LAYER_TYPES for one in x)


ROPES = Rule(
    lambda x: (
        isinstance(x, Mapping) and x.keys() == {*LAYER_TYPES} and all(map(_is_rope, x.values()))
    ),
    f"for each of {' and '.join(LAYER_TYPES)} {ROPE.wanted}",
)
FLAG = Rule(lambda x: isinstance(x, bool), "true or false")
RULES: Mapping[str, Rule] = {
    "num_key_value_heads": config_json.optional(config_json.RULES["num_attention_heads"]),
    "head_dim": config_json.optional(config_json.whole(config_json.SIZE)),
    "rms_norm_eps": config_json.RULES["layer_norm_eps"],
    "attention_dropout": config_json.RATE,
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "rope_parameters": ROPE,
    "hidden_activation": config_json.ACTIVATION,
    "query_pre_attn_scalar": _POSITIVE,
    "attn_logit_softcapping": config_json.optional(_POSITIVE),
    "final_logit_softcapping": config_json.optional(_POSITIVE),
    "use_sliding_window": FLAG,
    "max_window_layers": config_json.whole(10**7, least=0),
    "layer_types": config_json.optional(
        Rule(_are_layer_types, f"a list of {' or '.join(LAYER_TYPES)}")
    ),
    "sliding_window": config_json.optional(config_json.whole(10**7)),
    "pad_token_id": config_json.optional(config_json.whole(10**7, least=0)),
}
# Of families whose classes do not take null for them.
OWN_HEADS: Mapping[str, Rule] = {
    "num_key_value_heads": config_json.RULES["num_attention_heads"],
    "head_dim": config_json.whole(config_json.SIZE),
}


def with_rope(raw: Mapping[str, Any], *, theta: float, positions: int) -> dict[str, Any]:
    """`raw` with `rope_parameters` as transformers 5 writes it, whichever keys it has.

    Before that they were `rope_theta` and `rope_scaling`, with `type` for `rope_type`.

    Args:
        theta: where it is not given.
        positions: max_position_embeddings, where that is not given.
    """
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    old_theta = raw.get(_THETA)
    context = raw.get("max_position_embeddings", positions)
    found = {name: value for name, value in raw.items() if name not in (_THETA, "rope_scaling")}
    found["rope_parameters"] = _standard(given, theta if old_theta is None else old_theta, context)
    return found


def with_ropes(raw: Mapping[str, Any], *, positions: int) -> dict[str, Any]:
    """`raw` with `rope_parameters` for each type of block, as Gemma 3 has them, whichever keys it has.

    Before they were `rope_local_base_freq` of blocks with a window, `rope_theta` and `rope_scaling` of
    the others.
    """
    old = {name: raw.get(name) for name in (_THETA, "rope_local_base_freq", "rope_scaling")}
    given, scaling = raw.get("rope_parameters") or {}, old["rope_scaling"] or {}
    found = {name: value for name, value in raw.items() if name not in old}
    if not isinstance(given, Mapping) or not isinstance(scaling, Mapping):
        return {**found, "rope_parameters": [given, scaling]}  # which no rule lets pass
    context = raw.get("max_position_embeddings", positions)
    full, local = (given.get(kind) or {} for kind in LAYER_TYPES)
    full = {**full, **scaling} if isinstance(full, Mapping) else full
    thetas = [default if old[name] is None else old[name] for name, default in _THETAS.items()]
    found["rope_parameters"] = {
        **given,
        FULL: _standard(full, thetas[0], context),
        SLIDING: _standard(local, thetas[1], context),
    }
    return found


def _standard(given: Any, theta: Any, context: Any) -> Any:
    """One table's parameters with what is left out; what is no dict is left to the rule."""
    if not isinstance(given, Mapping):
        return given
    kind = given.get("rope_type", given.get("type", "default"))
    full = {_THETA: theta, "rope_type": kind, **given}
    if kind == "llama3":
        full.setdefault("original_max_position_embeddings", context)
    return full


def key_heads(config: Any) -> int:
    """Heads of the keys; null: as many as of the queries."""
    own = config.num_key_value_heads
    return config.num_attention_heads if own is None else own


def completed(config: C) -> C:
    """A decoder's config with the heads that null stands for."""
    c: Any = config
    kv_heads = key_heads(c)
    head_dim = c.hidden_size // c.num_attention_heads if c.head_dim is None else c.head_dim
    return dataclasses.replace(c, num_key_value_heads=kv_heads, head_dim=head_dim)


def heads_fit(config: Any) -> list[str]:
    """What is wrong with grouped heads that are rotated."""
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    wrong = config_json.heads_fit(config) if width is None else []
    width = config.hidden_size // heads if width is None else width
    if groups is not None and heads % groups:
        wrong.append(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
        )
    if width % 2 or not width:
        wrong.append(f"head_dim {width} must be even, as rotary positions turn pairs")
    return wrong


def layer_types(config: Any, slides: Callable[[int], bool]) -> tuple[str, ...]:
    """The type of each block: as given, else by its number, from 0 on."""
    if config.layer_types is not None:
        return tuple(config.layer_types)
    return tuple(SLIDING if slides(n) else FULL for n in range(config.num_hidden_layers))


def types_fit(types: Sequence[str], blocks: int, window: int | None) -> list[str]:
    """What is wrong with the types of the blocks."""
    wrong = []
    if len(types) != blocks:
        wrong.append(f"layer_types has {len(types)} types for num_hidden_layers {blocks}")
    if SLIDING in types and window is None:
        wrong.append(f"layer_types has {SLIDING}, but there is no sliding_window")
    return wrong


def with_late_windows(config: C) -> C:
    """A config of Qwen's with the window that is used, and from `max_window_layers` on the types."""
    c: Any = config
    window = c.sliding_window if c.use_sliding_window else None
    types = layer_types(c, lambda n: window is not None and n >= c.max_window_layers)
    return dataclasses.replace(c, sliding_window=window, layer_types=types)


def late_windows_fit(config: Any) -> list[str]:
    """What is wrong with them."""
    c = with_late_windows(config)
    return types_fit(c.layer_types, c.num_hidden_layers, c.sliding_window)
