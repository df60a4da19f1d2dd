"""What a config may be: whole, each field of its type and between its bounds, and what goes together.

Every refusal is one line that says what was given, what is allowed and the nearest valid choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxft.base.nearest import nearest
from jaxft.base.nested import as_tuples
from jaxft.config_field import MANY, MOST_STEPS, Field, Need
from jaxft.config_fields import BY_NAME, FIELDS, SECTIONS
from jaxft.config_names import no_such_field
from jaxft.tasks.names import MANY_COLUMNS, METRICS, WRITTEN

_DURATION = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*(%|steps?|epochs?)?\s*")
_GROUP_SETTINGS = ("lr", "weight_decay", "schedule", "optimizer")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def validate(config: Mapping[str, Any] | ConfigDict) -> None:
    """Raise ValueError for the first field that is missing, unknown, or not what it may be."""
    flat = fields_of(config)
    for field in FIELDS:
        check_field(field, flat[field.name])
    for entry in flat["optim.lr_mult"]:
        _check_number("optim.lr_mult", "pattern, factor", entry)
    for entry in () if isinstance(weights := flat["train.class_weights"], str) else weights:
        _check_number("train.class_weights", "label, weight", entry)
    for entry in flat["optim.groups"]:
        _check_group(entry)
    for entry in flat["optim.unfreeze_at"]:
        _check_stage(entry)
    for entry in flat["data.rename"]:
        if not (_is_pair(entry) and all(isinstance(name, str) and name for name in entry)):
            raise ValueError(
                f"config.data.rename: {shown(entry)} is not an (old, new) pair of names"
            )
    for entry in flat["data.mixture"]:
        _check_mixed(entry)
    for entry in flat["model.depths"]:
        _check_depth(entry)
    _check_together(flat)


def fields_of(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """`{'optim.lr': …}`: all fields, and no others; lists as tuples.

    Raises:
      ValueError: a section was replaced, a field is missing or is not one of ours.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name not in SECTIONS:
            flat[name] = value
        elif isinstance(value, Mapping | ConfigDict):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            raise ValueError(
                f"config.{name}={shown(value)} replaces a section; set its fields one by one"
            )
    for name in flat:
        if name not in BY_NAME:
            raise ValueError(no_such_field(str(name)))
    missing = [field.name for field in FIELDS if field.name not in flat]
    if missing:
        more = f" and {len(missing) - 1} more fields are" if missing[1:] else " is"
        raise ValueError(
            f"config.{missing[0]}{more} missing; start from default_config() and set single fields, "
            "not a section"
        )
    return {name: as_tuples(value) for name, value in flat.items()}


def check_field(field: Field, value: Any) -> None:
    """Raise ValueError for a value that the field cannot have by itself."""
    said = f"config.{field.name}={shown(value)}"
    if (value is None and field.optional) or any(
        type(value) is type(also) and value == also for also in field.also
    ):
        return
    if not _has_type(field, value):
        several = field.form == "place" and isinstance(value, tuple | list)
        hint = "; several files are written as one text: 'a.csv,b.csv'" if several else ""
        raise ValueError(f"{said} is not {type_name(field)}{hint}")
    _check_texts(said, value)
    if field.choices and value not in field.choices:
        raise ValueError(f"{said} is not {field.allowed()}{nearest(str(value), field.choices)}")
    if field.kind in (int, float) and not field.low <= value <= field.high:
        raise ValueError(f"{said} must be {_limit(field, value)}")
    if field.form == "duration":
        duration_steps(field.name, value, steps_per_epoch=1, total_steps=1)
        if field.low > 0 and not _number_and_unit(value)[0]:
            raise ValueError(f"{said} must be more than 0; '100%' is once, at the end")
    elif field.form == "path" and (remote := is_remote(value)):
        raise ValueError(f"{said} is a remote place ({remote}); only local directories are written")
    elif field.name in ("model.path", "distill.teacher") and is_remote(value).startswith("http"):
        raise ValueError(
            f"{said} is an address; give a directory, here or s3://…, or the hub id alone: OWNER/NAME"
        )
    elif field.form in ("column", "pattern"):
        for entry in value:
            if not isinstance(entry, str) or not entry:
                hint = f"; write {str(entry)!r}" if isinstance(entry, int | float) else ""
                raise ValueError(f"config.{field.name}: {shown(entry)} is not text{hint}")
    if field.form in ("path", "place") and not value.isprintable():
        raise ValueError(f"{said} holds a line break or another control character")


def _has_type(field: Field, value: Any) -> bool:
    if field.form == "duration":
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if field.kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if field.kind is tuple:
        return isinstance(value, tuple | list)
    return isinstance(value, field.kind) and (field.kind is bool or not isinstance(value, bool))


