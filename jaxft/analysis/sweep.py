"""What a sweep found: its trials, the best of them, which parameters count; as rows, as JSON, as a page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.analysis import sweep_plots
from jaxft.analysis.page import Html, element, figure, has_title, is_by, join, page, table

TITLE = "jaxft: a sweep"
WRITER = "jaxft sweep"  # of sweep.json, under the key 'written by'
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
_MOST_SLICES = 12
_MOST_ROWS = 500  # of the page's table; all are in the JSON


@dataclasses.dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
      state: 'complete', 'pruned', 'failed', 'running' or 'waiting'.
      values: of the objectives; of a pruned trial the last that it reported; () of others.
      changes: of the config, by field.
      params: what was searched, by name.
      curve: the first objective after each evaluation.
      seconds: of its own; None where it has not ended.
      why: it failed, or stopped before its end; '' else.
    """

    number: int
    state: str
    values: tuple[float, ...]
    changes: Mapping[str, Any]
    params: Mapping[str, Any]
    curve: tuple[float, ...] = ()
    seconds: float | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Axis:
    """A parameter that was searched: `log`, its scale; `choices`, the values of a choice, else ()."""

    name: str
    log: bool = False
    choices: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
    """All of it.

    Attributes:
      directions: 'max' or 'min' of each objective.
      how: (name, value) of the settings of the search, for the page.
      best: numbers of the best trial, or of those on the Pareto front.
      importances: by method, by parameter, of the first objective.
    """

    task: str
    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    how: tuple[tuple[str, str], ...]
    axes: tuple[Axis, ...]
    rows: tuple[Row, ...]
    best: tuple[int, ...]
    importances: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)

    @property
    def summary(self) -> str:
        """How many trials came to what, one line."""
        states = (COMPLETE, PRUNED, FAILED, "running", "waiting")
        return ", ".join(f"{n} {state}" for state in states if (n := self.count(state)))


def ordered(sweep: Sweep) -> list[Row]:
    """The best first, then by the first objective; pruned ones behind, then those without a value."""
    sign = -1 if sweep.directions[0] == "max" else 1
    states = (COMPLETE, PRUNED)

    def place(row: Row) -> tuple[Any, ...]:
        on_front = row.number not in sweep.best
        state = states.index(row.state) if row.state in states and row.values else len(states)
        value = sign * row.values[0] if row.values and math.isfinite(row.values[0]) else math.inf
        return on_front, state, value, row.number

    return sorted(sweep.rows, key=place)


def heads(sweep: Sweep) -> list[str]:
    """Of the columns of `cells`: words first, then numbers."""
    return ["trial", "what came of it", *(axis.name for axis in sweep.axes), *sweep.objectives,
            "evaluations", "seconds"]  # fmt: skip


def cells(sweep: Sweep, rows: Sequence[Row]) -> list[list[str]]:
    """One row a trial."""
    return [
        [
            f"{row.number}{' *' if row.number in sweep.best else ''}",
            f"{row.state}{f': {row.why}' if row.why else ''}",
            *(short(row.params[a.name]) if a.name in row.params else "" for a in sweep.axes),
            *(f"{x:.6g}" for x in row.values),
            *[""] * (len(sweep.objectives) - len(row.values)),
            str(len(row.curve)),
            "" if row.seconds is None else f"{row.seconds:.1f}",
        ]
        for row in rows
    ]


