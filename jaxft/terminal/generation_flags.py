"""The flags by which `predict` lets a decoder go on with each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import flags

from jaxft.terminal.flags import Flag

COUNT = "max_new_tokens"
_NUMBERS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "temperature": (
        float,
        "a number",
        "draw from logits divided by it; default: the likeliest token",
    ),
    "top_k": (int, "a whole number", "of so many of the likeliest tokens alone"),
    "top_p": (float, "a number", "of the likeliest tokens with so much of the probability"),
    "min_p": (float, "a number", "of those at least so likely, relative to the likeliest"),
    "repetition_penalty": (float, "a number", "above 1: tokens that were there are less likely"),
    "seed": (int, "a whole number", "of the draws"),
}
FLAGS = (
    Flag(COUNT, "a decoder goes on with each row by at most so many tokens", default=0),
    *(Flag(name, said) for name, (_, _, said) in _NUMBERS.items()),
    Flag("stop", "a string before which a text ends"),
)


def settings_of(values: flags.FlagValues) -> dict[str, Any] | None:
    """What was given, by the names of `experiment.generating.continuing`; None: nothing is to be generated.

    Raises:
      ValueError: no number where one must be, or a setting without the flag that asks for texts.
    """
    texts = {name: str(values[name].value or "") for name in (*_NUMBERS, "stop")}
    given = {name: text for name, text in texts.items() if text}
    count = values[COUNT].value
    if not count:
        if given:
            raise ValueError(
                f"--{next(iter(given))} is for texts that are generated: give --{COUNT}, too"
            )
        return None
    found: dict[str, Any] = {COUNT: count}
    for name, text in given.items():
        if name == "stop":
            found[name] = (text,)
            continue
        read, wanted, _ = _NUMBERS[name]
        try:
            found[name] = read(text)
        except ValueError:
            raise ValueError(f"--{name} must be {wanted}, got {text!r:.40}") from None
    return found
