"""The study of a sweep in its storage: which trials there are, whose they are, what came of them.

Several processes, also of several machines, share a study through Optuna's storage. Each takes `at_once`
trials at a time (a batch) and is the only one to run them. A trial whose process has ended without telling
what came of it is WAITING again, and is run under the same number with the same values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from jaxft.search.sweeps.optuna_study import Plan, propose, study_direction
from jaxft.search.sweeps.presence import Presence
from jaxft.search.sweeps.space import Space
from jaxft.search.sweeps.turns import Turn, turns

JOURNAL = "study.journal"
# Attributes of the study and of its trials.
_SWEEP, _OWNER, _BATCH, _CHANGES = "jaxft sweep", "process", "batch", "changes"
_PASSWORD = re.compile(r"(://[^:/@]*:).*@")  # of the address of a database
# What to install for a module that SQLAlchemy asks for.
_DRIVERS = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Trials that one process runs together.

    Attributes:
      changes: of the config, by number of the trial, in order.
      trials: all of the study as they were when the batch was taken, with these as running.
    """

    changes: dict[int, dict[str, Any]]
    trials: tuple[FrozenTrial, ...]


@dataclasses.dataclass(frozen=True)
class Told:
    """What came of a trial.

    Attributes:
      state: COMPLETE, PRUNED or FAIL.
      values: of the objectives; None of a failed one.
      curve: the first objective after each evaluation, from the first.
      notes: what pruners want to find with it; `facts`: what is shown of it.
    """

    state: TrialState
    values: tuple[float, ...] | None
    curve: tuple[float, ...]
    notes: Mapping[str, Any]
    facts: Mapping[str, Any]


class Study:
    """One study, of which this process takes batches. Made by `open_study`."""

    def __init__(self, storage: BaseStorage, number: int, presence: Presence, turn: Turn):
        self._storage, self._number = storage, number
        self._presence, self._turn = presence, turn

    def trials(self) -> list[FrozenTrial]:
        """All of them, in order."""
        return self._storage.get_all_trials(self._number, deepcopy=False)

    def identity(self) -> dict[str, Any] | None:
        """What the study is of; None: it has no trials yet.

        Raises:
          ValueError: its trials are not those of a sweep.
        """
        known = self._storage.get_study_user_attrs(self._number).get(_SWEEP)
        if not self.trials():
            return None
        if known is None:
            raise ValueError(
                "the storage has a study of this name that no sweep of jaxft began; give another --study"
            )
        return known

    def begin(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Note what it is of, unless another process was faster. Returns what it is of, as JSON has it."""
        with self._turn():
            if (known := self.identity()) is None:
                self._storage.set_study_user_attr(self._number, _SWEEP, dict(identity))
                known = self._storage.get_study_user_attrs(self._number)[_SWEEP]
        return known

    def take(self, plan: Plan, space: Space, most: int) -> Batch | None:
        """The next trials to run: of a process that has ended, else new ones, up to number `most` - 1.

        None: there are none that nobody runs.
        """
        with self._turn():
            self._set_free()
            waiting = [
                one
                for one in self.trials()
                if one.state == TrialState.WAITING and _BATCH in one.user_attrs
            ]
            first = waiting[0].user_attrs[_BATCH] if waiting else len(self.trials())
            numbers = [one.number for one in waiting if one.user_attrs[_BATCH] == first]
            for number in numbers:
                self._take(number)
            # Of a batch that was killed while it was asked for, the rest is asked for now.
            size = min(plan.at_once, most - first)
            whole = [one for one in self.trials() if one.user_attrs.get(_BATCH) == first]
            for _ in range(size - len(whole) if len(self.trials()) == first + len(whole) else 0):
                numbers.append(self._create(first))
            changes = self._asked(numbers, plan, space)
        return Batch(changes, tuple(self.trials())) if changes else None

    def tell(self, number: int, told: Told) -> None:
        """Write what came of a trial; its state comes last, so that a trial that has ended is whole."""
        trial = self._id(number)
        if self._storage.get_trial(
            trial
        ).state.is_finished():  # run twice: whoever was first has told
            return
        for step, value in enumerate(told.curve, 1):
            self._storage.set_trial_intermediate_value(trial, step, value)
        for key, note in told.notes.items():
            self._storage.set_trial_system_attr(trial, key, note)
        for key, fact in told.facts.items():
            self._storage.set_trial_user_attr(trial, key, fact)
        self._storage.set_trial_state_values(trial, told.state, told.values)

    def give_back(self, numbers: Sequence[int]) -> None:
        """Trials that this process has taken and does not run after all."""
        for number in numbers:
            if not self._storage.get_trial(self._id(number)).state.is_finished():
                self._storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def _set_free(self) -> None:
        """Trials whose process is no more are waiting again."""
        running = [one for one in self.trials() if one.state == TrialState.RUNNING]
        gone = {
            owner: not self._presence.lives(owner)
            for owner in {one.user_attrs.get(_OWNER, "") for one in running}
        }
        self.give_back([one.number for one in running if gone[one.user_attrs.get(_OWNER, "")]])

    def _take(self, number: int) -> None:
        trial = self._id(number)
        if self._storage.set_trial_state_values(trial, TrialState.RUNNING):
            self._storage.set_trial_user_attr(trial, _OWNER, self._presence.name)

    def _create(self, first: int) -> int:
        """A new trial of a batch, whose number is the storage's to give."""
        began = optuna.trial.create_trial(state=TrialState.RUNNING, value=None)
        began.user_attrs = {_OWNER: self._presence.name, _BATCH: first}
        return self._storage.get_trial(self._storage.create_new_trial(self._number, began)).number

    def _asked(self, numbers: Sequence[int], plan: Plan, space: Space) -> dict[int, dict[str, Any]]:
        """Of each trial its changes, which are asked for where it has none yet."""
        found = {}
        for number in numbers:
            trial, known = self._id(number), self.trials()
            if _CHANGES not in known[number].user_attrs:
                proposal = propose(known[:number], number, plan, space)
                if proposal is None:  # a grid has no more points; the number stays unused
                    self._storage.set_trial_state_values(trial, TrialState.FAIL)
                    continue
                for name, value in proposal.params.items():
                    kind = proposal.distributions[name]
                    self._storage.set_trial_param(trial, name, kind.to_internal_repr(value), kind)
                for key, note in proposal.notes.items():
                    self._storage.set_trial_system_attr(trial, key, note)
                self._storage.set_trial_user_attr(trial, _CHANGES, proposal.changes)
            found[number] = self._storage.get_trial(trial).user_attrs[_CHANGES]
        return found

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._number, number)


