"""A config from its file and the command line: `FILE[:arg]` and `--config.a.b=value`; files of its kind."""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.util
import inspect
import linecache
import numbers
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from jaxft.base.nearest import nearest
from jaxft.base.nested import as_tuples, flatten
from jaxft.config import ConfigDict, default_config, unflatten
from jaxft.config_check import fields_of, is_remote, shown, type_name, unusable, validate
from jaxft.config_names import field_named, no_such_field

_T = TypeVar("_T")
# One of each pair is set; the one given closest to the command line wins (see `_settle_pairs`).
_EITHER = (("train.epochs", "train.steps"),)
_SLOW_SECONDS = 5.0  # after which a config file that is still running is named


def load(file_and_arg: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Config of `FILE[:arg]` with `(dotted field, text)` overrides, checked.

    Raises:
      ValueError: the file, a field or a value is not usable; one line that says which and what is.
      KeyboardInterrupt: while the file runs; says in which line.
    """
    whole = Path(file_and_arg)
    name, _, arg = (file_and_arg, "", "") if whole.is_file() else file_and_arg.partition(":")
    if remote := is_remote(file_and_arg):
        raise ValueError(f"--config {file_and_arg}: config files are local, not {remote}")
    from_file = run_file(Path(name), arg or None, "get_config", _fields)
    given = {field: parse_value(field, text) for field, text in overrides}
    values = _settle_pairs(flatten(default_config()), from_file, given)
    config = unflatten({**values, **given})
    validate(config)
    return config


def parse_value(name: str, text: str) -> Any:
    """The value that `--config.NAME=TEXT` means, by the type of the field.

    >>> parse_value('optim.lr', '2e-5'), parse_value('train.steps', 'none')
    (2e-05, None)
    >>> parse_value('data.text', 'question,answer')
    ('question', 'answer')
    """
    field = field_named(name)
    if reason := unusable(text):
        raise ValueError(f"config.{name}={shown(text)} {reason}")
    if text.lower() == "none" and field.optional:
        return None
    if text in field.also:
        return text
    if field.kind is bool:
        if text.lower() in ("true", "1", "yes", "false", "0", "no"):
            return text.lower() in ("true", "1", "yes")
    elif field.kind is str:
        return text
    elif field.kind is tuple:
        return _parse_tuple(name, text)
    else:
        with contextlib.suppress(ValueError):
            return field.kind(text)
    raise ValueError(f"config.{name}={shown(text)} is not {type_name(field)}")


def run_file(
    path: Path, arg: str | None, function: str, use: Callable[[Any], _T], kind: str = "config"
) -> _T:
    """`use(FUNCTION(arg))` of a file of the user's, whose mistakes, and those of `use`, are one line.

    Args:
      arg: of the function; None: it is called without.
      kind: what the file is called: 'config', 'space'. Where there is no such file, its like in the folder
        configs/ are looked through for the nearest name.

    Raises:
      ValueError: the file is not usable, or whatever went wrong in it; with the line that was last in it.
      KeyboardInterrupt: while the file runs; says in which line.
    """
    _check_path(path, kind)
    spec = importlib.util.spec_from_loader(
        f"jaxft_{kind}_{path.stem}", _Uncached(f"jaxft_{kind}_{path.stem}", str(path))
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        with _named_when_slow(path, kind), contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
            return use(_called(module, function, arg))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"in {kind} file {path}{_place(path, error)}") from error
    except BaseException as error:
        # Whatever a user's file raises, sys.exit included: said in one line, with its place.
        place = _place(path, error)
        raise ValueError(f"{kind} file {path}{place}: {_reason(path, error, function)}") from error


def _fields(config: Any) -> dict[str, Any]:
    """All fields of what `get_config` gives, with plain numbers."""
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() gives {shown(config)}; does it end with 'return config'?")
    return {field: plain_number(value) for field, value in fields_of(config).items()}


def _check_path(path: Path, kind: str) -> None:
    if path.is_dir():
        raise ValueError(f"{kind} file {path} is a directory; give a file in it")
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else Path("configs")
        hint = nearest(path.name, [p.name for p in folder.glob("*.py")])
        raise ValueError(f"no {kind} file {str(path)!r}{hint}")
    if not path.is_file():  # opening a pipe would wait for a writer for ever
        raise ValueError(f"{kind} file {path} is not a regular file")
    if path.suffix != ".py":
        raise ValueError(f"{kind} file {path} is not Python: its name must end in .py")


class _Uncached(importlib.machinery.SourceFileLoader):
    """Compiles the file as it is now: bytecode is neither read, which may be stale, nor left behind."""

    def path_stats(self, path: Any) -> Any:
        raise OSError


@contextlib.contextmanager
def _named_when_slow(path: Path, kind: str) -> Iterator[None]:
    """Say what is going on when the block takes seconds: a file may loop for ever."""
    message = f"reading {kind} file {path} …"
    timer = threading.Timer(_SLOW_SECONDS, print, [message], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _called(module: ModuleType, name: str, arg: str | None) -> Any:
    """What its function gives."""
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"it has no function {name}()")
    arguments = () if arg is None else (arg,)
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        given = f"the argument {arg!r}" if arguments else "no argument"
        raise ValueError(f"{name} cannot be called with {given}: {error}") from error
    result = function(*arguments)
    if inspect.iscoroutine(result):
        result.close()
    return result


def plain_number(value: Any) -> Any:
    """NumPy's numbers as Python's, which JSON can hold."""
    if isinstance(value, numbers.Integral) and not isinstance(value, int):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, int | float):
        return float(value)
    return value


def _place(path: Path, error: BaseException) -> str:
    """':7', the line of the file that was last in it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _reason(path: Path, error: BaseException, function: str) -> str:
    if isinstance(error, SystemExit):
        return f"it ends the program; what it says is what {function}() returns"
    if isinstance(error, RecursionError):
        return "it calls itself, or holds itself, without end"
    text = str(error)
    if name := _missing_name(error, text):
        return no_such_field(_with_section(path, error, name))
    if isinstance(error, AttributeError | KeyError) and "ConfigDict is locked" in text:
        return "fields can be set, but neither added nor deleted"
    if type(error).__name__ == "RequiredValueError":
        return f"a placeholder that is required has no value: {text}"
    text = " ".join(text.split())
    return f"{text[:297]}…" if len(text) > 300 else text or type(error).__name__


def _missing_name(error: BaseException, text: str) -> str:
    """The field that a ConfigDict does not have, when that is what its error says; else ''."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and "ml_collections" in frames[-1].filename
    if not (inside and isinstance(error, AttributeError | KeyError)):
        return ""
    found = re.search(r'Key "(\w+)" does not exist', text) or re.match(
        r"[\\'\"]*(\w+)[\\'\"]+(?:\\n|$)", text
    )
    return found[1] if found else ""


def _with_section(path: Path, error: BaseException, name: str) -> str:
    """'train.epoch' of `config.train.epoch = 1`, where a ConfigDict only says 'epoch'."""
    linecache.checkcache(str(path))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = linecache.getline(str(path), frames[-1].lineno or 0) if frames else ""
    chain = re.search(rf"\b\w+\.((?:\w+\.)*{name}(?:\.\w+)*)\b", line)
    return chain[1] if chain else name


def _settle_pairs(
    defaults: Mapping[str, Any], from_file: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Of train.epochs and train.steps keep the one set closest to the command line.

    One that the command line takes back (`none`) leaves the length to the other: the file's, or the
    default where the file has none.
    """
    values = dict(from_file)
    for pair in _EITHER:
        taken_back = [f for f in pair if f in given and given[f] is None]
        on_line = [f for f in pair if given.get(f) is not None]
        in_file = [f for f in pair if from_file[f] not in (None, defaults[f])]
        chosen = on_line or [f for f in in_file if f not in taken_back]
        if len(chosen) > 1:
            both = " and ".join(f"config.{f}" for f in pair)
            raise ValueError(f"{both} are both set; a run has one length, give one of them")
        if chosen:
            values.update({f: None for f in pair if f not in chosen})
        elif any(f in in_file for f in taken_back):
            values.update({f: defaults[f] for f in pair if f not in taken_back})
        if all(given.get(f, values[f]) is None for f in pair):
            raise ValueError(f"neither {' nor '.join(f'config.{f}' for f in pair)} is set")
    return values


def _parse_tuple(name: str, text: str) -> tuple:
    """('a', 'b') written as Python, or the plain form a,b."""
    if not text.strip():
        return ()
    if text.lstrip()[0] in "([":
        try:
            return as_tuples(_entries(ast.literal_eval(text.strip())))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise ValueError(
                f"config.{name}={shown(text)} is not a list: {reason[:100] or 'too deep'}"
            ) from error
    return tuple(part.strip() for part in text.split(","))


def _entries(value: Any) -> tuple | list:
    """`('a')` is no tuple in Python; here it is meant as one."""
    return value if isinstance(value, tuple | list) else (value,)