def short(value: Any) -> str:
    """A value of a parameter in a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def to_json(sweep: Sweep) -> dict[str, Any]:
    """sweep.json."""
    return {"written by": WRITER, **dataclasses.asdict(sweep)}


def render(sweep: Sweep) -> str:
    """sweep.html."""
    several = len(sweep.objectives) > 1
    rows = ordered(sweep)
    parts: list[Html] = [
        element("p", f"jaxft · {sweep.task}", attributes={"class": "kicker"}),
        element("h1", "A sweep"),
        element("p", f"{len(sweep.rows)} trials: {sweep.summary}.", attributes={"class": "lead"}),
        *(element("p", note, attributes={"class": "note"}) for note in sweep.notes),
        *_best(sweep),
        *(_front(sweep) if several else []),
        *_pictures(sweep),
        element("h2", "Trials"),
        table(
            heads(sweep),
            cells(sweep, rows[:_MOST_ROWS]),
            kinds="tw" + "t" * len(sweep.axes) + "n" * (len(sweep.objectives) + 2),
            caption=f"* {'on the Pareto front' if several else 'the best'}; the best first. Of a pruned "
            "trial: the last value that it reported.",
        ),
        element("h2", "How it was searched"),
        table(("", ""), sweep.how, kinds="tw"),
        element("footer", "Written by jaxft."),
    ]
    return page(TITLE, element("main", join(parts)))


def _best(sweep: Sweep) -> list[Html]:
    if not sweep.best:
        return [element("p", "No trial ran to its end.", attributes={"class": "none"})]
    row = next(row for row in sweep.rows if row.number == sweep.best[0])
    named = zip(sweep.objectives, row.values, strict=True)
    values = ", ".join(f"{name} {value:.6g}" for name, value in named)
    return [
        element("h2", "The best trial" if len(sweep.objectives) == 1 else "The best by the first objective"),
        element("p", f"Trial {row.number}: {values}. Its config is in best.py, which train takes."),
        table(
            ("field", "value"), [(field, short(x)) for field, x in row.changes.items()], kinds="cc"
        ),
    ]  # fmt: skip


def _front(sweep: Sweep) -> list[Html]:
    done = [row for row in sweep.rows if row.state == COMPLETE]
    if not done:
        return []
    first = sweep.objectives[0]
    parts = [element("h2", "The Pareto front")]
    for place, name in enumerate(sweep.objectives[1:], 1):
        points = [(row.values[place], row.values[0], row.number in sweep.best) for row in done]
        parts.append(
            figure(
                sweep_plots.front(points, (name, first)),
                f"{first} against {name}, a dot a trial; filled: no other trial is better in one and as good "
                "in all others.",
            )
        )
    return parts


def _pictures(sweep: Sweep) -> list[Html]:
    """History, importances, parallel coordinates, slices; of the first objective."""
    shown = [row for row in sweep.rows if row.values and math.isfinite(row.values[0])]
    if not shown:
        return []
    name, better = sweep.objectives[0], sweep.directions[0]
    points = [(row.number, row.values[0], row.state == COMPLETE) for row in shown]
    parts = [
        element("h2", "History"),
        figure(
            sweep_plots.history(points, name, better),
            f"{name} of each trial, and the best so far; hollow: pruned, with its last value.",
        ),
    ]
    curves = [(row.curve, row.number in sweep.best, row.state == COMPLETE) for row in shown]
    if any(len(curve) > 1 for curve, *_ in curves):
        parts.append(
            figure(
                sweep_plots.curves(curves, name),
                f"{name} after each evaluation, a line a trial; the best is dark, pruned ones end early.",
            )
        )
    parts.append(element("h2", "Which parameters count"))
    if sweep.importances:
        parts.append(
            figure(
                sweep_plots.importances(sweep.importances),
                f"Share of the variance of {name} over the space that each parameter explains (fANOVA: "
                "Hutter et al. 2014), and of where the best tenth lies (PED-ANOVA: Watanabe et al. "
                "2023), by the trials that ran to their end; parameters that only some have are left out.",
            )
        )
    else:
        none = "Too few trials, too alike, ran to their end to say."
        parts.append(element("p", none, attributes={"class": "none"}))
    axes = [(axis.name, axis.log, axis.choices) for axis in sweep.axes]
    values = [[row.params.get(axis.name) for axis in sweep.axes] for row in shown]
    scores = [row.values[0] for row in shown]
    ended = [row.state == COMPLETE for row in shown]
    parts += [
        element("h2", "Parallel coordinates"),
        figure(
            sweep_plots.parallel(axes, values, scores, ended, (name, better)),
            f"A line a trial, darker where {name} is better; thin and grey: pruned. A line leaves out the "
            "parameters that its trial does not have.",
        ),
        element("h2", "Slices"),
        figure(
            sweep_plots.slices(axes[:_MOST_SLICES], values, scores, ended, name),
            f"{name} over each parameter; hollow: pruned.",
        ),
    ]
    return parts


def is_page(path: Path) -> bool:
    """Whether a file is an earlier sweep.html."""
    return has_title(path, TITLE)


def is_json(path: Path) -> bool:
    """Whether a file is an earlier sweep.json."""
    return is_by(path, WRITER)
