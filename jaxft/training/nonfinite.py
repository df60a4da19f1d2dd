"""What is done about an update whose loss or gradient is not finite, and nonfinite.jsonl, which lists them.

Nothing is computed here: the step says which updates these are (step.py), the loop leaves them out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.training.rows import check_is_file, read_rows, replace_rows, unwritable

NAME = "nonfinite.jsonl"
_PATHS = 10  # of parameters that are written down


class RollBack(Exception):
    """The update `step` is to be left out, from the last checkpoint on."""

    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step = step


class NonFinite:
    """Of one run; every process has one, and all come to the same conclusions.

    A row is {step, done, loss, grad_norm, rows, leaves, paths}: what was done ('skip', 'rollback', or
    'stop': the run ended), the two numbers (as text, which JSON has no numbers for), the numbers of the
    source's rows in the batch, and in how many parameters, and in which first, the gradient is not finite.

    Args:
      directory: the run directory.
      how: 'stop', 'skip' or 'rollback'.
      most: updates of the run that may be left out.
      rows: of the batch of an update (1 is the first), the numbers of the source's rows.
      paths: of the parameters that an update trains, in the order of the step's 'leaves'.
      writes: whether this process does.

    Raises:
      ValueError: something else stands where the file is to be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        how: str = "stop",
        most: int = 0,
        rows: Callable[[int], Sequence[int]] = lambda step: (),
        paths: Callable[[int], Sequence[str]] = lambda step: (),
        writes: bool = True,
    ):
        self.how = how
        self._path, self._most, self._writes = directory / NAME, most, writes
        self._rows_of, self._paths_of = rows, paths
        check_is_file(self._path)
        self._noted = [row for row in read_rows(self._path) if _is_ours(row)]

    def resume(self, step: int) -> None:
        """The run goes on after `step`: what was noted of later updates will be noted again.

        Not where a rollback noted it: there it says what is to be left out.
        """
        kept = [row for row in self._noted if row["step"] <= step or self._is_back(row)]
        if len(kept) < len(self._noted) and self._writes:
            replace_rows(self._path, kept)
        self._noted = kept

    def leaves_out(self, step: int) -> bool:
        """Whether update `step` is known to be one that is left out."""
        return any(row["step"] == step and self._is_back(row) for row in self._noted)

    def count(self, step: int) -> int:
        """Updates up to `step` that were left out."""
        return sum(row["step"] <= step and row["done"] != "stop" for row in self._noted)

    def found(self, step: int, values: Mapping[str, float], leaves: np.ndarray | None) -> str:
        """Note update `step`; returns what is to be said where its update was skipped.

        Args:
          values: 'loss' and 'grad_norm'.
          leaves: for each parameter that trains, whether its gradient is not finite; None: not known.

        Raises:
          RollBack: it is to be left out, and the run has to go back for it.
          FloatingPointError: the run ends here; the last checkpoint is good.
        """
        name = next((n for n in ("loss", "grad_norm") if not math.isfinite(values[n])), "")
        words = {"loss": "loss", "grad_norm": "gradient norm"}
        what = f"the {words[name]} is {values[name]}" if name else "the update is not finite"
        before = sum(row["done"] != "stop" for row in self._noted)
        done = self.how if before < self._most else "stop"
        rows = list(self._rows_of(step))
        self._note(
            {"step": step, "done": done, **_plain(values), "rows": rows, **self._of(step, leaves)}
        )
        message = f"{what} at step {step}"
        if self.how == "stop":
            raise FloatingPointError(message + _advice(step))
        if done == "stop":
            raise FloatingPointError(
                f"{message}, and {self._most} updates were left out before it, as many as "
                f"config.train.max_nonfinite allows: {self._path} has their rows. Checkpoints of earlier "
                "steps are kept; a larger config.train.max_nonfinite goes on"
            )
        message += f", of rows {_listed(rows)}: the update is left out ({self._path.name})"
        if done == "rollback":
            raise RollBack(step, message)
        return message

    def _of(self, step: int, leaves: np.ndarray | None) -> dict[str, Any]:
        if leaves is None:
            return {}
        paths = [p for p, bad in zip(self._paths_of(step), leaves, strict=True) if bad]
        return {"leaves": len(paths), "paths": paths[:_PATHS]}

    def _is_back(self, row: Mapping[str, Any]) -> bool:
        return self.how == "rollback" and row["done"] == "rollback"

    def _note(self, row: dict[str, Any]) -> None:
        self._noted.append(row)
        if not self._writes:
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise unwritable(error, self._path) from error


def _advice(step: int) -> str:
    if step == 1:
        return ", before any update: a weight of the checkpoint is not finite or too large"
    return (
        "; checkpoints of earlier steps are kept. A lower optim.lr, a longer optim.warmup or a smaller "
        "optim.clip may help; config.train.on_nonfinite='skip' leaves such updates out"
    )


def _plain(values: Mapping[str, float]) -> dict[str, Any]:
    return {
        name: values[name] if math.isfinite(values[name]) else str(values[name])
        for name in ("loss", "grad_norm")
    }


def _listed(rows: Sequence[int], most: int = 8) -> str:
    return ", ".join(map(str, rows[:most])) + (", …" if len(rows) > most else "")


def _is_ours(row: Mapping[str, Any]) -> bool:
    return type(row.get("step")) is int and row.get("done") in ("skip", "rollback", "stop")