def _limit(field: Field, value: float) -> str:
    """The bound that `value` breaks, and what else may be given."""
    if field.high >= MANY and value < field.low:
        words = f"at least {field.low:g}"
    elif MANY <= field.high < value < math.inf:
        words = f"at most {field.high:.10g}"
    else:
        words = f"between {field.low:g} and {field.high:.10g}"
    also = [f"{text!r}" for text in field.also] + ["none"] * field.optional
    negative = field.name == "optim.freeze_below" and value < 0
    return ", or ".join([words, *also]) + (
        "; blocks are counted from the embeddings up, never from the head" if negative else ""
    )


def _check_texts(said: str, value: Any) -> None:
    """Texts at any depth of a list: what can neither be stored nor printed is refused."""
    if isinstance(value, str):
        if reason := unusable(value):
            raise ValueError(f"{said} {reason}")
    elif isinstance(value, tuple | list):
        for entry in value:
            _check_texts(said, entry)
    elif isinstance(value, Mapping | ConfigDict):
        for entry in (*value, *value.values()):
            _check_texts(said, entry)


def unusable(text: str) -> str:
    """Why a text can be no name, path or pattern; '' when it can."""
    if "\0" in text:
        return "holds a null character"
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8 become surrogates
        return "is not UTF-8 text"
    return ""


def is_remote(text: str) -> str:
    """'gs://' of 'gs://bucket/run'; '' of a local path."""
    found = _REMOTE.match(text)
    return found[0] if found else ""


def _check_number(name: str, words: str, entry: Any) -> None:
    """An entry of a list of pairs, of which `words` name the two parts: 'pattern, factor'."""
    if not (_is_pair(entry) and isinstance(entry[0], str)):
        also = "".join(f", nor {text!r}" for text in BY_NAME[name].also)
        raise ValueError(f"config.{name}: {shown(entry)} is not a ({words}) pair{also}")
    (of, number), second = entry, words.split(", ")[1]
    if type(number) not in (int, float) or not 0 <= number <= MANY:
        raise ValueError(
            f"config.{name}: the {second} {shown(number)} of {shown(of)} is not a number between 0 and {MANY}"
        )


def _check_group(entry: Any) -> None:
    if not (
        _is_pair(entry) and isinstance(entry[0], str) and isinstance(entry[1], Mapping | ConfigDict)
    ):
        raise ValueError(f"config.optim.groups: {shown(entry)} is not a (pattern, settings) pair")
    pattern, settings = entry
    for name, value in settings.items():
        if name not in _GROUP_SETTINGS:
            raise ValueError(
                f"config.optim.groups: {shown(pattern)} sets {shown(name)}; there are "
                f"{', '.join(_GROUP_SETTINGS)}{nearest(str(name), _GROUP_SETTINGS)}"
            )
        # Allowed is what the run's own field of that name allows.
        field = BY_NAME[f"optim.{name}"]
        try:
            check_field(field, value)
        except ValueError as error:
            allowed = field.allowed() if field.choices else f"a number {field.allowed()}"
            raise ValueError(
                f"config.optim.groups: {name}={shown(value)} of {shown(pattern)} is not {allowed}"
            ) from error


def _check_stage(entry: Any) -> None:
    if not _is_pair(entry):
        raise ValueError(
            f"config.optim.unfreeze_at: {shown(entry)} is not a (duration, depths) pair"
        )
    at, depths = entry
    duration_steps("optim.unfreeze_at", at, steps_per_epoch=1, total_steps=1)
    if not (isinstance(depths, tuple | list) and depths and all(type(d) is int for d in depths)):
        raise ValueError(
            f"config.optim.unfreeze_at: {shown(depths)} is not a list of depths, such as (2, 3)"
        )


def _check_mixed(entry: Any) -> None:
    if not (_is_pair(entry) and isinstance(entry[0], str) and entry[0]):
        raise ValueError(f"config.data.mixture: {shown(entry)} is not a (source, weight) pair")
    if type(entry[1]) not in (int, float) or not 0 < entry[1] <= MANY:
        raise ValueError(
            f"config.data.mixture: the weight {shown(entry[1])} of {shown(entry[0])} is not a number above 0"
        )


def _check_depth(entry: Any) -> None:
    if not (_is_pair(entry) and isinstance(entry[0], str)):
        raise ValueError(f"config.model.depths: {shown(entry)} is not a (pattern, depth) pair")
    if type(entry[1]) is not int or not 0 <= entry[1] <= MANY:
        raise ValueError(
            f"config.model.depths: the depth {shown(entry[1])} of {shown(entry[0])} is not a whole "
            f"number between 0 and {MANY}"
        )


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple | list) and len(entry) == 2


