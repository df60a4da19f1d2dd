"""One model, or one answer, of several trials of a search: what `soup` does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxft.analysis.page import is_by
from jaxft.config import ConfigDict
from jaxft.experiment import finish
from jaxft.experiment.build import Run
from jaxft.experiment.ensemble import RECORD, WRITER, averaged
from jaxft.experiment.evaluation import Evaluation, Predictions, evaluate
from jaxft.experiment.output import Output
from jaxft.experiment.split import Split
from jaxft.models import by_path
from jaxft.optim import path_map
from jaxft.search.soup import Weights, greedy, uniform
from jaxft.search.trials.progress import NOT_FINITE, PRUNED
from jaxft.search.trials.record import Record
from jaxft.search.trials.trial import Outcome, Trial, run_trials
from jaxft.search.trials.worlds import Worlds
from jaxft.tasks.contract import fits, fitted
from jaxft.tasks.names import minimised
from jaxft.training.step import TrainState

KINDS = ("greedy", "uniform")


@dataclasses.dataclass(frozen=True)
class Souped:
    """What was found.

    Attributes:
      metric: by which all are compared, on the evaluation data that also chose them.
      rows: what it is -> value there, and on the test data (None: there are none).
      members: trials of the greedy soup.
      notes: one line each.
      written: folders and files.
      ensemble: its 'members' by name, and what was 'fitted' to the mean of their logits; None: there is none.
    """

    metric: str
    rows: dict[str, tuple[float, float | None]]
    members: tuple[str, ...]
    notes: tuple[str, ...]
    written: tuple[str, ...]
    ensemble: dict[str, Any] | None = None


def soup(trials: str, output: str, *, top: int, kind: str, ensemble: bool) -> Souped:
    """Average the best trials of a search, export the soup, and write soup.json into `output`.

    Args:
      trials: directory of the search. A trial whose weights were not kept is run again, in `output`.
      top: so many of the best trials, by `eval.metric`.
      kind: of the soup that is exported: one of KINDS.
      ensemble: also export each member, and write the predictions of the mean of their logits for the
        evaluation rows.

    Raises:
      ValueError: no such trials, an argument or folder that is not usable, trials over other data or models,
        or averages that would mean nothing; one line.
    """
    if kind not in KINDS:
        raise ValueError(f"--kind={kind} is not possible; it may be {' or '.join(KINDS)}")
    if top < 2:
        raise ValueError(f"--top={top}: give at least 2")
    place, worlds = _place(output), Worlds(Path(output) / "cache")
    chosen = _chosen(Path(trials), top)
    base = worlds.prepared(chosen[0].config)
    _check(chosen, base.config, [base.unshared(one.config) for one in chosen])
    outcomes = _outcomes(chosen, Path(trials), place, worlds)
    kitchen = _Kitchen(worlds, base.config)
    result = _mixed(kitchen, outcomes, place, kind=kind, ensemble=ensemble)
    values = {"written by": WRITER, "trials": [one.trial.name for one in outcomes]}
    with Output(place / RECORD) as file:
        file.write((json.dumps(values | dataclasses.asdict(result), indent=1) + "\n").encode())
    return result


class _Kitchen:
    """The model and the data of the trials, to measure what is made of their weights."""

    def __init__(self, worlds: Worlds, config: ConfigDict):
        run, state = worlds.begin(worlds.prepared(config))
        self.run: Run = run
        self._state: TrainState = state
        self._source = worlds.source(run)
        self.source: Weights = by_path(self._source)
        self.sign = -1 if config.eval.metric in minimised(config.task) else 1
        self.metric: str = config.eval.metric

    def whole(self, weights: Weights) -> Any:
        """The tree with these leaves, placed; a head that is fitted is fitted to them."""
        run = self.run

        def leaf(path: str, x: jax.Array) -> jax.Array:
            return jax.device_put(weights[path], x.sharding) if path in weights else x

        whole = run.parallel.replicate(path_map(leaf, self._source))
        if (fitting := run.fitting(run.prepared.length.steps)) is None:
            return whole
        head = by_path(fitting(run.prepared.task, self._state, whole).stats)
        return path_map(lambda path, x: head.get(path, x), whole)

    def measured(self, whole: Any) -> Evaluation:
        """On the evaluation data."""
        run = self.run
        steps = run.prepared.length.steps
        return self._evaluated(run.prepared.splits.eval, run.eval_batches(steps), whole)

    def tested(self, whole: Any, metrics: Mapping[str, Any]) -> Evaluation | None:
        """On the test data, where there are any, with what was fitted on the evaluation data."""
        split, batches = self.run.prepared.splits.test, self.run.shared.test_batches
        return None if split is None else self._evaluated(split, batches, whole, metrics)

    def _evaluated(
        self, split: Split, batches: Any, whole: Any, metrics: Mapping[str, Any] | None = None
    ) -> Evaluation:
        run, shared = self.run, self.run.shared
        task = fitted(run.prepared.task, metrics or {}, run.prepared.splits.names)
        return evaluate(
            task, shared.eval_step, whole, batches, run.parallel, split, writer=shared.writer,
            threads=run.prepared.config.data.workers,
        )  # fmt: skip

    def value(self, found: Evaluation | None) -> float | None:
        """Of the metric that is compared."""
        return None if found is None else float(found.metrics[self.metric])


def _place(output: str) -> Path:
    """The folder of the output, made; of other things it is left as it is."""
    place = Path(output)
    if place.exists() and not place.is_dir():
        raise ValueError(f"--output {output} is a file; give a folder")
    there = {entry.name for entry in place.iterdir()} if place.exists() else set()
    ours = is_by(place / RECORD, WRITER) or there <= {"cache", "trials"}
    if there and not ours:
        raise ValueError(
            f"--output {output} holds {min(there)!r} and no soup of before, so it is left as it is; give "
            "another folder"
        )
    place.mkdir(parents=True, exist_ok=True)
    return place


def _chosen(directory: Path, top: int) -> list[Trial]:
    """The best trials of a search, the best first."""
    record = Record(directory / "trials", weights=False, predictions=False)
    found = []
    for name, config in record.configs().items():
        kept = record.read(name, config)
        if kept is not None and kept[0].best and kept[0].stopped not in (PRUNED, NOT_FINITE):
            found.append((Trial(name, config), kept[0].best))
    if len(found) < 2:
        raise ValueError(
            f"--trials={directory} has {len(found)} trials that ran to their end in {directory / 'trials'}; "
            "at least 2 are needed, such as those of a sweep"
        )
    metrics = {trial.config.eval.metric for trial, _ in found}
    if len(metrics) > 1:
        raise ValueError(
            f"the trials in {directory} are compared by different metrics ({', '.join(sorted(metrics))})"
        )
    metric, config = metrics.pop(), found[0][0].config
    sign = 1 if metric in minimised(config.task) else -1
    found.sort(key=lambda pair: sign * pair[1][metric])
    return [trial for trial, _ in found[:top]]


def _check(chosen: Sequence[Trial], base: ConfigDict, unshared: Sequence[tuple[str, ...]]) -> None:
    for trial, fields in zip(chosen, unshared, strict=True):
        for field in fields:
            raise ValueError(
                f"trial {trial.name} has another config.{field} than trial {chosen[0].name}: only trials "
                "over the same data and model are averaged"
            )
    if base.model.batch_stats == "train":
        raise ValueError(
            "config.model.batch_stats='train': the batch statistics of an average are not the average of "
            "the statistics; average trials with 'frozen'"
        )


def _outcomes(
    chosen: Sequence[Trial], directory: Path, place: Path, worlds: Worlds
) -> list[Outcome]:
    """With weights and predictions. What was kept without is run again, and kept in `place`."""
    record = Record(directory / "trials", weights=True, predictions=True)
    found: dict[str, Outcome] = {}
    for trial in chosen:
        kept = record.read(trial.name, trial.config)
        if kept is not None:
            ended, seconds = kept
            found[trial.name] = Outcome(
                trial, ended.history, ended.best, ended.stopped, seconds, ended.weights, ended.predicted
            )  # fmt: skip
    again = [trial for trial in chosen if trial.name not in found]
    for outcome in run_trials(
        again, directory=place, worlds=worlds, keep_weights=True, keep_predictions=True
    ):
        found[outcome.trial.name] = outcome
    return [found[trial.name] for trial in chosen]


def _mixed(
    kitchen: _Kitchen, outcomes: Sequence[Outcome], place: Path, *, kind: str, ensemble: bool
) -> Souped:
    weights = [one.weights for one in outcomes if one.weights is not None]
    assert len(weights) == len(outcomes)
    names = [one.trial.name for one in outcomes]
    soups: dict[tuple[int, ...], Evaluation] = {}

    def whole(members: Sequence[int]) -> Any:
        return kitchen.whole(uniform([weights[i] for i in members], kitchen.source))

    def value(members: tuple[int, ...]) -> float:
        if members not in soups:
            soups[members] = kitchen.measured(whole(members))
        return kitchen.sign * float(soups[members].metrics[kitchen.metric])

    members, _ = greedy(len(weights), value)
    every = tuple(range(len(weights)))
    value(every)
    rows: dict[str, tuple[float, float | None]] = {}
    for title, own in (("best trial", (0,)), ("uniform soup", every), ("greedy soup", members)):
        tested = kitchen.tested(whole(own), soups[own].metrics)
        rows[title] = (float(soups[own].metrics[kitchen.metric]), kitchen.value(tested))
    taken = members if kind == "greedy" else every
    written = [_exported(kitchen, place / "soup", whole(taken), weights, [names[i] for i in taken],
                         soups[taken])]  # fmt: skip
    notes, mean = [*_notes(kitchen, outcomes)], None
    if ensemble:
        rows["mean of the logits"], more, own_fits = _ensemble(kitchen, outcomes, place)
        written += more
        mean = {"members": names, "fitted": own_fits}
    return Souped(
        kitchen.metric, rows, tuple(names[i] for i in members), tuple(notes), tuple(written), mean
    )


def _notes(kitchen: _Kitchen, outcomes: Sequence[Outcome]) -> list[str]:
    notes = [
        "the greedy soup is chosen by the evaluation data, whose value is thus a little too good"
    ]
    seeds = {one.trial.config.train.seed for one in outcomes}
    drawn = [p for p in kitchen.run.initialised if p in kitchen.run.prepared.architecture.depths]
    if drawn and len(seeds) > 1:
        notes.append(
            f"the trials have {len(seeds)} seeds, and so {len(seeds)} new heads: weights that began "
            "differently have no useful average; average trials of one seed, or begin with a trained head"
        )
    return notes


def _exported(
    kitchen: _Kitchen, output: Path, whole: Any, weights: Sequence[Weights], names: Sequence[str],
    found: Evaluation,
) -> str:  # fmt: skip
    """Write a checkpoint in Hugging Face format; its card says of which trials it is the average."""
    prepared, trained = kitchen.run.prepared, {path for one in weights for path in one}
    unchanged = frozenset(by_path(whole).keys() - trained)
    origin = (
        f"Its weights are the mean of those of {len(names)} trained models ({', '.join(names)}), a model "
        "soup (Wortsman et al. 2022, arXiv:2203.05482). The settings below are those of the best of them."
    )
    finish.export(
        prepared, kitchen.run.parallel, whole, str(output), unchanged=unchanged, lead=True,
        metrics=found.metrics, origin=origin if len(names) > 1 else "",
    )  # fmt: skip
    return str(output)


def _ensemble(
    kitchen: _Kitchen, outcomes: Sequence[Outcome], place: Path
) -> tuple[tuple[float, float | None], list[str], dict[str, Any]]:
    """Export every member, and the predictions of their mean.

    Returns:
      (value, value on test data), what was written, and what was fitted to the mean.
    """
    run, written, tested = kitchen.run, [], []
    splits, task = run.prepared.splits, run.prepared.task
    predicted = averaged(task, splits.eval.targets, [one.predicted or {} for one in outcomes])
    found = Evaluation(predicted, *task.scores(predicted, splits.eval.targets))
    for one in outcomes:
        assert one.weights is not None
        whole = kitchen.whole(one.weights)
        own = Evaluation({}, one.best, {})
        path = place / "members" / one.trial.name
        path.parent.mkdir(exist_ok=True)
        written.append(
            _exported(kitchen, path, whole, [one.weights], [one.trial.name], own)
        )  # fmt: skip
        if (there := kitchen.tested(whole, one.best)) is not None:
            tested.append(there.predicted)
    rows = Predictions(task, splits.eval, run.shared.encoder)
    with Output(place / "predictions.jsonl") as file:
        for row in rows.rows(found):
            file.write((json.dumps(row) + "\n").encode())
    value = None
    if splits.test is not None:
        own_task = fitted(task, found.metrics, splits.names)
        mean = averaged(own_task, splits.test.targets, tested)
        value = float(own_task.scores(mean, splits.test.targets)[0][kitchen.metric])
    both = (float(found.metrics[kitchen.metric]), value)
    return both, [*written, str(place / "predictions.jsonl")], fits(task, found.metrics)
