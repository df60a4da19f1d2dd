"""A config trained and measured on each fold of its data, or under several seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.analysis import validation
from jaxft.analysis.validation import Measured, Validation
from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, to_json
from jaxft.data.label_cells import columns_of
from jaxft.experiment.data import Whole, open_whole
from jaxft.experiment.opening import Given
from jaxft.experiment.output import Output, check_output
from jaxft.experiment.prepared import Prepared
from jaxft.models import class_names
from jaxft.search.trials.trial import Outcome, run_trials
from jaxft.search.trials.workers import check_workers
from jaxft.search.trials.worlds import Worlds
from jaxft.search.validation.folder import Folder
from jaxft.search.validation.folds import Plan, Planned, check_config, notes, planned
from jaxft.search.validation.held_out import fingerprint, in_row_order, pooled, prediction_rows
from jaxft.tasks.names import METRICS, minimised

PREDICTIONS, JSON, PAGE = "predictions.jsonl", "cross_validate.json", "cross_validate.html"
_LINES = 1000  # of a file that are written at a time


@dataclasses.dataclass(frozen=True)
class Ran:
    """A trial with its rows and what came of it."""

    planned: Planned
    prepared: Prepared
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Opened:
    """A cross-validation whose data are read and checked, and whose folder is held.

    Attributes:
      whole: the training data.
      prepared: of each trial.
    """

    config: ConfigDict
    plan: Plan
    folder: Path
    worlds: Worlds
    trials: Sequence[Planned]
    prepared: Sequence[Prepared]
    whole: Whole

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of which rows each trial holds out, and of their targets: equal for two that are a pair."""
        held, whole = [one.splits.eval for one in self.prepared], self.whole
        columns = columns_of(whole.split.source, whole.label) if whole.label else whole.columns
        if not self.plan.folds:
            return fingerprint(held[:1], columns, held[0])
        return fingerprint(held, columns, whole.split)

    def run(self, workers: int = 1) -> Validation:
        """Run the trials that have not ended, and write what all of them say.

        Args:
          workers: so many run side by side.

        Raises:
          ValueError: a trial ended without being measured; one line.
        """
        outcomes = run_trials(
            [one.trial for one in self.trials], directory=self.folder, worlds=self.worlds,
            report=_said(self.trials, self.config.eval.metric), keep_predictions=True,
            workers=workers,
        )  # fmt: skip
        ran = [Ran(*each) for each in zip(self.trials, self.prepared, outcomes, strict=True)]
        _check_measured(ran)
        found = _validation(self, ran)
        _write(self.folder, found, _rows(self.plan, ran, str(self.folder / "cache")))
        return found


@contextlib.contextmanager
def opened(
    config: ConfigDict, plan: Plan, output: str, given: Given | None = None
) -> Iterator[Opened]:
    """Open the data of all trials, and hold the folder within the block. See `cross_validate`."""
    check_config(config, plan)
    folder = Folder(Path(output))
    with folder.claimed():
        trials, cache = planned(config, plan), folder.path / "cache"
        worlds = Worlds(cache, given, readers=len(trials))
        prepared = [worlds.prepared(one.trial.config) for one in trials]
        names = class_names(prepared[0].directory)
        whole = open_whole(trials[0].trial.config, prepared[0].task, names, str(cache), given)
        folder.begin(config, plan, prepared[0], whole)
        for note in whole.notes:
            print(note, flush=True)
        yield Opened(config, plan, folder.path, worlds, trials, prepared, whole)


def cross_validate(
    config: ConfigDict, plan: Plan, output: str, *, given: Given | None = None, workers: int = 1
) -> Validation:
    """Run what is planned, and write cross_validate.json, cross_validate.html and predictions.jsonl.

    The same call after a kill goes on with the trials that had not ended, and more repeats or seeds go on
    from those that are there.

    Args:
      output: folder of its own, made where it is not there; the trials are kept in it.
      given: sources in memory, see `open_named`.
      workers: trials that run side by side, on a CPU; each has the bits that it has alone.

    Raises:
      ValueError: the config, the data, the folder or the number of workers is not usable, or a trial ended
        without being measured; one line.
      OSError: the folder cannot be written, or another process holds it.
    """
    check_workers(workers, config)
    with opened(config, plan, output, given) as one:
        return one.run(workers)


def _said(trials: Sequence[Planned], metric: str) -> Any:
    def report(number: int, row: Mapping[str, Any]) -> bool:
        name = trials[number].trial.name
        print(
            f"{name} ({number + 1} of {len(trials)}): step {row['step']}, {metric} {row[metric]:.4f}",
            flush=True,
        )
        return False

    return report


