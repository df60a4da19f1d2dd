"""The trials of a cross-validation: which rows each holds out, under which seeds, and when it is measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.config import ConfigDict, override
from jaxft.data.labels import Labels
from jaxft.experiment.data import Whole
from jaxft.search.trials.trial import Trial

FOLDS = 5
CHECKPOINTS = ("last", "best")
_MOST = 1000  # of folds, as of config.data.folds


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is repeated.

    Attributes:
      folds: equal parts of the training data, each held out once in each repeat; 0: seeds differ instead.
      repeats: how often the data are cut, each time in another way.
      seeds: how many; 0 where there are folds.
      checkpoint: what of each trial is measured: the 'last' weights, or the 'best' on the held-out rows.
    """

    folds: int = FOLDS
    repeats: int = 1
    seeds: int = 0
    checkpoint: str = "last"


@dataclasses.dataclass(frozen=True)
class Planned:
    """A trial and its place. repeat, fold: from 0; both 0 where seeds differ."""

    trial: Trial
    repeat: int
    fold: int


def make_plan(folds: int, repeats: int, seeds: int, checkpoint: str) -> Plan:
    """A plan of what the flags say; 0 of folds, repeats or seeds: not given.

    Raises:
      ValueError: numbers that cannot be, or do not go together; one line.
    """
    if checkpoint not in CHECKPOINTS:
        raise ValueError(
            f"--checkpoint={checkpoint} is not one of {', '.join(CHECKPOINTS)}"
            f"{nearest(checkpoint, CHECKPOINTS)}"
        )
    if seeds:
        for name, value in (("folds", folds), ("repeats", repeats)):
            if value:
                raise ValueError(
                    f"--seeds={seeds} keeps the rows as they are, --{name}={value} cuts them anew; give "
                    "one of the two"
                )
        if not 2 <= seeds <= _MOST:
            raise ValueError(f"--seeds={seeds} must be between 2 and {_MOST}")
        return Plan(0, 1, seeds, checkpoint)
    folds, repeats = folds or FOLDS, repeats or 1
    if not 2 <= folds <= _MOST:
        raise ValueError(f"--folds={folds} must be between 2 and {_MOST}")
    if not 1 <= repeats <= _MOST:
        raise ValueError(f"--repeats={repeats} must be between 1 and {_MOST}")
    return Plan(folds, repeats, 0, checkpoint)


def check_config(config: ConfigDict, plan: Plan) -> None:
    """Raises ValueError where the config leaves nothing for the plan to vary; one line."""
    c = config.data
    if c.stream:
        raise ValueError(
            f"config.data.stream={c.stream}: a stream is read from its beginning to its end, so it has no "
            "folds, and its rows are in one order for all seeds; leave it none"
        )
    if plan.folds and c.folds is not None:
        raise ValueError(
            f"config.data.folds={c.folds} holds out fold {c.fold} of a single run; cross_validate holds out "
            "each in turn: leave it none and give --folds"
        )


def planned(config: ConfigDict, plan: Plan) -> list[Planned]:
    """The trials, repeat by repeat. `train` of the config of one is the same run.

    Each has a train.seed of its own: with one for all, the estimate would be of this seed alone (Bouthillier
    et al. 2021, "Accounting for Variance in Machine Learning Benchmarks"). A repeat is another
    data.split_seed.
    """
    once: dict[str, Any] = {}
    if plan.checkpoint == "last":  # nothing is chosen by rows that are held out
        once = {"eval.every": "100%", "eval.patience": None}
    seed = int(config.train.seed)
    if not plan.folds:
        return [
            Planned(
                Trial(f"seed{seed + i}", override(config, once, {"train.seed": seed + i})), 0, 0
            )
            for i in range(plan.seeds)
        ]
    whole = {"data.eval": "", "data.test": "", "data.folds": plan.folds}
    found = []
    for repeat in range(plan.repeats):
        for fold in range(plan.folds):
            own = {
                "data.fold": fold,
                "data.split_seed": int(config.data.split_seed) + repeat,
                "train.seed": seed + repeat * plan.folds + fold,
            }
            trial = Trial(f"repeat{repeat}-fold{fold}", override(config, once, whole, own))
            found.append(Planned(trial, repeat, fold))
    return found


def notes(config: ConfigDict, plan: Plan, whole: Whole) -> list[str]:
    """What of the config is not used here, and which rows are too few; one line each."""
    found = []
    c = config.data
    if plan.folds and c.eval:
        found.append(
            f"data.eval={c.eval} is not used: the folds are cut from the training data, and each row of "
            "these is held out once; add its rows to data.train to have them in the folds"
        )
    if c.test:
        found.append(
            f"data.test={c.test} is not used: it is for the one model that is chosen at last"
        )
    if plan.checkpoint == "last":
        if config.eval.patience is not None:
            found.append(
                f"eval.patience={config.eval.patience} is not used: a trial that ends where its held-out "
                "rows like it best is better on them than on others; --checkpoint=best does that"
            )
    else:
        found.append(
            "optimistic: each trial's checkpoint was chosen on the rows that it is measured on "
            "(--checkpoint=best); on other rows expect less. --checkpoint=last, of a length that is "
            "given beforehand, has no such bias"
        )
    return [*found, *_rare(plan, whole)]


def _rare(plan: Plan, whole: Whole) -> list[str]:
    """Labels that some held-out part cannot have."""
    targets = whole.split.targets
    if not (plan.folds and isinstance(targets, Labels)):
        return []
    counts = np.bincount(targets.ids, minlength=len(targets.names))
    few = [i for i in np.argsort(counts, kind="stable").tolist() if counts[i] < plan.folds]
    if not few:
        return []
    names = ", ".join(f"{targets.names[i]!r} ({counts[i]})" for i in few[:3])
    more = f" and {len(few) - 3} more" if len(few) > 3 else ""
    return [
        f"labels with fewer rows than there are folds: {names}{more}; some held-out parts have none of "
        "them, and metrics that are means over labels differ more between folds"
    ]
