"""What `soup --ensemble` writes: several models of one kind, whose logits are averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.base.json_file import read_object
from jaxft.data.targets import Targets
from jaxft.tasks.contract import Predicted, Task

RECORD, WRITER = "soup.json", "jaxft soup"  # its name, and what it has under the key 'written by'


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Attributes:
    members: folders of checkpoints, at least two.
    fitted: numbers that the task takes, fitted to the mean of their logits (see `tasks.contract.Fits`).
    """

    members: tuple[Path, ...]
    fitted: Mapping[str, Any]


def read_ensemble(path: Path) -> Ensemble | None:
    """What is in a folder that `soup` wrote; None where it wrote none.

    Raises:
      ValueError: it wrote a soup alone, or the record is not what it wrote; one line.
    """
    found = read_object(path / RECORD)
    if found is None or found.get("written by") != WRITER:
        return None
    ensemble = found.get("ensemble")
    if ensemble is None:
        raise ValueError(
            f"{path} holds a soup and no ensemble: give {path / 'soup'}, or write the ensemble by "
            "`jaxft soup --ensemble`"
        )
    names = ensemble.get("members") if isinstance(ensemble, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f"{path / RECORD} is not what jaxft wrote; run soup again")
    fitted = ensemble.get("fitted")
    members = tuple(path / "members" / name for name in names)
    if missing := next((member for member in members if not member.is_dir()), None):
        raise ValueError(f"{missing} is missing, a member of the ensemble; run soup again")
    return Ensemble(members, fitted if isinstance(fitted, dict) else {})


def mean_of_logits(members: Sequence[Predicted]) -> Predicted:
    """What several models gave of the same examples, as of one: the mean of their logits, summed in float64.

    Raises:
      ValueError: they give none.
    """
    if any("logits" not in one for one in members):
        raise ValueError(
            "outputs are averaged where an evaluation keeps the logits of each row: of classes (not of "
            "thousands of them), several labels and numbers"
        )
    total = sum(one["logits"].astype(np.float64) for one in members)
    return {**members[0], "logits": np.asarray(total / len(members), np.float32)}


def averaged(task: Task[Any], targets: Targets, members: Sequence[Predicted]) -> Predicted:
    """What a task keeps of the mean of the logits that several models gave, in the order of the rows.

    Raises:
      ValueError: see `mean_of_logits`.
    """
    found = mean_of_logits(members)
    kept = task.kept(targets, {"logits": found["logits"]}, np.arange(len(targets)))
    return {**kept, "seen": found["seen"]}
