"""What a trial is, what came of it, and the one function that runs many of them.

A trial is a run that lives in memory: it has no directory, no log, no checkpoint. What is left of it when
it has ended is an `Outcome`, which is kept in a file, so that a search that was killed goes on with the
trials that it had not ended.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.config import ConfigDict
from jaxft.config_check import validate
from jaxft.experiment.opening import Given
from jaxft.experiment.prepared import Prepared
from jaxft.search.trials.alone import run_alone
from jaxft.search.trials.groups import MODES, grouped
from jaxft.search.trials.progress import OUT_OF_MEMORY, PRUNED, Ended, Told
from jaxft.search.trials.record import Record
from jaxft.search.trials.together import run_group
from jaxft.search.trials.workers import Workers
from jaxft.search.trials.worlds import Worlds
from jaxft.tasks.contract import Predicted
from jaxft.terminal.errors import is_out_of_memory


@dataclasses.dataclass(frozen=True)
class Trial:
    """One config that is to be run.

    Attributes:
      name: unique among its siblings and part of a file's name: letters, digits, '-', '_', '.'.
      config: whole and valid, as a run's.
    """

    name: str
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
      history: a row an evaluation, in order: {'step': updates done, 'train_loss': weighted mean of the
        training loss since the row before, and each metric of the evaluation by its name}.
      best: the row that is best by `config.eval.metric`; {} where the trial ended before an evaluation.
      stopped: '' it ran to its end; 'early' by `eval.patience`; 'pruned' as its `report` said; 'not
        finite' by a loss or a gradient that was none; 'out of memory', see `run_trials`.
      seconds: of computing and compiling; of trials that ran as one program, an equal share each.
      weights: path -> array, of the best evaluation, on the host: what trained, what moved (batch
        statistics), and what the source checkpoint does not have. Over the tree of `Worlds.source` they
        are the whole model. None: not asked for.
      predicted: what the task kept of each evaluated example at the best evaluation, see
        `experiment.evaluation.Evaluation`, in the order of the split's rows. None: not asked for.
      memory: bytes of a device for the largest of its updates, as its compiler says: parameters, slots,
        gradients, activations, batch. None: the compiler does not say, or it ran beside others.
    """

    trial: Trial
    history: tuple[dict[str, Any], ...]
    best: dict[str, Any]
    stopped: str
    seconds: float
    weights: Mapping[str, np.ndarray] | None = None
    predicted: Predicted | None = None
    memory: int | None = None


# (number of the trial among those given, its newest row) -> whether it is to end here
Report = Callable[[int, Mapping[str, Any]], bool]


