"""The run directory: the interface between the commands.

config.json       the resolved config; another config in the same directory is refused
source.json       what the run was built from: fingerprints, label names, columns, sizes
metrics.jsonl     one row per logged step, evaluation or event
parameters.json   one row per parameter: shape, depth, trainable, rates, placement
checkpoints/      Orbax, one folder per step
best/             the best checkpoint in Hugging Face format
predictions/      one row per evaluated example
summary.json      results, timing, versions; written last: a run that has it is finished
report.html
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxft import config as config_lib
from jaxft.config import ConfigDict
from jaxft.experiment import provenance
from jaxft.experiment.continuing import Changes, accepted
from jaxft.experiment.lock import HOLDER, LOCK, held

# Of config.json and source.json, raised when what stands there begins to mean something else. A field or
# key that is new does not raise it: a record that lacks it is read as one of before.
FORMAT = 1


class RunDirectory:
    """Paths and small files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.predictions = self.path / "predictions"

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the directory and hold it: two processes writing one run would ruin it.

        A directory that was not there before and holds nothing afterwards, since the start was refused,
        is removed again.

        Raises:
          ValueError: it is the address of a remote place.
          OSError: it cannot be created or written, or another process holds it.
        """
        # A Path has one slash left of the two.
        if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(self.path)):
            raise ValueError(f"{self.path} is a remote place; runs are kept in local directories")
        with contextlib.ExitStack() as stack:
            try:
                new = [path for path in (self.path, *self.path.parents) if not path.exists()]
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(self.path))
                stack.callback(_remove_empty, new)  # while it is still held
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise
                raise OSError(
                    error.errno,
                    f"cannot write to --workdir {self.path}: {os.strerror(error.errno or 0)}",
                ) from error
            yield

    def changes(self, config: ConfigDict) -> Changes:
        """What differs between `config` and the one of the run that is here, if one is.

        Raises:
          ValueError: the run cannot go on with this config; lists every field.
        """
        if not self._holds_work():
            return Changes()
        summary = self.read_json("summary.json") if self.finished() else {}
        source = self.source()
        # What an epoch counts, see `Splits.entries`.
        counts = (source.get(f"training {name}") for name in ("pairs", "windows", "rows"))
        return accepted(
            self.config(),
            config,
            entries=next((n for n in counts if isinstance(n, int) and n > 0), 1),
            stopped_early=bool(summary.get("stopped_early")),
            where=str(self.path),
        )

    def finished(self) -> bool:
        """Whether everything was written; a part may have been removed since."""
        return (self.path / "summary.json").is_file()

    def lacks(self, *, test: bool) -> list[str]:
        """The parts of a finished run that are not there (any more)."""
        parts = ["best/config.json", "predictions/eval.jsonl", "report.html"]
        parts += ["predictions/test.jsonl"] if test else []
        return [part for part in parts if not (self.path / part).is_file()]

    def remove_unfinished_exports(self) -> None:
        """What kills have left beside best/, once it is whole again."""
        for left in self.path.glob(f"{self.best.name}.exporting-*"):
            shutil.rmtree(left, ignore_errors=True)

    def reopen(self) -> None:
        """A finished run has something to do again: no longer finished, whatever happens next."""
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path / "summary.json", self.path / "summary.before.json")

    def config(self) -> ConfigDict:
        """The run's resolved config.

        Raises:
          ValueError: this is no run directory.
        """
        return config_lib.from_json(self._record("config.json"))

    def source(self) -> dict[str, Any]:
        """What the run was built from.

        Raises:
          ValueError: this is no run directory, or the file is not what `begin` wrote.
        """
        source = self._record("source.json")
        if not {"label names", "columns"} <= set(source):
            raise ValueError(f"{self.path / 'source.json'} is not what jaxft wrote; restore it")
        return source

    def laid_out(self) -> int:
        """Shards for which the run that is here laid out its rows; 0: none is, or an earlier version's."""
        laid_out = self.source().get("rows laid out for") if self._holds_work() else 0
        return laid_out if type(laid_out) is int and laid_out > 0 else 0

    def begin(self, config: ConfigDict, source: dict[str, Any], changes: Changes) -> list[str]:
        """Write config.json and source.json, or hold `source` against the one that is there.

        Only what could be built gets here: a mistake that is mended can be tried again in the same
        directory.

        Returns:
          What is worth a word: versions that differ from those the run began with, and `changes`.

        Raises:
          ValueError: see `check_source`.
        """
        if not self._holds_work():
            self.write_json("source.json", {"format": FORMAT, **source})
            self._write_config(config)
            return []
        if "training fingerprint" not in self.source():
            raise ValueError(
                f"the run in {self.path} was begun by an earlier version of jaxft, which ordered and held "
                "out rows in another way, so it cannot be continued exactly: finish it with that version, "
                "or give a new --workdir; evaluate, predict and export work as before"
            )
        differs = self.check_source(source)
        if changes.reopens:
            self.reopen()
        if changes.lines:
            self._write_config(config)
        notes = [
            f"the run began under others, so data order and bits may differ: {d}" for d in differs
        ]
        return [*notes, *changes.lines]

    def check_source(self, source: dict[str, Any]) -> list[str]:
        """Hold `source`, or a part of it, against source.json.

        Returns:
          Versions and devices that are others than the run's.

        Raises:
          ValueError: the model or the data are not those that the run began with.
        """
        known = self.source()
        now = json.loads(json.dumps(source))
        for name in provenance.refused(known, now):
            raise ValueError(
                f"{name} has changed since the run in {self.path} began, so it cannot be continued "
                "exactly; restore it, or give a new --workdir"
            )
        return provenance.noted(known, now)

    def _record(self, name: str) -> dict[str, Any]:
        """config.json or source.json, of this version's format or of an earlier one."""
        record = self.read_json(name)
        written = record.pop("format", 0)
        if type(written) is not int or written > FORMAT:
            raise ValueError(
                f"{self.path / name} has format {written!r:.40}; this version of jaxft reads those up to "
                f"{FORMAT}: a later version wrote it"
            )
        return record

    def _write_config(self, config: ConfigDict) -> None:
        self.write_json("config.json", {"format": FORMAT, **config_lib.to_json(config)})

    def _holds_work(self) -> bool:
        """Whether anything would be lost or mixed by another run in this directory."""
        saved = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return self.finished() or any(p.name.isdigit() for p in saved)

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises ValueError when the file is missing or not a JSON object."""
        path = self.path / name
        try:
            value = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{self.path} is not a run directory: it has no {name}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        except RecursionError:
            raise ValueError(f"{path} is nested too deeply to be read") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path} holds no JSON object; it is not what jaxft wrote")
        return value

    def write_json(self, name: str, value: Any) -> None:
        """Whole or not at all."""
        self._write(name, [json.dumps(value, indent=1), "\n"])

    def write_rows(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """JSON lines, whole or not at all; each is written as it comes."""
        self._write(name, (json.dumps(row) + "\n" for row in rows))

    def _write(self, name: str, parts: Iterable[str]) -> None:
        """Written beside and renamed."""
        path = self.path / name
        beside = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("w") as file:
                file.writelines(parts)
            os.replace(beside, path)
        except OSError as error:  # a write, unlike an open, does not say of what
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove these, of which each holds the one before, as long as they hold nothing but a lock."""
    for folder in folders:
        with contextlib.suppress(OSError):
            own = {folder / LOCK, folder / HOLDER}
            if set(folder.iterdir()) <= own:
                for path in own:
                    path.unlink(missing_ok=True)
            folder.rmdir()  # of a folder that holds something it is refused
