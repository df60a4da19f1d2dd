"""Command lines: absl flags of one command, and the `--config FILE --config.a.b=value` form.

Each command has its own FlagValues, so that importing two commands does not define a flag twice.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxft.config import ConfigDict
from jaxft.config_check import is_remote, shown, unusable
from jaxft.config_fields import FIELDS, SECTIONS
from jaxft.config_names import meant
from jaxft.terminal import config_file
from jaxft.terminal.console import COMMANDS

_READ = ("input", "data")  # which may be data of another machine
_PATHS = (*_READ, "workdir", "run", "output", "local_copy")
# What other commands and other tools call a flag of ours.
_CALLED = {
    "run": "workdir model checkpoint run_dir model_path output_dir dir",
    "input": "data file path test_file texts images",
    "data": "input file test_file path",
    "output": "out output_dir output_file export_dir save_dir target",
    "config": "config_file conf cfg",
    "help": "usage man fields",
}
_KINDS = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command, of the type of its default. `required` ones have none.

    remote: a place that may be of another machine.
    """

    name: str
    help: str
    default: str | bool | int | float = ""
    required: bool = False
    remote: bool = False


def parse(
    argv: Sequence[str], defined: Sequence[Flag], *, with_config: bool = False
) -> tuple[flags.FlagValues, ConfigDict | None]:
    """Values of a command's flags, and its config where it takes one.

    Args:
      argv: with the program's name first.
      defined: the command's own flags.
      with_config: also take `--config FILE[:arg]` and `--config.FIELD=VALUE`, in any order.

    Raises:
      ValueError: an unknown flag, a missing one, or a config that is not usable.
      SystemExit: after `--help` was printed, or `--config.help`.
    """
    own, overrides = _take_overrides(argv) if with_config else (list(argv), [])
    if with_config:
        about = "config file, FILE[:arg]; its fields: --config.a.b=value"
        defined = [Flag("config", about, required=True), *defined]
    for field, _ in overrides:
        if field.rpartition(".")[2] == "help":
            print("\n".join(field_lines(field.rpartition(".")[0])))
            raise SystemExit(0)
    values = _define(defined)
    try:
        rest = values(own)[1:]
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_no_such_flag(error.flagname, defined, with_config)) from error
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from error
    if values.help:
        print(_usage(argv[0], defined, with_config))
        raise SystemExit(0)
    if rest:
        raise ValueError(f"unexpected argument {shown(rest[0])}; values are given as --name=value")
    for flag in defined:
        if flag.required and not values[flag.name].value:
            raise ValueError(f"--{flag.name} is missing: {flag.help}")
        _check_text(flag.name, values[flag.name].value, remote=flag.remote)
    return values, config_file.load(values.config, overrides) if with_config else None


def take_words(argv: Sequence[str], defined: Sequence[Flag]) -> tuple[list[str], list[str]]:
    """(the words that are no flag and no flag's value, everything else), for `parse` to read the latter.

    Args:
      argv: with the program's name first.
      defined: the command's own flags, each of which has a value.
    """
    taken, rest, words = [], [argv[0]], list(argv[1:])
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            taken.append(word)
            continue
        rest.append(word)
        if word.lstrip("-") in {flag.name for flag in defined} and words:
            rest.append(words.pop(0))
    return taken, rest


def field_lines(section: str = "") -> list[str]:
    """One line a field of `section` (or of all): name, default, what it means and may be.

    Raises:
      ValueError: there is no such section or field.
    """
    fields = [f for f in FIELDS if not section or section in (f.section, f.name)]
    if not fields:
        names = difflib.get_close_matches(section, SECTIONS, n=1, cutoff=0.5) or meant(section)
        hint = f" (did you mean {names[0]!r}?)" if names else f"; there are {', '.join(SECTIONS)}"
        raise ValueError(f"config.{section} does not exist{hint}")
    width = max(len(field.name) + len(_default(field.default)) for field in fields) + 11
    lines = []
    for field in fields:
        bounded = field.choices or field.form == "duration" or math.isfinite(field.low)
        bounds = f" ({field.allowed()})" if bounded else ""
        lines.append(
            f"  {f'--config.{field.name}={_default(field.default)}':<{width}}{field.help}{bounds}"
        )
    return lines


