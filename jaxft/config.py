"""The config of an experiment: made from its fields, changed, taken apart, kept as JSON.

A config file is Python with `get_config(arg=None)`, whose config is `default_config()` with some fields
changed, one by one or by `override`; `terminal/config_file.py` reads it and the command line. The
fields themselves are in `config_fields.py`; `config_check.py` says what goes together. This is not a
place for logic: below the commands, functions take plain arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxft.base.nearest import nearest
from jaxft.base.nested import as_tuples, flatten
from jaxft.config_check import duration_steps, validate
from jaxft.config_fields import BY_NAME, FIELDS, SECTIONS
from jaxft.config_names import field_named

__all__ = [
    "ConfigDict", "choose", "default_config", "duration_steps", "from_json", "override",
    "to_json", "unflatten",
]  # fmt: skip


def default_config() -> ConfigDict:
    """The whole experiment with its defaults. `None` means: decided from the data or the checkpoint."""
    config = ConfigDict(type_safe=False)  # `validate` checks types, and can say what is allowed
    for section in SECTIONS:
        config[section] = ConfigDict(type_safe=False)
    for field in FIELDS:
        _set(config, field.name, field.default)
    config.lock()
    return config


def override(config: ConfigDict, *changes: Mapping[str, Any]) -> ConfigDict:
    """A copy with fields replaced, so that recipes are data that can be combined.

    >>> override(default_config(), {'optim.lr': 1e-4}, {'optim': {'clip': None}}).optim.lr
    0.0001

    Args:
      changes: values by field, dotted or nested; of later ones the value counts. train.epochs and
        train.steps take each other's place.

    Raises:
      ValueError: a field that does not exist, or both lengths in one of the changes.
    """
    values = flatten(config)
    for change in changes:
        given = flatten(change)
        for name in given:
            field_named(name)  # refuses what is no field, naming the nearest
        lengths = [name for name in ("train.epochs", "train.steps") if given.get(name) is not None]
        if len(lengths) == 2:
            raise ValueError("train.epochs and train.steps are both given; a run has one length")
        if lengths:
            values |= {"train.epochs": None, "train.steps": None}
        values |= given
    return unflatten(values)


def choose(options: Mapping[str, Any], name: str) -> Any:
    """`options[name]`, for the argument of a config file.

    >>> choose({'full': {}, 'head': {'optim.freeze_below': 'all'}}, 'head')
    {'optim.freeze_below': 'all'}

    Raises:
      ValueError: there is no such option; names the nearest.
    """
    if name not in options:
        raise ValueError(f"{name!r} is not one of {', '.join(options)}{nearest(name, options)}")
    return options[name]


def unflatten(flat: Mapping[str, Any]) -> ConfigDict:
    """The nested config that `flatten` took apart."""
    config = default_config()
    for field, value in flat.items():
        _set(config, field, value)
    return config


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Plain JSON values of a config; `from_json` reads them back."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(raw: Mapping[str, Any]) -> ConfigDict:
    """The config a run directory holds.

    Raises:
      ValueError: unknown fields (another version's run), or values that no config can have.
    """
    values = flatten(raw)
    unknown = sorted(set(values) - set(BY_NAME))
    if unknown:
        raise ValueError(
            f"config.json has fields this version of jaxft does not know: {', '.join(unknown)}"
        )
    # Before the field existed, what is held out followed train.seed: such a run keeps its rows.
    values.setdefault("data.split_seed", values.get("train.seed", 0))
    config = unflatten(values)
    try:
        validate(config)
    except ValueError as error:
        raise ValueError(f"config.json is not what jaxft wrote: {error}") from error
    return config


def _set(config: ConfigDict, field: str, value: Any) -> None:
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = as_tuples(value)
