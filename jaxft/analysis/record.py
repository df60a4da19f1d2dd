"""What a run directory says about its run. Reads its files only.

Any of them may be missing, or hold something that jaxft did not write: what is no row is left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxft.training.rows import Row, each_row


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Rows of a file predictions/*.jsonl, read anew each time they are gone through.

    There may be millions. Of each a task knows what it has besides the row of the data that it is of.
    """

    path: Path

    def __iter__(self) -> Iterator[Row]:
        return (row for row in _each_row(self.path) if type(row.get("index")) is int)


@dataclasses.dataclass(frozen=True)
class Record:
    """The files of a run directory.

    Attributes:
      name: of the directory.
      config, summary: {} when missing.
      parameters: rows of parameters.json.
      train: rows of training metrics, by step.
      evals: rows of evaluations by split, each by step.
      events: rows of events, by step.
      predictions: by split.
      details: what predictions/SPLIT.NAME.json hold, by split and name.
    """

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    parameters: list[Row]
    train: list[Row]
    evals: dict[str, list[Row]]
    events: list[Row]
    predictions: dict[str, Predictions]
    details: dict[str, dict[str, Any]]

    @property
    def split(self) -> str:
        """The split that results are reported on: test where there is one."""
        return "test" if self.metrics("test") else "eval"

    def metrics(self, split: str) -> dict[str, Any]:
        """Metrics of the exported checkpoint on a split; {} if there are none."""
        if isinstance(found := self.summary.get(split), dict) and _has_a_metric(found):
            return found
        rows = self.evals.get(split, [])
        best = [row for row in rows if row["step"] == self.summary.get("best_step")]
        return (best or rows[-1:] or [{}])[0]

    def detail(self, split: str, name: str) -> Any:
        """What predictions/SPLIT.NAME.json holds; None if there is no such file, or it is none."""
        return self.details.get(split, {}).get(name)


def read_record(directory: str | Path) -> Record:
    """Read a run directory.

    Raises:
      ValueError: there is no such directory.
    """
    path = Path(directory)
    if not path.is_dir():
        raise ValueError(f"no run directory {str(path)!r}")
    rows = [row for row in _each_row(path / "metrics.jsonl") if _has_a_step(row)]
    evals = [row for row in _by_step(rows, "eval") if _has_a_metric(row)]
    files = sorted(path.glob("predictions/*.jsonl"))
    parameters = _read_json(path / "parameters.json")
    config, summary = _read_json(path / "config.json"), _read_json(path / "summary.json")
    return Record(
        name=path.resolve().name,
        config={k: v for k, v in config.items() if k != "format"}
        if isinstance(config, dict)
        else {},
        summary=summary if isinstance(summary, dict) else {},
        parameters=list(filter(_is_parameter, parameters if isinstance(parameters, list) else [])),
        train=_by_step(rows, "train"),
        evals={
            split: [row for row in evals if row.get("split") == split] for split in ("eval", "test")
        },
        events=[row for row in rows if row["kind"] == "event"],
        predictions={file.stem: Predictions(file) for file in files},
        details=_details(path / "predictions"),
    )


def _details(folder: Path) -> dict[str, dict[str, Any]]:
    """What SPLIT.NAME.json holds, by SPLIT and NAME."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.*.json")):
        split, _, name = file.name.removesuffix(".json").partition(".")
        found.setdefault(split, {})[name] = _read_json(file)
    return found


def _by_step(rows: list[Row], kind: str) -> list[Row]:
    """Rows of a kind in order; of several for one step and split the last, which counts."""
    last = {(row["step"], str(row.get("split"))): row for row in rows if row["kind"] == kind}
    return [last[key] for key in sorted(last, key=lambda key: key[0])]


def _has_a_step(row: Row) -> bool:
    step = row.get("step")
    return isinstance(row.get("kind"), str) and type(step) is int and 0 <= step < 1 << 53


def _has_a_metric(row: Row) -> bool:
    return any(_is_number(row[name]) for name in row.keys() - {"step", "epoch", "seconds"})


def _is_parameter(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(type(row.get(key)) is int for key in ("size", "depth"))
        and isinstance(row.get("trainable"), bool)
        and _is_number(row.get("lr_scale"))
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _each_row(path: Path) -> Iterator[Row]:
    """Rows of a file, as far as it can be read."""
    try:
        if path.is_file():
            yield from each_row(path)
    except (OSError, ValueError, RecursionError):
        return


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):  # missing, or cut short by a full disk
        return None
