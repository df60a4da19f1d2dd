"""What `sweep` does: take trials, run them, tell what came of them, until there are as many as asked for."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from jaxft.analysis import sweep as page
from jaxft.base.nested import as_tuples
from jaxft.config import ConfigDict, override
from jaxft.experiment.output import Output
from jaxft.search.sweeps import objectives
from jaxft.search.sweeps.best_config import config_file
from jaxft.search.sweeps.hearing import Hearing
from jaxft.search.sweeps.optuna_study import Plan, Pruning, distribution, front, importances
from jaxft.search.sweeps.place import Place
from jaxft.search.sweeps.plan import (
    Asked,
    identity_of,
    looked_at,
    number_of_trials,
    plan_of,
    settled,
)
from jaxft.search.sweeps.space import EVALUATED, Space, said
from jaxft.search.sweeps.study import Batch, Study, Told, open_study
from jaxft.search.trials.progress import NOT_FINITE, OUT_OF_MEMORY, PRUNED
from jaxft.search.trials.record import Record
from jaxft.search.trials.trial import Outcome, Trial, run_trials
from jaxft.search.trials.worlds import Worlds

_TO_GIVE_UP = 4  # trials that cannot work, before any that can


def shown(line: str) -> None:
    """Print a line at once: a file of them, too, is there to be watched."""
    print(line, flush=True)


def sweep(
    config: ConfigDict, space: Space, asked: Asked, place: Place, say: Callable[[str], None] = shown
) -> page.Sweep:
    """Run what is left of a sweep, and write sweep.json, sweep.html and best.py into its directory.

    Args:
      place: the directory, which this process is allowed to write.
      say: hears of each trial, one line.

    Raises:
      ValueError: settings that cannot be, a space with a config that cannot work, or a study of another
        sweep; one line.
    """
    plan = plan_of(asked, config)
    most = number_of_trials(asked, space)
    with open_study(place.path, asked.storage, asked.study, plan.directions) as study:
        worlds = Worlds(place.path / "cache")
        known = study.identity()
        if known is None:
            plan = looked_at(config, space, plan, worlds)
            known = study.begin(identity_of(config, space, plan))
        plan = settled(known, config, space, plan, place.path)
        for field in (f for f in space.fields if f in EVALUATED):
            say(f"warning: config.{field} is searched: trials are evaluated on different rows")
        run = _Batches(config, plan, worlds, place.path, study, say)
        while batch := study.take(plan, space, most):
            run(batch)
        found = _found(config, space, plan, study, asked)
        if plan.at_once > 1 and found.best and not found.count("running"):
            found = _by_itself(found, config, place, worlds, say)
    _write(found, config, place)
    return found


class _Batches:
    """Runs batches; each trial becomes a line."""

    def __init__(
        self, config: ConfigDict, plan: Plan, worlds: Worlds, directory: Path, study: Study,
        say: Callable[[str], None],
    ):  # fmt: skip
        self._config, self._plan, self._worlds = config, plan, worlds
        self._directory, self._study, self._say = directory, study, say
        self._working, self._failed = False, 0

    def __call__(self, batch: Batch) -> None:
        untold = set(batch.changes)
        first, last = min(untold), max(untold)
        self._say(
            f"running trials {first} to {last}" if len(untold) > 1 else f"running trial {last}"
        )
        try:
            trials = self._usable(batch, untold)
            for number, told in self._came_of(trials, batch).items():
                self._study.tell(number, told)
                untold.discard(number)
                self._say(self._line(number, batch.changes[number], told))
        finally:  # also where the run is interrupted
            self._study.give_back(sorted(untold))

    def _usable(self, batch: Batch, untold: set[int]) -> dict[int, Trial]:
        """The trials that can work; the others have failed by their config."""
        trials, told = {}, {}
        for number, changes in batch.changes.items():
            config = override(self._config, _values(changes))
            try:
                self._worlds.prepared(config)
                trials[number] = Trial(f"{number:04d}", config)
            except ValueError as error:
                told[number] = _failed(str(error))
        self._working = self._working or bool(trials)
        self._failed += len(told)
        if not self._working and self._failed >= max(self._plan.at_once, _TO_GIVE_UP):
            number, one = next(iter(told.items()))
            raise ValueError(
                f"none of {self._failed} trials has a config that can work; trial {number} "
                f"({said(batch.changes[number])}): {one.facts['why']}"
            )
        for number, one in told.items():
            self._study.tell(number, one)
            untold.discard(number)
            self._say(self._line(number, batch.changes[number], one))
        return trials

    def _came_of(self, trials: Mapping[int, Trial], batch: Batch) -> dict[int, Told]:
        if not trials:
            return {}
        pruning = Pruning(batch.trials, list(trials), self._plan)
        notes = self._directory / "reports" / f"{min(batch.changes):04d}.jsonl"
        hearing = Hearing(pruning, notes, list(trials), self._plan.objectives[0])
        # Trials that ended before a kill are read below, without a report: what of them is not noted,
        # as on another machine, is heard here.
        record = Record(self._directory / "trials", weights=False, predictions=False)
        for place, trial in enumerate(trials.values()):
            ended = record.read(trial.name, trial.config)
            for row in ended[0].history if ended else ():
                hearing.report(place, row)
        outcomes = run_trials(
            list(trials.values()),
            directory=self._directory,
            worlds=self._worlds,
            report=hearing.report,
            vmapped=objectives.vmapped(self._plan.objectives),
            spare=True,
        )
        found = {
            number: self._told(outcome, pruning.notes(number))
            for number, outcome in zip(trials, outcomes, strict=True)
        }
        hearing.over()
        return found

    def _told(self, outcome: Outcome, notes: Mapping[str, Any]) -> Told:
        plan, prepared = self._plan, self._worlds.prepared(outcome.trial.config)
        finite = [r for r in outcome.history if math.isfinite(float(r[plan.objectives[0]]))]
        curve = tuple(float(row[plan.objectives[0]]) for row in finite)
        facts: dict[str, Any] = {"seconds": outcome.seconds, "why": "", "stopped": outcome.stopped}
        if outcome.stopped not in (PRUNED, NOT_FINITE, OUT_OF_MEMORY):
            values = objectives.values(plan.objectives, outcome.best, outcome, prepared)
            if values is not None:
                facts["step"] = outcome.best["step"]
                return Told(TrialState.COMPLETE, values, curve, notes, facts)
        if outcome.stopped != PRUNED:
            lost = outcome.stopped == OUT_OF_MEMORY
            facts["why"] = "out of memory" if lost else "the loss is not finite"
            if lost:  # nothing is known of its value, which may be a good one
                return Told(TrialState.FAIL, None, (), {}, facts)
        # A rate with which the loss is lost is a bad one, which is to be known; of several objectives no
        # trial can be pruned.
        if len(plan.objectives) > 1:
            return Told(TrialState.FAIL, None, curve, {}, facts)
        return Told(TrialState.PRUNED, curve[-1:] or None, curve, notes, facts)

    def _line(self, number: int, changes: Mapping[str, Any], told: Told) -> str:
        named = zip(self._plan.objectives, told.values or (), strict=False)
        values = ", ".join(f"{name} {value:.5g}" for name, value in named)
        states = {TrialState.COMPLETE: "", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        parts = [states[told.state], told.facts.get("why", ""), values]
        return f"trial {number}: {', '.join(filter(None, parts))} ({said(_values(changes))})"


def _values(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes as a config has them: a storage has lists in place of tuples."""
    return {field: as_tuples(value) for field, value in changes.items()}


