"""The folder of a cross-validation: one at a time works in it, always with the same config and data."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.analysis.validation import WRITER
from jaxft.base.json_file import read_object
from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, from_json, to_json
from jaxft.data.inputs import KINDS
from jaxft.data.label_cells import columns_of
from jaxft.experiment.continuing import FREE
from jaxft.experiment.data import Whole
from jaxft.experiment.lock import held
from jaxft.experiment.output import Output
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.provenance import model_record
from jaxft.search.validation.folds import Plan
from jaxft.search.validation.held_out import fingerprint

PLAN = "plan.json"
FORMAT = 1


class Folder:
    """`path` holds plan.json, the trials, and the files that say what was found."""

    def __init__(self, path: Path):
        self.path = path

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder and hold it.

        Raises:
          ValueError: there is something in it, and no cross-validation.
          OSError: it cannot be made or written, or another process holds it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--output {self.path} is a file; give a folder of its own")
        self.path.mkdir(parents=True, exist_ok=True)
        there = {entry.name for entry in self.path.iterdir()} - {".lock", "cache"}
        if there and PLAN not in there:
            raise ValueError(
                f"--output {self.path} holds {min(there)!r} and no cross-validation; give a folder of its own"
            )
        try:
            with held(self.path):
                yield
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise OSError(
                errno.EBUSY, f"--output {self.path} is in use by another jaxft process"
            ) from error

    def begin(self, config: ConfigDict, plan: Plan, prepared: Prepared, whole: Whole) -> None:
        """Write plan.json, or hold what is given against the one by which trials have run.

        Raises:
          ValueError: the trials that are there are of another config, model or data.
        """
        now = {
            "folds": plan.folds, "checkpoint": plan.checkpoint, "config": to_json(config),
            "data": _contents(config, prepared, whole), **model_record(prepared),
        }  # fmt: skip
        path = self.path / PLAN
        before = read_object(path)
        ran = any((self.path / "trials").glob("*.json"))
        if before is None or (before.get("written by") == WRITER and not ran):
            with Output(path) as file:
                record = {"written by": WRITER, "format": FORMAT, **now}
                file.write((json.dumps(record, indent=1) + "\n").encode())
            return
        if before.get("written by") != WRITER or before.get("format") != FORMAT:
            raise ValueError(f"{path} is not what this version of jaxft cross_validate writes")
        self._check(before, json.loads(json.dumps(now)))

    def _check(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        other = "give another --output"
        for name in ("folds", "checkpoint"):
            if before.get(name) != now[name]:
                raise ValueError(
                    f"--output {self.path} holds trials with {name} {before.get(name)!r}, not {now[name]!r}; "
                    f"{other}"
                )
        was, becomes = (flatten(from_json(dict(each["config"]))) for each in (before, now))
        for field in becomes:
            if was[field] != becomes[field] and field not in FREE and not field.startswith("log."):
                raise ValueError(
                    f"--output {self.path} holds trials with config.{field}={was[field]!r}, not "
                    f"{becomes[field]!r}; {other}"
                )
        for name, value in now.items():
            if name in before and name != "config" and before[name] != value:
                what = "the rows of the data" if name == "data" else name
                raise ValueError(
                    f"{what} changed since the trials in {self.path} began; restore it, or {other}"
                )


def _contents(config: ConfigDict, prepared: Prepared, whole: Whole) -> str:
    """Changes with every row, target and text; of images with rows and targets."""
    columns = columns_of(whole.split.source, whole.label) if whole.label else ()
    if KINDS[prepared.task.inputs].model == "text":
        columns = (*columns, *whole.columns)
    known = [whole.split] + ([prepared.splits.eval] if config.data.eval else [])
    digest = hashlib.sha256()
    for split in known:
        digest.update(np.ascontiguousarray(split.targets.rows).data)
        digest.update(fingerprint([split], columns, split).encode())
    return digest.hexdigest()
