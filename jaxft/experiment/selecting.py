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
from jaxft.analysis.selection import Candidate, Estimate, Selection
from jaxft.analysis.transferability import h_score, logme
from jaxft.config import ConfigDict
from jaxft.data.subsets import holdout
from jaxft.data.targets import Targets
from jaxft.experiment.data import open_splits
from jaxft.experiment.features import Frozen, features_of, open_frozen
from jaxft.experiment.output import Output, check_output
from jaxft.experiment.split import Split
from jaxft.models import by_path
from jaxft.tasks.contract import Task
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
    config: ConfigDict, models: Sequence[str], *, rows: int, output: str
) -> tuple[Selection, tuple[str, ...]]:
    """Probe the candidates and write select.json and select.html into `output`.

    Args:
      config: of the run that the best is for; `model.path` is not read.
      models: directories or hub ids.
      rows: of the training data, at most; a stratified sample by `train.seed`.
      output: folder; made where it is not there.

    Returns:
      The ranking, and notes on the rows.

    Raises:
      ValueError: a candidate, the data or the output is not usable; one line.
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
    splits = open_splits(config, task, ())
    split = _sample(splits.train, rows, config.train.seed)
    probes = _probes(config.task, split.targets, config.train.seed)
    opened = [open_frozen(name, config, task, splits, split) for name in models]
    files = _files(Path(output), {"--config.data.train": config.data.train})
    lower = config.eval.metric in minimised(config.task)
    found = [_measure(one, config, probes) for one in opened]
    result = Selection(
        config.task, config.data.train, len(split.targets), FOLDS, config.train.seed,
        config.eval.metric, lower, probes.block_metric, selection.ranked(found),
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


def _files(folder: Path, reads: dict[str, str]) -> tuple[Path, Path]:
    """select.json and select.html, if writing them can harm nothing; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    named = (("select.json", selection.is_json), ("select.html", selection.is_page))
    first, second = (
        check_output(str(folder / name), reads=reads, earlier=earlier, written_by="select")
        for name, earlier in named
    )
    return first, second


def _measure(one: Frozen, config: ConfigDict, probes: Probes) -> Candidate:
    """Read the weights, compute all features, score them."""
    start = time.perf_counter()
    features, flops, peak = features_of(one, probes.targets, config)
    last = features[-1]
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
        seconds=time.perf_counter() - start,
    )
