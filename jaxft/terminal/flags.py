"""Command lines: absl flags of one command, and the `--config FILE --config.a.b=value` form.

Each command has its own FlagValues, so that importing two commands does not define a flag twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import flags

from jaxft.config import ConfigDict
from jaxft.terminal import config_file


@dataclasses.dataclass(frozen=True)
class Flag:
    """One text or boolean flag of a command. `required` ones have no default."""

    name: str
    help: str
    default: str | bool | int = ""
    required: bool = False


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
      SystemExit: after `--help` was printed.
    """
    own, overrides = _take_overrides(argv) if with_config else (list(argv), [])
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    flags.DEFINE_bool("debug", False, "print the traceback of an error", flag_values=values)
    if with_config:
        defined = [
            Flag("config", "config FILE[:arg]; fields: --config.a.b=value", required=True),
            *defined,
        ]
    for flag in defined:
        define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer}.get(
            type(flag.default), flags.DEFINE_string
        )
        define(flag.name, flag.default, flag.help, flag_values=values)  # type: ignore[operator]
    try:
        rest = values(own)[1:]
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from error
    if values.help:
        print(_usage(argv[0], defined))
        raise SystemExit(0)
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; values are given as --name=value")
    for flag in defined:
        if flag.required and not values[flag.name].value:
            raise ValueError(f"--{flag.name} is missing: {flag.help}")
    return values, config_file.load(values.config, overrides) if with_config else None


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


def _usage(program: str, defined: Sequence[Flag]) -> str:
    lines = [f"usage: {program} " + " ".join(f"--{f.name}=…" for f in defined if f.required), ""]
    for flag in defined:
        default = f" (default: {flag.default})" if flag.default not in ("", False) else ""
        lines.append(f"  --{flag.name:<14} {flag.help}{default}")
    return "\n".join(lines)
