"""What came of the trials of a search, in files that are there whole or not at all."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.base.json_file import read_object
from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, from_json, to_json
from jaxft.experiment.continuing import FREE
from jaxft.experiment.output import Output
from jaxft.search.trials.progress import Ended

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_FORM = 1  # of the files; another is run again


class Record:
    """Outcomes by the names of their trials, in one folder.

    Args:
      folder: made with the first outcome.
      weights, predictions: what an outcome that is read must have.
    """

    def __init__(self, folder: Path, *, weights: bool, predictions: bool):
        self._folder, self._keeps = folder, (weights, predictions)

    def check(self, names: Sequence[str]) -> None:
        """Raises ValueError: a name is there twice, or is no part of a file's."""
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"a trial is called {name!r}; its name may have letters, digits, '-', '_' and '.', and "
                    "does not begin with '.'"
                )
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} trials are called {name!r}")

    def configs(self) -> dict[str, ConfigDict]:
        """Of all trials that are there, by name."""
        found = {path.stem: read_object(path) for path in sorted(self._folder.glob("*.json"))}
        return {
            name: from_json(dict(row["config"]))
            for name, row in found.items()
            if row is not None and row.get("form") == _FORM
        }

    def read(self, name: str, config: ConfigDict) -> tuple[Ended, float] | None:
        """What came of it, and its seconds; None: it is to be run.

        Raises:
          ValueError: what is there came of another config, or the file holds anything else.
        """
        path = self._folder / f"{name}.json"
        found = read_object(path)
        if found is None or found.get("form") != _FORM:
            return None
        _check_config(path, found, config)
        arrays = self._arrays(name, found)
        if arrays is None:
            return None
        ended = Ended(
            tuple(found["history"]), found["best"], found["stopped"], *arrays, found.get("memory")
        )
        return ended, float(found["seconds"])

    def write(self, name: str, config: ConfigDict, ended: Ended, seconds: float) -> None:
        """Keep what came of a trial: the arrays first, so that what is read has them."""
        arrays = {f"weights/{path}": x for path, x in (ended.weights or {}).items()}
        for key, x in (ended.predicted or {}).items():
            arrays[f"predicted/{key}"] = _packed(x)
        kept = [x is not None for x in (ended.weights, ended.predicted)]
        texts = [k for k, x in (ended.predicted or {}).items() if x.dtype == object]
        self._folder.mkdir(parents=True, exist_ok=True)
        if arrays:
            packed = io.BytesIO()
            np.savez(packed, **arrays)  # type: ignore[arg-type]
            self._write(f"{name}.npz", packed.getvalue())
        row = {
            "form": _FORM, "config": to_json(config), "history": ended.history, "best": ended.best,
            "stopped": ended.stopped, "seconds": round(seconds, 6), "kept": kept, "texts": texts,
            "memory": ended.memory,
        }  # fmt: skip
        self._write(f"{name}.json", json.dumps(row, indent=1).encode())

    def _write(self, name: str, data: bytes) -> None:
        with Output(self._folder / name) as file:
            file.write(data)

    def _arrays(self, name: str, found: Mapping[str, Any]) -> tuple[Any, Any] | None:
        """(weights, predicted) as far as they are wanted; None: what is wanted is not there."""
        has, wants = found["kept"], self._keeps
        # A trial that was never evaluated has none, whatever was asked for.
        if found["best"] and any(
            want and not there for want, there in zip(wants, has, strict=True)
        ):
            return None
        if not found["best"] or not any(wants):
            return None, None
        path = self._folder / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                parts: list[dict[str, np.ndarray]] = [
                    {
                        key.removeprefix(prefix): arrays[key]
                        for key in arrays.files
                        if want and key.startswith(prefix)
                    }
                    for want, prefix in zip(wants, ("weights/", "predicted/"), strict=True)
                ]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError):
            return None
        for key in found["texts"] if wants[1] else ():
            texts = json.loads(parts[1][key].tobytes())
            parts[1][key] = np.array([*texts, None], object)[:-1]
        return (parts[0] if wants[0] else None), (parts[1] if wants[1] else None)


def _packed(array: np.ndarray) -> np.ndarray:
    """An array as a file without pickle can hold it: texts, and None, as JSON."""
    if array.dtype != object:
        return array
    return np.frombuffer(json.dumps(array.tolist()).encode(), np.uint8)


def _check_config(path: Path, found: Mapping[str, Any], config: ConfigDict) -> None:
    before, now = (flatten(from_json(raw)) for raw in (found["config"], to_json(config)))
    changed = (f for f in now if before[f] != now[f] and f not in FREE)
    for field in (f for f in changed if not f.startswith("log.")):
        raise ValueError(
            f"{path} is what came of a trial with config.{field}={before[field]!r}, not {now[field]!r}; "
            "give the search another directory"
        )