def _define(defined: Sequence[Flag]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    flags.DEFINE_bool("debug", False, "print the traceback of an error", flag_values=values)
    for flag in defined:
        define = _KINDS.get(type(flag.default), flags.DEFINE_string)
        define(flag.name, flag.default, flag.help, flag_values=values)  # type: ignore[operator]
    return values


def _check_text(name: str, value: object, *, remote: bool) -> None:
    """Raise ValueError for text that is none, and for a path that is not of this machine."""
    if not isinstance(value, str):
        return
    reason = unusable(value)
    if not reason and name in _PATHS:
        if name not in _READ and not remote and (scheme := is_remote(value)):
            reason = f"is a remote place ({scheme}); only local files and directories are supported"
        elif any(ord(letter) < 32 for letter in value):
            reason = "holds a line break or another control character"
    if reason:
        raise ValueError(f"--{name}={shown(value)} {reason}")


def _take_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Split off `--config.FIELD=VALUE`, `--config.FIELD VALUE` and `--[no]config.FIELD`."""
    rest, overrides, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        name, has_value, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name.startswith("noconfig."):
            overrides.append((name.removeprefix("noconfig."), "false"))
        elif not (word.startswith("-") and name.startswith("config.")):
            rest.append(word)
        elif has_value:
            overrides.append((name.removeprefix("config."), value))
        elif words and not words[0].startswith("--"):
            overrides.append((name.removeprefix("config."), words.pop(0)))
        else:
            overrides.append((name.removeprefix("config."), "true"))
    return rest, overrides


def _no_such_flag(name: str, defined: Sequence[Flag], with_config: bool) -> str:
    """With the flag, or the field of a config, that was probably meant."""
    own = ["help", *(flag.name for flag in defined)]
    called = {other: flag for flag in own for other in _CALLED.get(flag, "").split()}
    plain = name.replace("-", "_").lower()
    settings = meant(plain)
    fields = settings if with_config else []
    close = difflib.get_close_matches(plain, own, n=1, cutoff=0.7)
    if with_config and (exact := [f for f in fields if f.rpartition(".")[2] == plain]):
        likely = exact  # --epochs
    elif close:
        likely = [f"--{close[0]}"]
    elif fields:
        likely = fields
    elif plain in called:
        likely = [f"--{called[plain]}"]
    else:
        likely = [f"--{name}" for name in difflib.get_close_matches(plain, own, n=1, cutoff=0.5)]
    if not likely and settings:
        said = " or ".join(f"config.{field}" for field in settings)
        return (
            f"there is no flag --{name}: {said} is a setting of the run, given when it is trained"
        )
    if not likely:
        return f"there is no flag --{name}; there are {', '.join(f'--{flag}' for flag in own)}"
    likely = [f if f.startswith("--") else f"--config.{f}" for f in likely]
    return f"there is no flag --{name} (did you mean {' or '.join(likely)}?)"


def _usage(program: str, defined: Sequence[Flag], with_config: bool) -> str:
    path = Path(program)
    name = f"python -m jaxft.{path.stem}" if path.suffix == ".py" else program
    lines = [f"usage: {name} " + " ".join(f"--{f.name}=…" for f in defined if f.required)]
    about = COMMANDS.get(name.replace(".", " ").split(" ")[-1], "")
    lines += [about, ""] if about else [""]
    for flag in [*defined, Flag("debug", "print the traceback of an error", False)]:
        default = f" (default: {flag.default})" if flag.default not in ("", False) else ""
        lines.append(f"  --{flag.name:<14} {flag.help}{default}")
    if with_config:
        lines += ["", "fields of the config, with their defaults:", *field_lines()]
    return "\n".join(lines)


def _default(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
