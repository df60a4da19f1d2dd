"""best.py: the best config of a sweep as a config file, which `train` takes."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, default_config

HEAD = '"""Written by jaxft sweep'


def config_file(config: ConfigDict, best: Mapping[int, Mapping[str, Any]], said: str) -> str:
    """The file's text. Its argument is the number of a trial, the first of `best` where there is none.

    Args:
      config: that the sweep changed.
      best: changes by the number of the trial, the best first.
      said: one line for the top of the file.
    """
    defaults = flatten(default_config())
    changed = {f: x for f, x in flatten(config).items() if x != defaults[f]}
    # Of the two lengths one is set, which takes the place of the other.
    base = {
        f: x
        for f, x in changed.items()
        if f not in ("train.epochs", "train.steps") or x is not None
    }
    trials = {str(number): dict(changes) for number, changes in best.items()}
    first = next(iter(trials))
    return (
        f'{HEAD}: {said}."""\n\n'
        "from jaxft.config import choose, default_config, override\n\n"
        f"BASE = {_literal(base)}\nTRIALS = {_literal(trials)}\n\n\n"
        f'def get_config(trial: str = "{first}"):\n'
        "    return override(default_config(), BASE, choose(TRIALS, trial))\n"
    )


def is_config_file(path: Path) -> bool:
    """Whether a file is an earlier best.py."""
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD.encode()


def _literal(value: Any) -> str:
    return pprint.pformat(value, width=99, sort_dicts=False)
