"""Corrections of patterns that match nothing, from the habits they come from.

Names of PyTorch's state dicts (`encoder.layer.0.attention.self.query.weight`), shell globs, and the
names of modules where their parameters are meant.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

# What Flax, and with it jaxft, calls a `weight`, by what it is the weight of.
WEIGHTS = {"kernel": "a matrix", "scale": "a normalisation", "embedding": "an embedding"}


def correction(pattern: str, paths: Sequence[str]) -> str:
    """'why, so write …' with the smallest change that makes the pattern match, or ''.

    >>> correction('encoder.layer.0.*', ['bert/encoder/layer/0/dense/kernel'])
    "paths are joined with '/' and patterns match the whole path, so write '.*/encoder/layer/0/.*'"
    >>> correction('.*/query/weight', ['layer/0/query/kernel'])
    "the weight of a matrix is called 'kernel', so write '.*/query/kernel'"
    """
    for reasons, changed in _changes(pattern):
        if _matches(changed, paths):
            *first, last = reasons
            why = f"{', '.join(first)} and {last}" if first else last
            return f"{why}, so write {changed!r}"
    return ""


def widened(pattern: str, paths: Sequence[str]) -> str:
    """The pattern for what is numbered N alone, where `N.*` also takes in N0, N1, …; '' if it does not.

    >>> widened('.*/layer/1.*', ['bert/layer/1/bias', 'bert/layer/10/bias'])
    '.*/layer/1/.*'
    >>> widened('.*/layer/1.*', ['bert/layer/1/bias', 'bert/layer/2/bias'])
    ''
    """
    slashed = re.sub(r"(?<=\d)\.\*", "/.*", pattern)
    if slashed == pattern or not _matches(slashed, paths):
        return ""
    own, all_of_them = (re.compile(text) for text in (slashed, pattern))
    more = any(all_of_them.fullmatch(path) and not own.fullmatch(path) for path in paths)
    return slashed if more else ""


def _changes(pattern: str) -> Iterator[tuple[list[str], str]]:
    """Reasons and changed patterns, the smallest changes first.

    Slashes before all else: a dot matches them by chance, and `layer.1.*` would match layer 10 too.
    """
    starred = re.sub(r"(?<=/)\*(?=/|$)", ".*", pattern)
    joined = "paths are joined with '/'"
    spellings = {starred: "anything is '.*'", pattern: ""}
    for modules in (False, True):
        if (slashed := _slashed(pattern, modules=modules)) != pattern:
            spellings = {slashed: joined, **spellings}
    names = {"weight": ""}
    names |= {name: f"the weight of {what} is called {name!r}" for name, what in WEIGHTS.items()}
    whole = "patterns match the whole path"
    around = {("", ""): "", ("", "/.*"): whole, (".*/", ""): whole, (".*/", "/.*"): whole}
    for (text, spelt), (name, called), ((before, after), ends) in itertools.product(
        spellings.items(), names.items(), around.items()
    ):
        renamed = re.sub(r"(?<![A-Za-z])weight$", name, text)
        if (called and renamed == text) or (before and text.startswith((".*", "/"))):
            continue
        reasons = [why for why in (spelt, ends, called) if why]
        if reasons:
            yield reasons, before + (renamed.rstrip("/") + after if after else renamed)


def _slashed(pattern: str, *, modules: bool) -> str:
    """Dots as separators; with `modules` also the one in `layer.1.*`, which means what is below it."""
    text = re.sub(r"\\\.|\.(?![*+?{])", "/", pattern)
    return re.sub(r"(?<=[\w\])])\.\*(?=/|$)", "/.*", text) if modules else text


def _matches(pattern: str, paths: Sequence[str]) -> bool:
    try:
        compiled = re.compile(pattern)
    except re.error:
        return False
    return any(map(compiled.fullmatch, paths))
