"""Candidate checkpoints probed on a run's training rows: what `select` does."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.analysis import probing, selection
from jaxft.analysis.candidate import Candidate, Estimate, Unranked
from jaxft.analysis.selection import Selection
from jaxft.analysis.signal import Signal, spectral_ratio
from jaxft.analysis.transferability import h_score, logme
from jaxft.config import ConfigDict
from jaxft.data.subsets import holdout
from jaxft.data.targets import Targets
from jaxft.experiment.data import open_splits
from jaxft.experiment.features import Frozen, features_of, open_frozen
from jaxft.experiment.gradients import FEWEST, Plan, block_signals, plan_gradients
from jaxft.experiment.output import Output, check_pair
from jaxft.experiment.split import Split
from jaxft.models import Params, by_path
from jaxft.tasks.contract import HeadFitting, Task
from jaxft.tasks.names import minimised
from jaxft.tasks.table import TASKS

FOLDS = 5
_FEWEST = 4 * FOLDS  # rows, below which a fold holds three examples


@dataclasses.dataclass(frozen=True)
class Probes:
    """What the probes of all candidates have in common.

    Attributes:
      targets: of the rows; `columns`: [n, C], one-hot or the numbers themselves.
      classes: [n] class numbers; None where the targets are numbers.
      folds: (fitted, asked) positions.
    """

    task: Task[Any]
    targets: Targets
    columns: np.ndarray
    classes: np.ndarray | None
    folds: Sequence[tuple[np.ndarray, np.ndarray]]

    @property
    def block_metric(self) -> str:
        """A ridge gives no probabilities, so it is measured by what it predicts."""
        return "r2" if self.classes is None else "accuracy"

    def probe(self, features: np.ndarray, metric: str) -> Estimate:
        """Logistic or ridge regression on features [n, D]."""
        if self.classes is None:
            return self.ridge(features, metric)
        count = self.columns.shape[1]
        return self._measured(
            metric,
            (
                probing.classify(features[fitted], self.classes[fitted], features[asked], count)
                for fitted, asked in self.folds
            ),
        )

    def ridge(self, features: np.ndarray, metric: str) -> Estimate:
        """Ridge regression on features [n, D], for classes too."""
        return self._measured(
            metric,
            (
                probing.regress(features[fitted], self.columns[fitted], features[asked])
                for fitted, asked in self.folds
            ),
        )

    def _measured(self, metric: str, outputs: Iterator[np.ndarray]) -> Estimate:
        values = []
        for logits, (_, asked) in zip(outputs, self.folds, strict=True):
            part = self.targets.take(asked)
            kept = self.task.kept(part, {"logits": logits}, np.arange(len(part)))
            values.append(self.task.scores(kept, part)[0][metric])
        return Estimate(
            float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))
        )


def select(
    config: ConfigDict, models: Sequence[str], *, rows: int, gradients: int, output: str
) -> tuple[Selection, tuple[str, ...]]:
    """Probe the candidates and write select.json and select.html into `output`.

    Args:
      config: of the run that the best is for; `model.path` is not read.
      models: directories or hub ids.
      rows: of the training data, at most; a stratified sample by `train.seed`.
      gradients: batches of which the gradients of each block are compared; 0: they are not computed.
      output: folder; made where it is not there.

    Returns:
      The ranking, and notes on the rows. A candidate of which it turns out as it is computed that it cannot
      be measured, as a module that cannot be traced, is listed with the reason.

    Raises:
      ValueError: a candidate, the data or the output is not usable, or no candidate can be measured; one
        line.
    """
    task = TASKS[config.task]
    if task.head is not None:
        raise ValueError(_not_probed(config.task))
    if config.model.scratch:
        raise ValueError("config.model.scratch=True: select compares pretrained weights")
    if not models:
        raise ValueError("--models is empty: name checkpoints, A,B,C")
    if rows < _FEWEST:
        raise ValueError(f"--rows={rows} is too few to probe; give at least {_FEWEST}")
    if gradients and gradients < FEWEST:
        raise ValueError(
            f"--gradients={gradients} batches are too few; give at least {FEWEST}, or 0 for none"
        )
    splits = open_splits(config, task, ())
    split = _sample(splits.train, rows, config.train.seed)
    probes = _probes(config.task, split.targets, config.train.seed)
    opened = [open_frozen(name, config, task, splits, split) for name in models]
    files = check_pair(
        Path(output),
        ("select.json", selection.is_json),
        ("select.html", selection.is_page),
        reads={"--config.data.train": config.data.train},
        written_by="select",
    )
    lower = config.eval.metric in minimised(config.task)
    plan = plan_gradients(
        split.targets.strata(), gradients, config.train.batch_size, config.train.seed
    )
    found, unranked = _measured(opened, config, probes, split, plan)
    result = Selection(
        config.task, config.data.train, len(split.targets), FOLDS, config.train.seed,
        config.eval.metric, lower, probes.block_metric, plan.batches, plan.batch_size,
        selection.ranked(found), tuple(unranked),
    )  # fmt: skip
    texts = (json.dumps(selection.to_json(result), indent=1), selection.render(result))
    for path, text in zip(files, texts, strict=True):
        with Output(path) as file:
            file.write((text + "\n").encode("utf-8", "replace"))
    return result, splits.notes


def _sample(split: Split, rows: int, seed: int) -> Split:
    if len(split.targets) > rows:
        share = rows / len(split.targets)
        split = split.take(holdout(split.targets.strata(), share, seed)[1])
    return split


def _not_probed(task: str) -> str:
    if isinstance(TASKS[task], HeadFitting):
        return f"config.task={task!r}: select probes its rows as those of 'text_classification'; name that"
    return f"config.task={task!r}: select probes what has one target for each whole example"


def _probes(name: str, targets: Targets, seed: int) -> Probes:
    if len(targets) < _FEWEST:
        raise ValueError(
            f"{len(targets)} training rows are too few to probe; at least {_FEWEST} are needed"
        )
    # What the loss is fed, in the order of the rows: class numbers, or numbers.
    task, values = TASKS[name], targets.fill(np.arange(len(targets)), {})["labels"]
    if values.ndim > 1:
        raise ValueError(_not_probed(name))
    folds = probing.folds(targets.strata(), FOLDS, seed)
    if not targets.names:
        return Probes(task, targets, values[:, None].astype(np.float64), None, folds)
    if (np.bincount(values) >= 2).sum() < 2:
        raise ValueError(f"the {len(targets)} rows have two or more examples of one label only")
    return Probes(task, targets, np.eye(len(targets.names))[values], values, folds)


def _measured(
    opened: Sequence[Frozen], config: ConfigDict, probes: Probes, split: Split, plan: Plan
) -> tuple[list[Candidate], list[Unranked]]:
    """What was measured, and what could not be.

    Raises:
      ValueError: of the first, if it is none of them.
    """
    found, unranked, first = [], [], None
    for one in opened:
        try:
            found.append(_measure(one, config, probes, split, plan))
        except (ValueError, FloatingPointError) as error:
            first = first or error
            unranked.append(Unranked(one.name, str(error).removeprefix(f"{one.name}: ")))
    if not found and first is not None:
        raise ValueError(
            f"no candidate can be measured; {unranked[0].name}: {unranked[0].why}"
        ) from first
    return found, unranked


def _measure(
    one: Frozen, config: ConfigDict, probes: Probes, split: Split, plan: Plan
) -> Candidate:
    """Read the weights, compute all features and gradients, score them."""
    start = time.perf_counter()
    params = one.read(config.train.seed)
    features, flops, peak = features_of(one, params, probes.targets, config)
    last, classes = features[-1], probes.classes is not None
    signals: tuple[Signal | None, ...] = ()
    if plan.batches:
        signals = block_signals(
            one, params, split, last, probes.columns, config, probes.task, plan, classes=classes
        )
    return Candidate(
        name=one.name,
        note=one.architecture.note,
        parameters=sum(math.prod(x.shape) for x in by_path(one.architecture.abstract).values()),
        flops=flops,
        peak_bytes=peak,
        probe=probes.probe(last, config.eval.metric),
        logme=logme(last, probes.columns),
        h_score=None if probes.classes is None else h_score(last, probes.classes),
        blocks=tuple(probes.ridge(x, probes.block_metric) for x in features),
        gradients=signals,
        weights=_spectra(one, params),
        seconds=time.perf_counter() - start,
    )


def _spectra(one: Frozen, params: Params) -> tuple[float | None, ...]:
    """Of each block the mean ratio over its matrices."""
    depths, count = one.architecture.depths, one.architecture.num_blocks
    found: list[list[float]] = [[] for _ in range(count)]
    for path, leaf in by_path(params).items():
        if 0 < depths.get(path, 0) <= count and leaf.ndim > 1:
            if (ratio := spectral_ratio(np.asarray(leaf))) is not None:
                found[depths[path] - 1].append(ratio)
    return tuple(float(np.mean(ratios)) if ratios else None for ratios in found)
