"""The valid choice that a wrong one is nearest to: the end of a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Among more names than this none is looked for: difflib compares with each.
_MOST_CHOICES = 5000


def nearest(given: str, choices: Iterable[str]) -> str:
    """The question to end a message with where a choice is close, whatever its case; else ''.

    >>> nearest('AdmW', ('adamw', 'lion')), nearest('x', ('adamw', 'lion'))
    (" (did you mean 'adamw'?)", '')
    """
    names = {choice.lower(): choice for choice in choices}
    if len(names) > _MOST_CHOICES:
        return ""
    close = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""
