"""Every field of an experiment, once: its default, its unit, and what changing it costs.

A config file is Python with `get_config(arg=None)` that starts from `default_config()` and changes a
few fields; `terminal/config_file.py` reads it and the command line. Here are the fields and what they
may be. This is not a place for logic: below the commands, functions take plain arguments.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

_DURATIONS = ("optim.warmup", "optim.unfreeze_every", "eval.every")
_CHOICES = {
    "task": ("text_classification", "image_classification"),
    "model.dtype": ("float32", "bfloat16"),
    "data.augment": ("none", "flip", "crop_flip"),
    "optim.schedule": ("linear", "cosine", "constant"),
    "optim.decay_towards": ("zero", "pretrained"),
    "optim.unfreeze": ("none", "top_down", "bottom_up", "chain_thaw", "lp_ft", "explicit"),
    "eval.metric": ("accuracy", "f1_macro", "f1_micro", "mcc", "loss"),
    "parallel.mode": ("auto", "jit", "shard", "pmap"),
}


def default_config() -> ConfigDict:
    """The whole experiment with its defaults. `None` means: decided from the data or the checkpoint."""
    c = ConfigDict(
        type_safe=False
    )  # types are checked by `validate`, which can say what is allowed
    c.task = "text_classification"  # or 'image_classification'

    c.model = ConfigDict(type_safe=False)
    c.model.path = ""  # directory in Hugging Face format, or a hub id (the only use of the network)
    c.model.scratch = False  # True: take the architecture only and initialise every parameter
    c.model.dropout = None  # float; None keeps the checkpoint's own rates
    c.model.dtype = (
        "float32"  # compute type; 'bfloat16' halves activations, parameters stay float32
    )
    c.model.remat = (
        False  # recompute each block in the backward pass: less memory, about 30 % slower
    )

    c.data = ConfigDict(type_safe=False)
    c.data.train = ""  # FILE.csv|.tsv|.jsonl|.parquet, image folder, saved dataset, hf:…, tfds:…
    c.data.eval = ""  # the same; empty: a stratified share of the training data is held out
    c.data.test = ""  # the same; used once, at the end, with the best checkpoint
    c.data.dir = ""  # data_dir of TFDS
    c.data.eval_fraction = 0.1  # share of the training rows held out when data.eval is empty
    c.data.text = ()  # one or two text columns; empty: found by their usual names, and said so
    c.data.label = ""  # label column; empty: found by its usual names, and said so
    c.data.classes = ()  # keep only these label names; empty: all
    c.data.examples_per_class = None  # int; keep so many training rows a class (seeded); None: all
    c.data.max_length = None  # tokens; longer texts are cut; None: the checkpoint's own limit
    c.data.pack = True  # put several short texts into one row: same result, little padding
    c.data.max_shapes = 4  # distinct padded batch shapes, each one compilation
    c.data.augment = "none"  # images: 'flip' (left-right) or 'crop_flip' (random resized crop too)
    c.data.cache = ""  # where tokenised text is kept; empty: WORKDIR/cache
    c.data.workers = 1  # threads that prepare batches; more helps when images are decoded

    c.train = ConfigDict(type_safe=False)
    c.train.batch_size = 32  # examples of one optimizer update, over all devices and microbatches
    c.train.epochs = 3.0  # length of the run; or give train.steps
    c.train.steps = None  # optimizer updates
    c.train.seed = 0  # data order, dropout, the new head
    c.train.accumulate = 1  # microbatches of one update: less memory, the same result
    c.train.label_smoothing = 0.0  # share of the target spread over all classes
    c.train.log_every = 10  # steps between logged training metrics
    c.train.compile_cache = "~/.cache/jaxft"  # compiled programs, reused by later runs; empty: none

    c.optim = ConfigDict(type_safe=False)
    c.optim.lr = (
        5e-5  # peak learning rate of the head; layer_decay and lr_mult scale it per parameter
    )
    c.optim.schedule = "linear"  # after warm-up: 'linear' or 'cosine' to end_lr, or 'constant'
    c.optim.warmup = "10%"  # duration: '100 steps', '1 epochs', '10%' of the run
    c.optim.end_lr = 0.0  # share of lr at the last step
    c.optim.weight_decay = 0.01  # decoupled; never on biases and norms, nor on frozen parameters
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.clip = 1.0  # global norm of the trainable gradients; None: no clipping
    c.optim.layer_decay = (
        1.0  # each block further from the head learns this factor slower (0.65–0.95)
    )
    c.optim.freeze_below = None  # int k: the embeddings and the first k blocks stay as they are
    c.optim.frozen = ()  # patterns of parameter paths that stay as they are (see `describe`)
    c.optim.lr_mult = ()  # ((pattern, factor), …): first match wins, on top of layer_decay
    c.optim.groups = ()  # ((pattern, {'lr': …, 'weight_decay': …, 'schedule': …}), …): what they name
    c.optim.decay_towards = "zero"  # 'pretrained': L2-SP; keeps one more copy of what is trained
    c.optim.unfreeze = "none"  # plan of gradual unfreezing; 'lp_ft' is the head first, then all
    c.optim.unfreeze_every = "1 epochs"  # duration between two stages of the plan
    c.optim.unfreeze_at = ()  # for 'explicit': ((duration, (depth, …)), …), see `describe` for depths

    c.eval = ConfigDict(type_safe=False)
    c.eval.every = "1 epochs"  # duration between evaluations; the last step always has one
    c.eval.batch_size = 64  # examples
    c.eval.metric = "accuracy"  # chooses the best checkpoint and stops early; 'loss' is minimised
    c.eval.patience = None  # int; stop after so many evaluations without improvement; None: never
    c.eval.min_delta = 0.0  # what counts as an improvement of the metric

    c.parallel = ConfigDict(type_safe=False)
    c.parallel.mode = (
        "auto"  # 'jit' one device; 'shard' jit over a mesh; 'pmap'; auto: jit or shard
    )
    c.parallel.data = -1  # devices along the batch; -1: all that are left
    c.parallel.fsdp = 1  # devices that share the parameters and the batch
    c.parallel.tensor = 1  # devices that share each matrix product

    c.checkpoint = ConfigDict(type_safe=False)
    c.checkpoint.every_steps = 500  # also saved at every evaluation and on SIGTERM
    c.checkpoint.keep = 1  # latest checkpoints kept, besides the best one

    c.log = ConfigDict(type_safe=False)
    c.log.tensorboard = True  # event files in WORKDIR/tensorboard
    c.lock()
    return c


# Fields that are None by default have their type here; all others have the type of their default.
OPTIONAL_TYPES: dict[str, type] = {
    "model.dropout": float,
    "data.examples_per_class": int,
    "data.max_length": int,
    "train.epochs": float,
    "train.steps": int,
    "optim.clip": float,
    "optim.freeze_below": int,
    "eval.patience": int,
}
# (field, lowest, highest): inclusive bounds that a wrong unit or a slipped digit breaks.
_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("model.dropout", 0, 0.99),
    ("data.eval_fraction", 0.001, 0.9),
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
    ("eval.batch_size", 1, float("inf")),
    ("eval.patience", 1, float("inf")),
    ("eval.min_delta", 0, float("inf")),
    ("checkpoint.every_steps", 1, float("inf")),
    ("checkpoint.keep", 1, float("inf")),
)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """`{'optim.lr': …}` of a nested config; tuples and None are leaves."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update({f"{key}.{name}": leaf for name, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> ConfigDict:
    """The nested config that `flatten` took apart."""
    config = default_config()
    for field, value in flat.items():
        section, _, name = field.rpartition(".")
        (config[section] if section else config)[name] = value
    return config


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Plain JSON values of a config; `from_json` reads them back."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(raw: Mapping[str, Any]) -> ConfigDict:
    """The config a run directory holds. Unknown fields raise ValueError (another version's run)."""
    values = {field: as_tuples(value) for field, value in flatten(raw).items()}
    known = flatten(default_config())
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"config.json has fields this version of jaxft does not know: {', '.join(unknown)}"
        )
    return unflatten({**known, **values})


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """'field: old -> new' for every field that differs."""
    before, after = flatten(to_json(old)), flatten(to_json(new))
    return [f"{f}: {before[f]!r} -> {after[f]!r}" for f in before if before[f] != after[f]]


