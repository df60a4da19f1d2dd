"""A config from its file and the command line: `FILE[:arg]` and `--config.a.b=value`."""

from __future__ import annotations

import ast
import importlib.util
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxft.config import ConfigDict, as_tuples, default_config, flatten, nearest, unflatten
from jaxft.config_check import OPTIONAL_TYPES, field_type, no_such_field, type_name, validate

# One of each pair is set; the one given closest to the command line wins (see `_settle_pairs`).
_EITHER = (("train.epochs", "train.steps"),)


def load(file_and_arg: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Config of `FILE[:arg]` with `(dotted field, text)` overrides, checked.

    Raises:
      ValueError: the file, a field or a value is not usable; one line that says which and what is.
    """
    path, _, arg = file_and_arg.partition(":")
    defaults = flatten(default_config())
    config = _run_file(Path(path), arg or None)
    from_file = flatten(config)
    given = {}
    for field, text in overrides:
        given[field] = parse_value(field, text)
    values = _settle_pairs(defaults, from_file, given)
    config = unflatten({**values, **given})
    validate(config)
    return config


def parse_value(field: str, text: str) -> Any:
    """The value that `--config.FIELD=TEXT` means, by the type of the field.

    >>> parse_value('optim.lr', '2e-5'), parse_value('train.steps', 'none')
    (2e-05, None)
    >>> parse_value('data.text', 'question,answer')
    ('question', 'answer')
    """
    kind = field_type(field)
    if text.lower() == "none" and field in OPTIONAL_TYPES:
        return None
    if kind is bool:
        if text.lower() in ("true", "1", "yes", "false", "0", "no"):
            return text.lower() in ("true", "1", "yes")
    elif kind is str:
        return text
    elif kind is tuple:
        return _parse_tuple(field, text)
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"config.{field}={text!r} is not {type_name(field)}")


def _run_file(path: Path, arg: str | None) -> ConfigDict:
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("configs")
        hint = nearest(path.name, [p.name for p in folder.glob("*.py")])
        raise ValueError(f"no config file {str(path)!r}{hint}")
    spec = importlib.util.spec_from_file_location(f"jaxft_config_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError("it has no function get_config()")
        config = module.get_config() if arg is None else module.get_config(arg)
        if not isinstance(config, ConfigDict):
            raise ValueError(
                f"get_config() gives {config!r:.40}; does it end with 'return config'?"
            )
    except Exception as error:  # whatever a user's file raises: said in one line, with its place
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        place = f":{frames[-1].lineno}" if frames else ""
        unknown = re.match(r"'?Key \"(\w+)\" does not exist", str(error))  # of a locked ConfigDict
        reason = no_such_field(unknown[1]) if unknown else " ".join(str(error).split())
        raise ValueError(f"config file {path}{place}: {reason or type(error).__name__}") from error
    return config


def _settle_pairs(
    defaults: Mapping[str, Any], from_file: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Of train.epochs and train.steps keep the one set closest to the command line."""
    values = {field: as_tuples(value) for field, value in from_file.items()}
    for pair in _EITHER:
        on_line = [f for f in pair if given.get(f) is not None]
        in_file = [f for f in pair if from_file[f] is not None and from_file[f] != defaults[f]]
        chosen = on_line or in_file
        if len(chosen) > 1:
            both = " and ".join(f"config.{f}" for f in pair)
            raise ValueError(f"{both} are both set; a run has one length, give one of them")
        if chosen:
            values.update({f: None for f in pair if f not in chosen})
        elif all(given.get(f, values[f]) is None for f in pair):
            raise ValueError(f"neither {' nor '.join(f'config.{f}' for f in pair)} is set")
    return values


def _parse_tuple(field: str, text: str) -> tuple:
    """('a', 'b') written as Python, or the plain form a,b."""
    if not text.strip():
        return ()
    if text.lstrip()[0] in "([":
        try:
            return as_tuples(ast.literal_eval(text))
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"config.{field}={text!r} is not a list: {error}") from error
    return tuple(part.strip() for part in text.split(","))