def _check_together(flat: Mapping[str, Any]) -> None:
    """What each field allows by itself, but not beside another."""
    if flat["train.accumulate"] > flat["train.batch_size"]:
        raise ValueError(
            f"config.train.accumulate={flat['train.accumulate']} cuts a batch of "
            f"config.train.batch_size={flat['train.batch_size']} examples into more parts than it has"
        )
    if (metric := flat["eval.metric"]) not in (metrics := METRICS[flat["task"]]):
        raise ValueError(
            f"config.eval.metric={shown(metric)} is no metric of config.task={flat['task']!r}, which "
            f"has {', '.join(metrics)}{nearest(metric, metrics)}"
        )
    if flat["data.mixture"] and flat["data.train"]:
        raise ValueError(
            f"config.data.mixture and config.data.train={shown(flat['data.train'])} are both given; "
            "name all training data in the mixture"
        )
    folds, fold = flat["data.folds"], flat["data.fold"]
    if folds is not None and fold >= folds:
        raise ValueError(f"config.data.fold={fold} is none of {folds} folds, 0 to {folds - 1}")
    if folds is not None and flat["data.eval"]:
        raise ValueError(
            f"config.data.folds={folds} cuts the training data into folds, but "
            f"config.data.eval={shown(flat['data.eval'])} names the evaluation data; give one of them"
        )
    if WRITTEN.keys() <= metrics.keys() and metric in WRITTEN and not flat["eval.generate"]:
        raise ValueError(
            f"config.eval.metric={shown(metric)} is of generated texts: say of how many rows by "
            "config.eval.generate, as 100"
        )
    for name, default in (("length_penalty", 1.0), ("early_stopping", False)):
        if flat[f"eval.{name}"] != default and flat["eval.beams"] == 1:
            raise ValueError(
                f"config.eval.{name}={flat[f'eval.{name}']} is of beams, and config.eval.beams is 1"
            )
    if len(flat["data.text"]) > 2 and flat["task"] not in MANY_COLUMNS:
        raise ValueError(f"config.data.text={shown(flat['data.text'])} names more than two columns")
    for field in FIELDS:
        for need in field.needs:
            _check_need(field, need, flat[field.name], flat[need.other])


def _check_need(field: Field, need: Need, value: Any, other: Any) -> None:
    asks = value in need.when if need.when else value != field.default
    if asks and not (other in need.values if need.values else other):
        wanted = f"={' or '.join(map(repr, need.values))}, not" if need.values else ", which is"
        raise ValueError(
            f"config.{field.name}={shown(value)} needs config.{need.other}{wanted} {shown(other)}"
        )


def duration_steps(
    field: str, value: str | int | float, *, steps_per_epoch: float, total_steps: int
) -> int:
    """A duration in optimizer updates: '100' or '100 steps', '2 epochs', '10%' or 0.1 of the run.

    Raises:
      ValueError: neither of the three, or more steps than can be counted.
    """
    number, unit = _number_and_unit(value)
    if unit.startswith("epoch"):
        steps = number * steps_per_epoch
    elif unit.startswith("step") or (not unit and number % 1 == 0 and "." not in str(value)):
        steps = number
        unit = unit if number % 1 == 0 else "bad"  # 1.5 steps; infinity has no remainder
    elif unit in ("", "%") and number <= (100 if unit else 1):
        # Rounded up, as the Hugging Face Trainer does with its warm-up ratio.
        return math.ceil(round(number / (100 if unit else 1) * total_steps, 6))
    else:
        unit = "bad"
    if unit == "bad":
        raise ValueError(
            f"config.{field}={shown(value)} is not a duration: give '100 steps', '2 epochs', or '10%' "
            "of the run"
        )
    if steps > MOST_STEPS:
        raise ValueError(f"config.{field}={shown(value)} is more than {MOST_STEPS} steps")
    return round(steps)


def _number_and_unit(value: Any) -> tuple[float, str]:
    """(2.0, 'epochs'); the unit of what is no duration is 'bad'."""
    usable = isinstance(value, str | int | float) and len(shown(value)) < _SHOWN
    match = _DURATION.fullmatch(str(value)) if usable else None
    return (float(match[1] + (match[2] or "")), match[3] or "") if match else (0.0, "bad")


_SHOWN = 80


def shown(value: Any) -> str:
    """`repr` for a message: short, on one line, whatever the object of a user's file is."""
    try:  # an int of 5,000 digits has no text, and a user's object any that it likes
        text = " ".join(repr(value).split("\n"))
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) < _SHOWN else text[: _SHOWN - 2] + "…"


def type_name(field: Field) -> str:
    """'a number (or none)' of a field, for a message."""
    if field.form == "duration":
        return f"a duration: give {field.allowed()}"
    names = {
        bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"
    }  # fmt: skip
    also = [repr(value) for value in field.also if isinstance(value, str)]
    also += ["none"] * field.optional
    return names[field.kind] + (f" (or {' or '.join(also)})" if also else "")
