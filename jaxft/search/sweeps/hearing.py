"""What pruners hear of the trials of a batch, in the order in which it came, also across kills.

Whether a trial is pruned follows from what had been reported until then by those that run with it. So each
report is noted, with what was decided, before the trial goes on: a batch that was killed begins with its
notes, and what its trials report again is not heard twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.search.sweeps.optuna_study import Pruning


class Hearing:
    """Of one batch.

    Args:
      path: of the notes, a JSON line each; made with the first.
      numbers: of the trials, in the order in which they are given to run.
      objective: name of what is reported.
    """

    def __init__(self, pruning: Pruning, path: Path, numbers: list[int], objective: str):
        self._pruning, self._path = pruning, path
        self._numbers, self._objective = numbers, objective
        self._counts = dict.fromkeys(numbers, 0)
        self._decided: dict[tuple[int, int], bool] = {}
        for number, evaluation, value, _ in self._noted():
            if number in self._counts:
                self._decide(number, evaluation, value)

    def report(self, place: int, row: Mapping[str, Any]) -> bool:
        """Of the trial at a place its newest row; True: it ends here."""
        if not self._pruning.prunes:
            return False
        number, value = self._numbers[place], float(row[self._objective])
        self._counts[number] += 1
        key = (number, self._counts[number])
        if key not in self._decided and math.isfinite(value):
            self._note(*key, value, self._decide(*key, value))
        return self._decided.get(key, False)

    def over(self) -> None:
        """The trials have been told: the notes are of no more use."""
        self._path.unlink(missing_ok=True)

    def _decide(self, number: int, evaluation: int, value: float) -> bool:
        self._decided[number, evaluation] = self._pruning.report(number, evaluation, value)
        return self._decided[number, evaluation]

    def _note(self, *what: Any) -> None:
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def _noted(self) -> list[list[Any]]:
        """In order; a line that a kill has cut off, and what stands behind it, was not acted on."""
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        found = []
        for line in lines:
            if not line.endswith("\n"):
                break
            found.append(json.loads(line))
        if len(found) < len(lines):
            self._path.write_text("".join(lines[: len(found)]))
        return found
