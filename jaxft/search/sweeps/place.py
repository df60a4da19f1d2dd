"""The directory of a sweep, which is its alone.

study.journal   the study, unless --storage names another place
trials/         what came of each trial
reports/        what trials that run have reported to the pruner
cache/          tokenised text
processes/      locks of the processes that work on it
sweep.json, sweep.html, best.py
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from jaxft.analysis import sweep as page
from jaxft.experiment.output import check_output
from jaxft.search.sweeps.best_config import is_config_file

_OURS = re.compile(
    r"study\.journal.*|trials|reports|cache|processes|\.lock|sweep\.json|sweep\.html|best\.py|\.jaxft-\w+\.tmp"
    r"|__pycache__"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """The directory and the files that a sweep leaves in it."""

    path: Path
    json: Path
    page: Path
    best: Path


def open_place(given: str) -> Place:
    """The directory that `--workdir GIVEN` names, made if it is not there.

    Raises:
      ValueError: a run's, or one that holds what no sweep wrote.
      OSError: it cannot be made.
    """
    path = Path(given).expanduser()
    if (path / "source.json").exists() and (path / "config.json").exists():
        raise ValueError(
            f"--workdir {given} is the directory of a run; give the sweep one of its own"
        )
    if path.exists() and not path.is_dir():
        raise ValueError(f"--workdir {given} is a file; give a directory")
    foreign = (
        [p.name for p in path.iterdir() if not _OURS.fullmatch(p.name)] if path.is_dir() else []
    )
    if foreign:
        raise ValueError(
            f"--workdir {given} holds {sorted(foreign)[0]!r}, which no sweep wrote; give a new directory, "
            "or that of a sweep"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise OSError(error.errno, f"cannot write to --workdir {given}: {reason}") from error
    files = [
        check_output(str(path / name), reads={}, earlier=earlier, written_by="sweep")
        for name, earlier in (
            ("sweep.json", page.is_json), ("sweep.html", page.is_page), ("best.py", is_config_file),
        )
    ]  # fmt: skip
    return Place(path, *files)