def _check_measured(ran: Sequence[Ran]) -> None:
    """Raises ValueError: a trial was not evaluated, so that a mean would be over the others."""
    for one in ran:
        if not one.outcome.best or one.outcome.stopped == "not finite":
            raise ValueError(
                f"trial {one.planned.trial.name} ended with a loss that is not finite, and without it there "
                "is no mean: lower config.optim.lr, or set config.optim.clip"
            )


def _validation(one: Opened, ran: Sequence[Ran]) -> Validation:
    config, plan, whole = one.config, one.plan, one.whole
    task = ran[0].prepared.task
    names = [config.eval.metric, *task.compared, "loss"]
    metrics = METRICS[config.task]
    trials = tuple(_measured(each, tuple(metrics)) for each in ran)
    shown = [n for n in dict.fromkeys(names) if all(n in t.metrics for t in trials)]
    said = notes(config, plan, whole)
    if any(name.endswith("_tuned") for name in trials[0].metrics):
        said.append(
            "metrics that end in _tuned are at thresholds fitted on the same held-out rows, as in a run, "
            "and a little better than on others"
        )
    if early := [t.name for t in trials if t.stopped]:
        said.append(f"stopped early: {', '.join(early)}")
    return Validation(
        task=config.task, metric=config.eval.metric, minimised=minimised(config.task),
        shown=tuple(shown), folds=plan.folds, repeats=plan.repeats, checkpoint=plan.checkpoint,
        config=flatten(to_json(config)), fingerprint=one.fingerprint, trials=trials,
        pooled=tuple(_pooled(plan, whole, ran, tuple(metrics))), notes=tuple(said),
    )  # fmt: skip


def _measured(one: Ran, metrics: Sequence[str]) -> Measured:
    config, splits, outcome = one.planned.trial.config, one.prepared.splits, one.outcome
    return Measured(
        name=one.planned.trial.name, repeat=one.planned.repeat, fold=one.planned.fold,
        seed=config.train.seed, split_seed=config.data.split_seed, trained=len(splits.train.targets),
        held_out=len(splits.eval.targets), step=outcome.best["step"], stopped=outcome.stopped,
        seconds=round(outcome.seconds, 3), metrics=_numbers(outcome.best, metrics),
    )  # fmt: skip


def _numbers(found: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """Those of the metrics that are there and numbers."""
    values = {name: found.get(name) for name in metrics}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _pooled(
    plan: Plan, whole: Whole, ran: Sequence[Ran], metrics: Sequence[str]
) -> Iterator[dict[str, float]]:
    """Of each repeat, over the rows of all its folds."""
    targets = whole.split.targets
    for repeat in range(plan.repeats if plan.folds else 0):
        parts = [
            (one.prepared.splits.eval.targets, one.outcome.predicted or {})
            for one in ran
            if one.planned.repeat == repeat
        ]
        found, _ = ran[0].prepared.task.scores(pooled(targets, parts), targets)
        yield _numbers(found, metrics)


def _rows(plan: Plan, ran: Sequence[Ran], cache: str) -> Iterator[dict[str, Any]]:
    """Of predictions.jsonl: repeat by repeat, or seed by seed, in the order of the data."""
    for repeat in range(plan.repeats):
        own = [one for one in ran if one.planned.repeat == repeat]
        if not plan.folds:
            for one in own:
                name = {"seed": one.planned.trial.config.train.seed}
                yield from in_row_order([(name, prediction_rows(one.prepared, one.outcome, cache))])
        else:
            yield from in_row_order(
                [
                    (
                        {"repeat": repeat, "fold": one.planned.fold},
                        prediction_rows(one.prepared, one.outcome, cache),
                    )
                    for one in own
                ]
            )


def _write(folder: Path, found: Validation, rows: Iterator[dict[str, Any]]) -> None:
    """The three files; first what cannot be had again from another."""
    with Output(_checked(folder, PREDICTIONS)) as file:
        lines: list[str] = []
        for row in rows:
            lines.append(json.dumps(row) + "\n")
            if len(lines) == _LINES:
                file.write("".join(lines).encode())
                lines = []
        file.write("".join(lines).encode())
    texts = {PAGE: validation.render(found), JSON: json.dumps(validation.to_json(found), indent=1)}
    for name, text in texts.items():
        with Output(_checked(folder, name)) as file:
            file.write((text + "\n").encode("utf-8", "replace"))


def _checked(folder: Path, name: str) -> Path:
    """The folder is ours, so what is there of this name is."""
    return check_output(
        str(folder / name), reads={}, earlier=lambda _: True, written_by="cross_validate"
    )
