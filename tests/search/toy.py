"""Trials of a sweep that cost nothing: their curve is a formula of the config. All else is as it is."""

from __future__ import annotations

import dataclasses
import math
import os
from types import SimpleNamespace

import numpy as np

from jaxft.config import default_config, override
from jaxft.search.sweeps import plan, sweeping
from jaxft.search.sweeps.domains import Choice, Float, Integer, When
from jaxft.search.sweeps.place import open_place
from jaxft.search.sweeps.space import make_space
from jaxft.search.trials.progress import Ended
from jaxft.search.trials.record import Record
from jaxft.search.trials.trial import Outcome

CONFIG = override(default_config(), {"eval.metric": "loss", "model.path": "m", "data.train": "t"})
SPACE = make_space(
    {
        "optim.optimizer": Choice("adamw", "sgd"),
        "optim.lr": Float(1e-5, 1e-1, log=True, points=3),
        "optim.b1": When("optim.optimizer", {"sgd": Float(0.5, 0.9, points=2)}),
        "train.seed": Integer(0, 3),
    },
    CONFIG,
)
EVALUATIONS = 6


def curve(config) -> list[float]:
    """Losses; NaN from the third on where the rate is too large."""
    c = config.optim
    distance = abs(math.log10(c.lr) + (3 if c.optimizer == "adamw" else 1.5))
    noise = np.random.default_rng([int(1e6 * c.lr), config.train.seed]).normal(0, 0.02, EVALUATIONS)
    losses = [1 / (1 + step) + 0.3 * distance + noise[step] for step in range(EVALUATIONS)]
    return [*losses[:2], math.nan] if c.lr > 0.06 else losses


class Killed(BaseException):
    """Stands for a kill: nothing catches it, and nothing is written after it."""


def run_trials(
    trials, *, directory, worlds, report=lambda place, row: False, vmapped="auto", spare=False
):
    """All step by step together, as one program has them; what has ended is kept, and reports no more."""
    record = Record(directory / "trials", weights=False, predictions=False)
    found = [record.read(trial.name, trial.config) for trial in trials]
    rows: list[list[dict]] = [[] for _ in trials]
    for step in range(1, EVALUATIONS + 1):
        for place, trial in enumerate(trials):
            if found[place] is not None:
                continue
            worlds.reports -= 1
            if worlds.reports == 0:
                raise Killed
            loss, stopped = curve(trial.config)[step - 1], ""
            if spare and trial.config.optim.lr < Worlds.rate_without_memory:
                found[place] = Ended((), {}, "out of memory"), 1.0
                continue
            if not math.isfinite(loss):
                stopped = "not finite"
            else:
                rows[place].append({"step": step, "loss": loss, "accuracy": 1 - loss / 4})
                if report(place, rows[place][-1]) and step < EVALUATIONS:
                    stopped = "pruned"
            if stopped or step == EVALUATIONS:
                best = min(rows[place], key=lambda row: row["loss"])
                found[place] = Ended(tuple(rows[place]), best, stopped), 1.0
                record.write(trial.name, trial.config, *found[place])
                worlds.ran.append(trial.name)
    return [
        Outcome(
            trial, ended.history, ended.best, ended.stopped, seconds, memory=_memory(trial, vmapped)
        )
        for trial, (ended, seconds) in zip(trials, found, strict=True)
    ]


def _memory(trial, vmapped):
    return 1000 + trial.config.train.seed if vmapped == "off" else None


class Worlds:
    """In place of `search.worlds.Worlds`: nothing is opened.

    Attributes:
      ran: names of trials, as they ended.
      reports: before so many reports from now on there is a kill; below 1: there is none.
      rate_without_memory: for trials of lower rates there is no memory.
    """

    ran: list[str] = []
    reports = 0
    rate_without_memory = 0.0

    def __init__(self, cache):
        pass

    def prepared(self, config):
        if config.optim.lr > 0.09:
            raise ValueError("config.optim.lr is too much for a toy")
        totals = {"total": 100, "trainable": 10 if config.optim.optimizer == "sgd" else 20}
        return SimpleNamespace(decisions=SimpleNamespace(totals=totals), config=config)


def played(patch, *, page: bool = False) -> list[str]:
    """Sweeps are of toys from now on, and have a page where it is asked for, which takes a second to draw.

    Returns the names of trials as they run.
    """
    Worlds.ran = []
    patch.setattr(os, "fsync", lambda file: None)  # of each line of a journal, 10 ms
    if not page:
        patch.setattr(
            sweeping.page, "render", lambda sweep: f"<title>{sweeping.page.TITLE}</title>"
        )
        patch.setattr(sweeping, "importances", lambda *_: {})
    patch.setattr(sweeping, "run_trials", run_trials)
    patch.setattr(sweeping, "Worlds", Worlds)
    patch.setattr(
        sweeping, "looked_at",
        lambda config, space, asked, worlds: dataclasses.replace(
            asked, evaluations=EVALUATIONS, at_once=asked.at_once or 4
        ),
    )  # fmt: skip
    return Worlds.ran


def sweep(folder, space=SPACE, config=CONFIG, **asked):
    """Returns what it found and what it said."""
    said: list[str] = []
    place = open_place(str(folder))
    found = sweeping.sweep(config, space, plan.Asked(**asked), place, said.append)
    return found, said


def plain(found) -> list[tuple]:
    """Of each trial what must not depend on how often the sweep was killed."""
    return [
        (r.number, r.state, r.values, dict(r.params), r.changes, r.curve, r.why) for r in found.rows
    ]
