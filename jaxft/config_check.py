"""What the fields of a config may be: types, choices, bounds, and what goes together.

Every refusal is one line that says what was given, what is allowed and the nearest valid choice.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from jaxft.config import ConfigDict, default_config, duration_steps, flatten, nearest

_DURATIONS = ("optim.warmup", "optim.unfreeze_every", "optim.average_from", "eval.every")
_CHOICES = {
    "task": ("text_classification", "image_classification"),
    "model.dtype": ("float32", "bfloat16"),
    "data.augment": ("none", "flip", "crop_flip"),
    "data.on_bad_row": ("error", "drop"),
    "optim.optimizer": ("adamw", "sgd", "lion"),
    "optim.schedule": ("linear", "cosine", "constant"),
    "optim.decay_towards": ("zero", "pretrained"),
    "optim.unfreeze": ("none", "top_down", "bottom_up", "chain_thaw", "lp_ft", "explicit"),
    "optim.average": ("none", "ema", "swa"),
    "eval.metric": ("accuracy", "f1_macro", "f1_micro", "mcc", "loss"),
    "parallel.mode": ("auto", "jit", "shard", "pmap"),
}
# Fields that are None by default have their type here; all others have the type of their default.
OPTIONAL_TYPES: dict[str, type] = {
    "model.dropout": float,
    "data.examples_per_class": int,
    "data.max_length": int,
    "train.epochs": float,
    "train.steps": int,
    "optim.clip": float,
    "optim.freeze_below": int,
    "optim.sam_radius": float,
    "optim.wise_ft": float,
    "eval.patience": int,
}
# (field, lowest, highest): inclusive bounds that a wrong unit or a slipped digit breaks.
_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("model.dropout", 0, 0.99),
    ("data.eval_fraction", 0.001, 0.9),
    ("data.split_seed", 0, 2**31 - 1),
    ("data.examples_per_class", 1, float("inf")),
    ("data.max_length", 4, float("inf")),
    ("data.max_shapes", 1, 64),
    ("data.workers", 1, 256),
    ("train.batch_size", 1, float("inf")),
    ("train.epochs", 1e-9, float("inf")),
    ("train.steps", 1, float("inf")),
    ("train.seed", 0, 2**31 - 1),
    ("train.accumulate", 1, float("inf")),
    ("train.label_smoothing", 0, 0.99),
    ("train.log_every", 1, float("inf")),
    ("optim.lr", 0, 10),
    ("optim.end_lr", 0, 1),
    ("optim.weight_decay", 0, 10),
    ("optim.b1", 0, 0.9999999),
    ("optim.b2", 0, 0.9999999),
    ("optim.eps", 1e-20, 1),
    ("optim.clip", 1e-12, float("inf")),
    ("optim.layer_decay", 1e-3, 1),
    ("optim.freeze_below", 0, float("inf")),
    ("optim.sam_radius", 1e-6, 10),
    ("optim.average_decay", 0, 0.9999999),
    ("optim.wise_ft", 0, 1),
    ("eval.batch_size", 1, float("inf")),
    ("eval.patience", 1, float("inf")),
    ("eval.min_delta", 0, float("inf")),
    ("checkpoint.every_steps", 1, float("inf")),
    ("checkpoint.keep", 1, float("inf")),
)


def validate(config: ConfigDict) -> None:
    """Raise ValueError for the first value of the wrong type, choice or range."""
    flat = flatten(config)
    for field, value in flat.items():
        if not _has_type(field, value):
            raise ValueError(f"config.{field}={value!r} is not {type_name(field)}")
    for field, allowed in _CHOICES.items():
        if flat[field] not in allowed:
            hint = nearest(str(flat[field]), allowed)
            raise ValueError(
                f"config.{field}={flat[field]!r} is not one of {', '.join(allowed)}{hint}"
            )
    for field, low, high in _BOUNDS:
        if flat[field] is not None and not low <= flat[field] <= high:
            limit = f"between {low} and {high}" if math.isfinite(high) else f"at least {low}"
            choice = ", or none" if field in OPTIONAL_TYPES else ""
            raise ValueError(f"config.{field}={flat[field]!r} must be {limit}{choice}")
    for field in _DURATIONS:
        duration_steps(field, flat[field], steps_per_epoch=1, total_steps=1)
    for field in ("data.text", "data.classes", "optim.frozen"):
        for entry in flat[field]:
            if not isinstance(entry, str):
                raise ValueError(f"config.{field}: {entry!r} is not text; write {str(entry)!r}")
    for entry in flat["optim.lr_mult"]:
        _check_multiplier(entry)
    _check_groups(flat["optim.groups"])
    for entry in flat["optim.unfreeze_at"]:
        if not (isinstance(entry, tuple | list) and len(entry) == 2):
            raise ValueError(
                f"config.optim.unfreeze_at: {entry!r} is not a (duration, depths) pair"
            )
    _check_together(flat)
    if len(flat["data.text"]) > 2:
        raise ValueError(f"config.data.text={flat['data.text']!r} names more than two columns")


def _check_multiplier(entry: Any) -> None:
    if not (isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str)):
        raise ValueError(f"config.optim.lr_mult: {entry!r} is not a (pattern, factor) pair")
    pattern, factor = entry
    if type(factor) not in (int, float) or not 0 <= factor < math.inf:
        raise ValueError(
            f"config.optim.lr_mult: the factor {factor!r} of {pattern!r} is not a number of at least 0"
        )


def _check_together(flat: Mapping[str, Any]) -> None:
    """What each field allows by itself, but not beside another."""
    if bool(flat["optim.unfreeze_at"]) != (flat["optim.unfreeze"] == "explicit"):
        raise ValueError(
            "config.optim.unfreeze='explicit' and config.optim.unfreeze_at go together"
        )
    if flat["optim.groups"] and flat["optim.unfreeze"] != "none":
        raise ValueError("config.optim.groups and config.optim.unfreeze cannot be combined")
    if flat["optim.groups"] and flat["optim.decay_towards"] != "zero":
        raise ValueError("config.optim.groups and config.optim.decay_towards cannot be combined")
    if not flat["optim.schedule_free"]:
        return
    for field, needed in (
        ("schedule", "constant"), ("average", "none"), ("unfreeze", "none"), ("groups", ())
    ):  # fmt: skip
        if flat[f"optim.{field}"] != needed:
            raise ValueError(
                f"config.optim.schedule_free needs config.optim.{field}={needed!r}, "
                f"not {flat[f'optim.{field}']!r}"
            )
    if flat["optim.optimizer"] == "lion" or flat["optim.b1"] == 0:
        raise ValueError(
            "config.optim.schedule_free needs config.optim.optimizer 'adamw' or 'sgd', and a b1 above 0"
        )


def _check_groups(groups: Any) -> None:
    for entry in groups:
        if not (
            isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], Mapping)
        ):
            raise ValueError(f"config.optim.groups: {entry!r} is not a (pattern, settings) pair")
        pattern, settings = entry
        for name, value in settings.items():
            _check_setting(pattern, name, value)


def _check_setting(pattern: str, name: str, value: Any) -> None:
    """One setting of a group: allowed is what the run's own field of that name allows."""
    known = ("lr", "weight_decay", "schedule", "optimizer")
    if name not in known:
        raise ValueError(
            f"config.optim.groups: {pattern!r} sets {name!r}; there are {', '.join(known)}"
            f"{nearest(name, known)}"
        )
    field, allowed = f"optim.{name}", ""
    if field in _CHOICES:
        right, allowed = value in _CHOICES[field], f"one of {', '.join(_CHOICES[field])}"
    else:
        low, high = next((low, high) for bound, low, high in _BOUNDS if bound == field)
        right, allowed = type(value) in (int, float), f"a number between {low} and {high}"
        right = right and low <= value <= high
    if not right:
        raise ValueError(f"config.optim.groups: {name}={value!r} of {pattern!r} is not {allowed}")


