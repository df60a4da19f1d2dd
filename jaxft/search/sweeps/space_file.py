"""A space from its file, `FILE[:arg]`: Python with `get_space(arg=None)`, read as config files are."""

from __future__ import annotations

from pathlib import Path

from jaxft.config import ConfigDict
from jaxft.config_check import is_remote
from jaxft.search.sweeps.space import Space, make_space
from jaxft.terminal.config_file import run_file


def load(file_and_arg: str, config: ConfigDict) -> Space:
    """The space, held against the config.

    Raises:
      ValueError: the file or what it gives is not usable; one line.
    """
    whole = Path(file_and_arg)
    name, _, arg = (file_and_arg, "", "") if whole.is_file() else file_and_arg.partition(":")
    if remote := is_remote(file_and_arg):
        raise ValueError(f"--space {file_and_arg}: space files are local, not {remote}")
    return run_file(
        Path(name), arg or None, "get_space", lambda given: make_space(given, config), "space"
    )