@contextlib.contextmanager
def open_study(
    directory: Path, where: str, name: str, directions: Sequence[str]
) -> Iterator[Study]:
    """The study, made if there is none, with this process among those that work on it.

    Args:
      directory: of the sweep.
      where: a database's address ('sqlite:///…'), a journal's file, or '' for that of the directory.
      directions: 'max' or 'min' of each objective.

    Raises:
      ValueError: the storage cannot be opened, or has a study of this name with other objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _storage(directory, where)
    kinds = [study_direction(direction) for direction in directions]
    with contextlib.suppress(optuna.exceptions.DuplicatedStudyError):
        storage.create_new_study(kinds, name)
    number = storage.get_study_id_from_name(name)
    if list(storage.get_study_directions(number)) != kinds:
        raise ValueError(
            f"the study {name!r} in {where or directory} has other objectives; give another --study"
        )
    with Presence(storage, number, directory / "processes") as presence:
        yield Study(storage, number, presence, turns(storage, number, directory))


def _database(where: str) -> RDBStorage:
    for pause in (0.3, 1.0, None):
        try:
            return RDBStorage(where)
        except Exception as error:  # of SQLAlchemy or of the database's own driver
            # Of processes that begin together on an empty database, all but one find tables half made.
            if pause and re.search("exist|unique|duplicate", str(error), re.IGNORECASE):
                time.sleep(pause)
                continue
            line, shown = " ".join(str(error).split())[:200], _PASSWORD.sub(r"\1***@", where)
            if isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name:
                name = error.__cause__.name
                line = f"its driver is not installed: pip install '{_DRIVERS.get(name, name)}'"
            raise ValueError(f"--storage {shown} cannot be opened: {line}") from error
    raise AssertionError("the last try returns or raises")


def _storage(directory: Path, where: str) -> BaseStorage:
    if "://" in where:
        return _database(where)
    path = Path(where) if where else directory / JOURNAL
    if not path.parent.is_dir():
        raise ValueError(f"--storage {where}: no such directory {path.parent}")
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no journal of Optuna: {error}") from error