def field_type(field: str) -> type:
    known = flatten(default_config())
    if field not in known:
        sections = {f.rpartition(".")[0] for f in known} - {""}
        if field in sections:
            inside = ", ".join(f for f in known if f.startswith(f"{field}."))
            raise ValueError(f"config.{field} is a section; set one of its fields: {inside}")
        raise ValueError(no_such_field(field))
    return OPTIONAL_TYPES.get(field) or type(known[field])


def no_such_field(name: str) -> str:
    """Of a dotted field, or of its last part alone, which is all that a locked ConfigDict tells."""
    known = list(flatten(default_config()))
    hint = nearest(name, known) if "." in name else ""
    if not hint:
        last = {field: field.rpartition(".")[2] for field in known}
        close = difflib.get_close_matches(
            name.rpartition(".")[2], set(last.values()), n=1, cutoff=0.5
        )
        fields = " or ".join(repr(field) for field in known if last[field] in close)
        hint = f" (did you mean {fields}?)" if fields else ""
    return f"config.{name} does not exist{hint}"


def _has_type(field: str, value: Any) -> bool:
    kind = field_type(field)
    if value is None:
        return field in OPTIONAL_TYPES
    if field in _DURATIONS:
        return isinstance(value, str | int | float)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, tuple | list)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def type_name(field: str) -> str:
    kind = field_type(field)
    names = {
        bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"
    }  # fmt: skip
    return names[kind] + (" (or none)" if field in OPTIONAL_TYPES else "")