def _failed(why: str) -> Told:
    return Told(TrialState.FAIL, None, (), {}, {"why": why, "seconds": 0.0, "stopped": ""})


def _found(config: ConfigDict, space: Space, plan: Plan, study: Study, asked: Asked) -> page.Sweep:
    """What the study holds now."""
    trials = study.trials()
    states = {"FAIL": page.FAILED}
    rows = [
        page.Row(
            one.number,
            states.get(one.state.name, one.state.name.lower()),
            tuple(one.values or ()),
            _values(one.user_attrs.get("changes", {})),
            dict(one.params),
            tuple(one.intermediate_values[k] for k in sorted(one.intermediate_values)),
            one.user_attrs.get("seconds"),
            one.user_attrs.get("why") or "",
        )
        for one in trials
        if "changes" in one.user_attrs
    ]
    axes = []
    for one in space.searched:
        kind = distribution(one)
        axes.append(page.Axis(one.name, getattr(kind, "log", False), getattr(kind, "choices", ())))
    best = front(trials, plan)
    notes = []
    if others := sum(row.state == "running" for row in rows):
        notes.append(
            f"{others} trials are run by other processes; the last to end writes all of it"
        )
    if "seconds" in plan.objectives:
        notes.append("seconds differ from run to run, and with what else the machine does")
    return page.Sweep(
        config.task, plan.objectives, plan.directions, _how(config, plan, asked), tuple(axes),
        tuple(rows), tuple(best), importances(trials, plan, [a.name for a in axes]), tuple(notes),
    )  # fmt: skip


