"""Text from users, shown on a terminal: names and cells may hold anything, and none of it is obeyed."""

from __future__ import annotations

import os
import unicodedata
from typing import TextIO

from rich.console import Console

# Controls (a terminal obeys those after ESC), halves of characters, line separators.
_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_WIDTH = 200  # columns, where there is no terminal to ask


def plain(text: str) -> str:
    r"""One line in which everything is seen: what controls the terminal becomes an escape.

    >>> plain('[/INST] \x1b[2J bad\n')
    '[/INST] \\x1b[2J bad\\n'
    """
    if text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if _controls(c) else c for c in text)


def plain_console(stream: TextIO, *, fancy: bool | None = None) -> Console:
    """A console that shows text as it is: `[red]` and `:smile:` in a label are its name.

    Not on a terminal, tables are as wide as they are.
    """
    fancy = is_fancy(stream) if fancy is None else fancy
    return Console(
        file=stream, force_terminal=fancy, no_color=not fancy, highlight=False, markup=False,
        emoji=False, width=None if fancy else _WIDTH,
    )  # fmt: skip


def is_fancy(stream: TextIO) -> bool:
    """Whether colour and cursor control are welcome: a terminal, no NO_COLOR, not TERM=dumb."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        return False
    return stream.isatty()


def _controls(letter: str) -> bool:
    return letter in _REORDERING or unicodedata.category(letter) in _CATEGORIES