def duration_steps(
    field: str, value: str | int | float, *, steps_per_epoch: float, total_steps: int
) -> int:
    """A duration in optimizer updates: '100' or '100 steps', '2 epochs', '10%' or 0.1 of the run.

    Raises:
      ValueError: neither of the three.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(%|steps?|epochs?)?\s*", str(value))
    try:
        number, unit = float(match[1]), match[2] or ""  # type: ignore[index]
    except (TypeError, ValueError):
        unit, number = "bad", 0.0
    if unit.startswith("step") or (not unit and number == int(number) and "." not in str(value)):
        return int(number)
    if unit.startswith("epoch"):
        return round(number * steps_per_epoch)
    if unit in ("", "%") and number <= (100 if unit else 1):
        # Rounded up, as the Hugging Face Trainer does with its warm-up ratio.
        return math.ceil(round(number / (100 if unit else 1) * total_steps, 6))
    raise ValueError(
        f"config.{field}={value!r} is not a duration: give '100 steps', '2 epochs', or '10%' of the run"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' when something is close, else ''."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
    if bool(flat["optim.unfreeze_at"]) != (flat["optim.unfreeze"] == "explicit"):
        raise ValueError(
            "config.optim.unfreeze='explicit' and config.optim.unfreeze_at go together"
        )
    if flat["optim.groups"] and flat["optim.unfreeze"] != "none":
        raise ValueError("config.optim.groups and config.optim.unfreeze cannot be combined")
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


def _check_groups(groups: Any) -> None:
    known = ("lr", "weight_decay", "schedule")
    for entry in groups:
        if not (
            isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], Mapping)
        ):
            raise ValueError(f"config.optim.groups: {entry!r} is not a (pattern, settings) pair")
        for name in entry[1]:
            if name not in known:
                hint = nearest(name, known)
                raise ValueError(
                    f"config.optim.groups: {entry[0]!r} sets {name!r}; there are {', '.join(known)}{hint}"
                )


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


def as_tuples(value: Any) -> Any:
    return tuple(as_tuples(v) for v in value) if isinstance(value, list | tuple) else value