def _how(config: ConfigDict, plan: Plan, asked: Asked) -> tuple[tuple[str, str], ...]:
    return (
        ("model", str(config.model.path)),
        ("training data", str(config.data.train or [name for name, _ in config.data.mixture])),
        ("sampler", plan.sampler),
        ("pruner", plan.pruner),
        ("seed", str(plan.seed)),
        ("trials asked for at once", str(plan.at_once)),
        ("storage", asked.storage or "the journal in the directory"),
    )


def _by_itself(
    found: page.Sweep, config: ConfigDict, place: Place, worlds: Worlds, say: Callable[[str], None]
) -> page.Sweep:
    """With what the best trial comes to alone, with the bits of `train`: beside others it may have been
    rounded otherwise."""
    row = next(row for row in found.rows if row.number == found.best[0])
    trial = Trial(f"best-{row.number:04d}", override(config, row.changes))
    [outcome] = run_trials([trial], directory=place.path, worlds=worlds)
    name = found.objectives[0]
    alone, before = float(outcome.best.get(name, math.nan)), row.values[0]
    note = f"trial {row.number} by itself, as train has it: {name} {alone!r}"
    note += "" if alone == before else f", beside others {before!r}: rounded otherwise"
    say(note)
    return dataclasses.replace(found, notes=(*found.notes, note))


def _write(found: page.Sweep, config: ConfigDict, place: Place) -> None:
    texts: dict[Path, str] = {
        place.json: json.dumps(page.to_json(found), indent=1) + "\n",
        place.page: page.render(found),
    }
    if found.best:
        changes = {row.number: row.changes for row in found.rows}
        best = {number: changes[number] for number in found.best}
        values = next(row.values for row in found.rows if row.number == found.best[0])
        text = ", ".join(f"{n} {v:.6g}" for n, v in zip(found.objectives, values, strict=True))
        texts[place.best] = config_file(config, best, f"trial {found.best[0]}, {text}")
    for path, text in texts.items():
        with Output(path) as file:
            file.write(text.encode("utf-8", "replace"))


def summary(found: page.Sweep, most: int) -> tuple[list[str], Sequence[Sequence[str]], list[str]]:
    """(heads, rows, notes) of the table for the terminal: the best trials."""
    rows = page.ordered(found)[:most]
    left = len(found.rows) - len(rows)
    notes = [f"{len(found.rows)} trials: {found.summary}"]
    notes += [f"{left} more are in sweep.html"] if left > 0 else []
    return page.heads(found), page.cells(found, rows), [*notes, *found.notes]
