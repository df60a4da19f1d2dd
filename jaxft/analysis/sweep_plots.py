"""Pictures of a sweep, as SVG text: history, curves, parallel coordinates, slices, importances, front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from jaxft.analysis.drawing import BLUE, GREY, INK, ORANGE, PALE, drawn

# (name, whether its scale is logarithmic, the values of a choice or ())
Axis = tuple[str, bool, Sequence[Any]]
_SHADES = LinearSegmentedColormap.from_list("good", ["#dbe7f0", "#5a9bc5", "#0b2f52"])
_MOST_LINES = 400
_IN_A_ROW = 3  # slices


def history(points: Sequence[tuple[int, float, bool]], name: str, better: str) -> str:
    """The first objective over the number of the trial.

    Args:
      points: (number, value, whether it ran to its end).
      better: 'max' or 'min'.
    """
    done = [(number, value) for number, value, whole in points if whole]
    with drawn(9.0, 3.0) as (figure, svg):
        axes = figure.subplots()
        _dots(axes, [p[0] for p in points], [p[1] for p in points], [p[2] for p in points])
        if done:
            best = np.maximum if better == "max" else np.minimum
            values = best.accumulate([value for _, value in done])
            axes.step([n for n, _ in done], values, where="post", color=ORANGE, linewidth=1.4)
        axes.set_xlabel("trial")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _light(axes, "y")
    return svg()


def curves(trials: Sequence[tuple[Sequence[float], bool, bool]], name: str) -> str:
    """A line a trial. trials: (values after each evaluation, whether it is the best, whether it ended)."""
    with drawn(9.0, 3.0) as (figure, svg):
        axes = figure.subplots()
        for values, best, whole in sorted(trials, key=lambda t: t[1])[-_MOST_LINES:]:
            colour, width = (INK, 1.8) if best else (BLUE if whole else PALE, 0.9)
            steps = range(1, len(values) + 1)
            axes.plot(steps, values, color=colour, linewidth=width, alpha=1 if best else 0.6)
            axes.plot(steps[-1:], values[-1:], "o", color=colour, markersize=3)
        axes.set_xlabel("evaluation")
        axes.set_ylabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _light(axes, "y")
    return svg()


def importances(found: Mapping[str, Mapping[str, float]]) -> str:
    """Bars, one a parameter and method; the most important on top by the first method."""
    first = next(iter(found.values()))
    names = sorted(first, key=lambda name: first[name])
    height = 0.8 / len(found)
    with drawn(9.0, 0.9 + 0.36 * len(names)) as (figure, svg):
        axes = figure.subplots()
        for number, (method, shares) in enumerate(found.items()):
            places = np.arange(len(names)) + (len(found) - 1) / 2 * height - number * height
            colour = (BLUE, "#9cc4de")[number % 2]
            values = [shares.get(name, 0.0) for name in names]
            axes.barh(places, values, height=height * 0.92, color=colour, label=method)
            for place, value in zip(places, values, strict=True):
                axes.text(value + 0.008, place, f"{value:.2f}", va="center", fontsize=8, color=GREY)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlim(0, 1.08)
        axes.set_xlabel("importance")
        axes.legend(loc="lower right")
    return svg()


def parallel(
    axes: Sequence[Axis], values: Sequence[Sequence[Any]], scores: Sequence[float],
    ended: Sequence[bool], objective: tuple[str, str],
) -> str:  # fmt: skip
    """An axis a parameter and one for the objective, a line a trial.

    Args:
      values: one row a trial; None where it does not have the parameter.
      objective: name, and 'max' or 'min'.
    """
    name, better = objective
    everywhere = [*((axis, [row[i] for row in values]) for i, axis in enumerate(axes))]
    everywhere.append(((name, False, ()), list(scores)))
    columns = [_placed(axis, column) for axis, column in everywhere]
    ranks = columns[-1] if better == "max" else 1 - columns[-1]
    order = np.argsort(np.where(ended, ranks, -1))[-_MOST_LINES:]
    with drawn(max(6.0, 1.7 * len(columns)), 3.9) as (figure, svg):
        picture = figure.subplots()
        for trial in order:
            heights = np.array([column[trial] for column in columns])
            there = np.flatnonzero(~np.isnan(heights))
            colour = _SHADES(ranks[trial]) if ended[trial] else PALE
            width = 1.5 if ended[trial] else 0.7
            picture.plot(there, heights[there], color=colour, linewidth=width)
        for place, (axis, column) in enumerate(everywhere):
            picture.axvline(place, color=GREY, linewidth=0.8)
            for height, text in _ticks(axis, column):
                picture.text(
                    place + 0.03, height, text, fontsize=8, color=INK, va="center",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
                )  # fmt: skip
        labels = [axis[0].replace(" (", "\n(") for axis, _ in everywhere]
        picture.set_xticks(range(len(columns)), labels, rotation=18, ha="right", color=INK)
        picture.set_xlim(-0.1, len(columns) - 0.6)
        picture.set_ylim(-0.06, 1.06)
        picture.set_yticks([])
        picture.spines[:].set_visible(False)
        picture.tick_params(length=0)
    return svg()


def slices(
    axes: Sequence[Axis], values: Sequence[Sequence[Any]], scores: Sequence[float],
    ended: Sequence[bool], name: str,
) -> str:  # fmt: skip
    """The objective over each parameter; arguments as of `parallel`."""
    rows = math.ceil(len(axes) / _IN_A_ROW)
    with drawn(9.0, 2.6 * rows) as (figure, svg):
        grid = figure.subplots(rows, _IN_A_ROW, squeeze=False, sharey=True)
        for number, picture in enumerate(grid.flat):
            if number >= len(axes):
                picture.set_visible(False)
                continue
            label, log, choices = axes[number]
            has = [i for i, row in enumerate(values) if row[number] is not None or None in choices]
            column: list[Any] = [values[i][number] for i in has]
            if choices:
                listed = [str(x) for x in choices]
                column = [listed.index(str(x)) for x in column]
                picture.set_xticks(range(len(listed)), [text[:14] for text in listed])
                picture.set_xlim(-0.5, len(listed) - 0.5)
            elif log:
                picture.set_xscale("log")
                # Powers of ten would be mathematics, which our style leaves as text.
                picture.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
                picture.xaxis.set_minor_formatter(NullFormatter())
            _dots(picture, column, [scores[i] for i in has], [ended[i] for i in has])
            picture.set_xlabel(label.replace(" (", "\n("))
            if number % _IN_A_ROW == 0:
                picture.set_ylabel(name)
            _light(picture, "both")
    return svg()


def front(points: Sequence[tuple[float, float, bool]], names: tuple[str, str]) -> str:
    """(x, y, whether on the front) of each trial; names: of the axes."""
    with drawn(6.4, 4.0) as (figure, svg):
        axes = figure.subplots()
        _dots(axes, [p[0] for p in points], [p[1] for p in points], [p[2] for p in points])
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
        _light(axes, "both")
    return svg()


def _dots(axes: Axes, x: Sequence[float], y: Sequence[float], filled: Sequence[bool]) -> None:
    """Filled, and hollow ones."""
    faces = [BLUE if full else "white" for full in filled]
    edges = [BLUE if full else GREY for full in filled]
    axes.scatter(x, y, s=22, c=faces, edgecolors=edges, linewidths=0.9, zorder=3)


def _light(axes: Axes, which: Any) -> None:
    axes.grid(axis=which, color="#eceef0")
    axes.set_axisbelow(True)


def _placed(axis: Axis, column: Sequence[Any]) -> np.ndarray:
    """Heights between 0 and 1; NaN where there is no value."""
    _, log, choices = axis
    if choices:
        listed = [str(x) for x in choices]
        missing = None not in choices
        places = [
            np.nan if x is None and missing else listed.index(str(x)) / max(len(listed) - 1, 1)
            for x in column
        ]
        return np.array(places)
    numbers = np.array([np.nan if x is None else float(x) for x in column])
    if np.isnan(numbers).all():
        return numbers
    numbers = np.log(numbers) if log else numbers
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    return (numbers - low) / (high - low) if high > low else numbers * 0 + 0.5


def _ticks(axis: Axis, column: Sequence[Any]) -> list[tuple[float, str]]:
    """(height, text) of what stands at an axis: each choice, or both ends and the middle of a range."""
    _, log, choices = axis
    if choices:
        return [(i / max(len(choices) - 1, 1), str(x)[:16]) for i, x in enumerate(choices)]
    numbers = [float(x) for x in column if x is not None]
    if not numbers:
        return []
    low, high = min(numbers), max(numbers)
    if low == high:
        return [(0.5, f"{low:.3g}")]
    middle = math.sqrt(low * high) if log else (low + high) / 2
    digits = 3 if abs(high - low) > 0.02 * abs(high) else 5
    return [(at, f"{x:.{digits}g}") for at, x in ((0.0, low), (0.5, middle), (1.0, high))]