def run_trials(
    trials: Sequence[Trial],
    *,
    directory: Path,
    worlds: Worlds | None = None,
    given: Given | None = None,
    report: Report | None = None,
    keep_weights: bool = False,
    keep_predictions: bool = False,
    vmapped: str = "auto",
    memory: int | None = None,
    spare: bool = False,
    workers: int = 1,
) -> list[Outcome]:
    """Run each, or read what came of it when it ran before. Returns what came of them, in their order.

    Args:
      directory: of the search. Outcomes are written under `directory/trials/NAME.json` and, with arrays,
        NAME.npz, each whole or not at all, as soon as the trial has ended; a trial that was killed
        begins again, and with it those that run as one program with it, for the same bits.
      worlds: data, weights and programs of earlier calls, which are then not read or compiled again;
        None: they are this call's own. A search that calls again and again makes one.
      given: sources in memory, see `open_named`; not beside `worlds`, which has its own.
      report: hears of each evaluation as it is made, and may end (prune) the trial. Not called for
        outcomes that are read.
      keep_weights, keep_predictions: what an outcome has. One that was written without is run again.
      vmapped: 'auto' runs trials as one program where they can be and where that pays, 'on' wherever they can
        be, 'off' one after the other; see `groups`. Curves are the same, to rounding.
      memory: bytes a device that trials of one program may take, which says how many run at once; None:
        what is free.
      spare: a trial that runs by itself and for which a device has not the memory is an outcome, which is
        not written; else that is an error.
      workers: trials that do not run as one program run so many at a time, see `Workers`; `report` is then
        called by several threads, one after the other.

    Raises:
      ValueError: two trials have the same name, or a name is no part of a file's; a config cannot work
        (the trial is named; all are looked at before the first one runs); the outcome that is there is
        of another config; there are several processes. One line.
    """
    if vmapped not in MODES:
        raise ValueError(f"vmapped={vmapped!r} is not one of {', '.join(MODES)}")
    if jax.process_count() > 1:
        raise ValueError("trials run in one process; give each machine trials of its own")
    record = Record(Path(directory) / "trials", weights=keep_weights, predictions=keep_predictions)
    record.check([trial.name for trial in trials])
    found: dict[int, Outcome] = {}
    for number, trial in enumerate(trials):
        read = record.read(trial.name, trial.config)
        if read is not None:
            found[number] = _outcome(trial, *read)
    kept = dict(found)
    if len(kept) == len(trials):
        return [kept[number] for number in range(len(trials))]
    if worlds is None:
        worlds = Worlds(Path(directory) / "cache", given)
    prepared = {number: _prepared(worlds, trial) for number, trial in enumerate(trials)}

    def told(number: int) -> Told | None:
        if number in kept:
            return _again(kept[number])
        return None if report is None else functools.partial(report, number)

    def ended(number: int, what: Ended, seconds: float) -> None:
        if number not in kept:
            trial = trials[number]
            record.write(trial.name, trial.config, what, seconds)
            found[number] = _outcome(trial, what, seconds)

    def lost(number: int, seconds: float) -> None:
        found[number] = _outcome(trials[number], Ended((), {}, OUT_OF_MEMORY), seconds)

    keep = {"weights": keep_weights, "predictions": keep_predictions}
    lone = _Alone(worlds, prepared, told, ended, keep)
    with Workers(workers) as several:
        # Groups are made of all trials, and one that was killed runs whole again: of fewer trials, products
        # would be rounded otherwise, and what a search makes of them might be another one.
        for members in grouped(prepared, worlds, vmapped):
            if all(number in kept for number in members.numbers):
                continue
            if len(members.numbers) > 1:
                several.wait()
                run_group(members, prepared, worlds, told, ended, memory=memory, **keep)
                continue
            [number] = members.numbers
            several.do(functools.partial(lone.run, number, several.halt, lost if spare else None))
    return [found[number] for number in range(len(trials))]


def _again(outcome: Outcome) -> Told:
    """Ends a trial that has been run before where it ended then."""
    last = outcome.history[-1]["step"] if outcome.history else 0
    return lambda row: outcome.stopped == PRUNED and row["step"] == last


@dataclasses.dataclass(frozen=True)
class _Alone:
    """Trials that run by themselves, in one thread or several: only what computes runs side by side.

    Attributes:
      told: gives what hears of the evaluations of a trial.
      ended: (number, what is left, seconds), called when a trial has ended.
      keep: see `run_alone`.
    """

    worlds: Worlds
    prepared: Mapping[int, Prepared]
    told: Callable[[int], Told | None]
    ended: Callable[[int, Ended, float], None]
    keep: Mapping[str, bool]
    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def run(
        self, number: int, halt: threading.Event, lost: Callable[[int, float], None] | None
    ) -> None:
        """From the first update to the last. lost: called where there is no memory for it; None: an error."""
        start, told = time.perf_counter(), self.told(number)
        try:
            with self.turn:
                run, state = self.worlds.begin(self.prepared[number])
                source = self.worlds.source(run)
            hears = None if told is None else functools.partial(self._hears, told)
            left = run_alone(run, state, source, hears, halt=halt, **self.keep)
        except (RuntimeError, MemoryError) as error:
            if lost is None or not is_out_of_memory(error):
                raise
            lost(number, time.perf_counter() - start)
            return
        with self.turn:
            self.ended(number, left, time.perf_counter() - start)

    def _hears(self, told: Told, row: Mapping[str, Any]) -> bool:
        with self.turn:
            return told(row)


def _prepared(worlds: Worlds, trial: Trial) -> Prepared:
    try:
        validate(trial.config)
        return worlds.prepared(trial.config)
    except ValueError as error:
        raise ValueError(f"trial {trial.name}: {error}") from None


def _outcome(trial: Trial, ended: Ended, seconds: float) -> Outcome:
    return Outcome(
        trial, ended.history, ended.best, ended.stopped, seconds, ended.weights, ended.predicted,
        ended.memory,
    )  # fmt: skip
