"""The pictures of a report, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from jaxft.analysis.drawing import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, drawn

Row = Mapping[str, Any]

_SHADES = LinearSegmentedColormap.from_list("share", ["#ffffff", "#cfe1ee", "#5a9bc5", "#0b4a78"])
_MAX_POINTS = 600  # of one curve; more cannot be seen and makes the page heavy
_MAX_DOTS = 1500


def curves(
    train: Sequence[Row], evals: Sequence[Row], events: Sequence[Row], best_step: int | None,
    metric: str, others: Sequence[str], eval_loss: str = "",
) -> str:  # fmt: skip
    """Losses and evaluation metrics over steps, with epochs above, best step and events marked.

    Args:
      train, evals: rows of metrics.jsonl, by step.
      events: what is marked with a number each, in this order.
      best_step: marked with a line.
      metric, others: evaluation metrics; the first is drawn strongest.
      eval_loss: what the loss of an evaluation is called where it is another quantity than that of
        training, and so has an axis of its own; '': it is the same.
    """
    with drawn(9.8, 3.7) as (figure, svg):
        left, right = figure.subplots(1, 2, sharex=True)
        left.set_title("Loss", pad=27)
        steps, losses = _points(train, "loss")
        if len(steps) > 40:
            left.plot(*_thinned(steps, losses), color=PALE, linewidth=1, label="train, as logged")
            left.plot(
                *_thinned(steps, _smooth(losses)),
                color=INK,
                linewidth=1.5,
                label="train, smoothed",
            )
        elif len(steps):
            left.plot(steps, losses, color=INK, linewidth=1.3, label="train", **_seen(len(steps)))
        of_eval = left.twinx() if eval_loss else left
        (line,) = of_eval.plot(
            *_points(evals, "loss"), "o-", color=ORANGE, markersize=3.5, label="eval"
        )
        if eval_loss:
            left.set_ylabel("train")
            of_eval.set_ylabel(eval_loss, color=ORANGE)
            line.set_label(f"eval: {eval_loss} (right)")
            left.plot([], [], "o-", color=ORANGE, markersize=3.5, label=line.get_label())
        right.set_title("Evaluation metrics", pad=27)
        names = list(dict.fromkeys([metric, *others]))
        marks = zip("os^D", (BLUE, ORANGE, GREEN, PURPLE), strict=True)
        for name, (mark, colour) in zip([n for n in names if n != "loss"], marks, strict=False):
            strong = name == metric
            right.plot(
                *_points(evals, name), f"{mark}-", color=colour, markersize=4 if strong else 3,
                linewidth=1.8 if strong else 1, alpha=1 if strong else 0.75, label=name,
            )  # fmt: skip
        last = max(row["step"] for row in [*train, *evals])
        left.set_xlim(0, last * 1.03)
        for axes in (left, right):
            _mark(axes, events, best_step)
            _epochs_above(axes, [*train, *evals])
            axes.set_xlabel("step")
            axes.grid(axis="y", color="#eceef0")
            axes.set_axisbelow(True)
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=4, handlelength=1.4)
    return svg()


def schedule(train: Sequence[Row]) -> str:
    """The learning rate over steps."""
    with drawn(4.7, 2.6) as (figure, svg):
        axes = figure.subplots()
        steps, rates = _thinned(*_points(train, "learning_rate"))
        axes.plot(steps, rates, color=BLUE, linewidth=1.6, **_seen(len(steps)))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axes.grid(axis="y", color="#eceef0")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return svg()


def layer_rates(layers: Sequence[tuple[str, float, float, str]]) -> str:
    """Learning-rate multipliers, one bar a depth, the head on top.

    Args:
      layers: (name, lowest and highest multiplier of the trainable parameters, note); 0 = frozen.
    """
    height = max(1.4, 0.55 + 0.235 * len(layers))
    with drawn(4.7, height) as (figure, svg):
        axes = figure.subplots()
        top = max([high for _, _, high, _ in layers] + [1e-12])
        for y, (_, low, high, note) in enumerate(layers):
            if high == 0:  # a pale full-width band with its word: frozen is not the same as slow
                axes.barh(
                    y, top, height=0.62, color="#eef0f2", edgecolor=PALE, hatch="////", linewidth=0
                )
            else:
                axes.barh(y, high, height=0.62, color="#a9cbe2" if low < high else BLUE)
                axes.barh(y, low, height=0.62, color=BLUE)
            axes.text(top * 1.02, y, note, va="center", fontsize=8, color=GREY)
        axes.set_yticks(range(len(layers)), [name for name, *_ in layers])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, top)
        axes.set_ylim(-0.6, len(layers) - 0.4)
        axes.text(top * 1.02, len(layers) - 0.35, "parameters", fontsize=8, color=GREY)
        axes.set_xlabel("× learning rate")
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return svg()


def confusion_matrix(confusion: np.ndarray, names: Sequence[str]) -> str:
    """Counts, shaded by their share of the row; rows are labels, columns predictions."""
    counts = confusion.astype(float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes = len(names)
    cell = 0.62 if classes <= 6 else max(0.29, 0.62 - 0.03 * (classes - 6))
    size = min(9.0, cell * classes) if classes <= 30 else 7.0
    with drawn(size + 1.6, size + 1.1) as (figure, svg):
        axes = figure.subplots()
        if classes <= 60:
            axes.pcolormesh(
                shares, cmap=_SHADES, vmin=0, vmax=1, edgecolors="#e6e9ec", linewidth=0.6
            )
        else:  # thousands of vector cells would be megabytes
            axes.imshow(shares, cmap=_SHADES, vmin=0, vmax=1, extent=(0, classes, classes, 0))
        if classes <= 30:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    axes.text(
                        column + 0.5, row + 0.5, f"{count:.0f}", ha="center", va="center",
                        fontsize=9.5 if classes <= 10 else 7,
                        color="white" if shares[row, column] > 0.55 else INK,
                    )  # fmt: skip
        axes.set_aspect("equal")
        axes.set_xlim(0, classes)
        axes.set_ylim(classes, 0)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=INK, labelsize=9 if classes <= 10 else 7.5)
        if classes <= 60:
            short = [_short(name) for name in names]
            steep = classes > 6 or max(map(len, short)) > 8
            places = np.arange(classes) + 0.5
            axes.set_xticks(places, short)
            axes.set_yticks(places, short)
            if steep:
                for label in axes.get_xticklabels():
                    label.set(rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
    return svg()


def seeds(names: Sequence[str], values: Sequence[Sequence[float]], metric: str) -> str:
    """One line a group of runs, the first on top: a dot a run, and a bar from mean - std to mean + std."""
    with drawn(6.4, 0.9 + 0.32 * len(names)) as (figure, svg):
        axes = figure.subplots()
        for y, group in enumerate(values):
            axes.plot(group, [y] * len(group), "o", color=BLUE, markersize=5, alpha=0.45)
            if len(group) > 1:
                mean, spread = np.mean(group), np.std(group, ddof=1)
                axes.errorbar(mean, y, xerr=spread, fmt="|", color=INK, markersize=11, capsize=3)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(metric)
        axes.grid(axis="x", color="#eceef0")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return svg()


def scatter(true: np.ndarray, predicted: np.ndarray) -> str:
    """A dot an example, of many evenly spaced ones by their true number, and the line of equality."""
    with drawn(4.7, 4.2) as (figure, svg):
        axes = figure.subplots()
        order = np.argsort(true, kind="stable")
        shown = order[np.linspace(0, len(order) - 1, min(len(order), _MAX_DOTS)).astype(int)]
        ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        axes.plot(ends, ends, color=PALE, linewidth=1.2, zorder=1)
        axes.plot(true[shown], predicted[shown], "o", color=BLUE, markersize=3, alpha=0.4)
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")
        axes.grid(color="#eceef0")
        axes.set_axisbelow(True)
    return svg()


def reliability(
    before: Mapping[str, Any], after: Mapping[str, Any], probable: str, true: str
) -> str:
    """Accuracy against probability of the ranges of a calibration (see analysis/calibration.py), twice.

    probable, true: what the axes say.
    """
    with drawn(4.7, 4.2) as (figure, svg):
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=PALE, linewidth=1.2, zorder=1)
        kinds = ((before, "o", BLUE, "as they are"), (after, "D", ORANGE, "at the temperature"))
        for found, mark, colour, name in kinds:
            share = np.array(found["count"]) / max(1, sum(found["count"]))
            x, y = found["probability"], found["accuracy"]
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.6)
            axes.scatter(x, y, 12 + 160 * share, color=colour, marker=mark, alpha=0.7, label=name)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel(probable)
        axes.set_ylabel(true)
        axes.grid(color="#eceef0")
        axes.set_axisbelow(True)
        axes.legend(loc="upper left")
    return svg()


def histogram(values: np.ndarray, label: str, *, mark: float | None = 0.0) -> str:
    """How many values lie where, with a line at `mark`."""
    with drawn(4.7, 4.2) as (figure, svg):
        axes = figure.subplots()
        axes.hist(values, bins=min(40, max(5, len(values) // 8)), color=BLUE)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_ylabel("examples")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return svg()


def _mark(axes: Axes, events: Sequence[Row], best_step: int | None) -> None:
    """Lines at steps, with the numbers of their events and the word 'best' above them."""
    words: dict[int, list[str]] = {}
    for number, event in enumerate(events, 1):
        axes.axvline(event["step"], color=GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        words.setdefault(event["step"], []).append(str(number))
    if best_step is not None:
        axes.axvline(best_step, color=GREEN, linewidth=1.2, zorder=1)
        words.setdefault(best_step, []).append("best")
    for step, parts in words.items():
        axes.text(
            step, 1.01, ", ".join(parts), transform=axes.get_xaxis_transform(), fontsize=8,
            color="#00734f" if step == best_step else GREY, ha="center",
        )  # fmt: skip


def _epochs_above(axes: Axes, rows: Sequence[Row]) -> None:
    known = [row["step"] / row["epoch"] for row in rows if row.get("epoch")]
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    if not known:
        return
    per_epoch = float(np.median(known))

    def epochs(step: Any) -> Any:
        return step / per_epoch

    def steps(epoch: Any) -> Any:
        return epoch * per_epoch

    above = axes.secondary_xaxis(1.06, functions=(epochs, steps))
    above.xaxis.set_major_locator(MaxNLocator(6))
    above.spines["top"].set_visible(False)
    above.tick_params(length=0, labelsize=8, pad=0)
    axes.text(1.0, 1.16, "epoch", transform=axes.transAxes, fontsize=8, color=GREY, ha="right")


def _points(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return np.array([s for s, _ in pairs], float), np.array([v for _, v in pairs], float)


def _seen(points: int) -> dict[str, Any]:
    """Of a line through so many points: a short run has one row of training, through which none goes."""
    return {"marker": "o", "markersize": 3.5} if points == 1 else {}


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most _MAX_POINTS means of neighbours."""
    parts = max(1, math.ceil(len(x) / _MAX_POINTS))
    if parts == 1:
        return x, y
    starts = np.arange(0, len(x), parts)
    sizes = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes


def _smooth(y: np.ndarray) -> np.ndarray:
    """Mean over a window of a twentieth of the curve; windows are cut at the ends, not padded."""
    reach = max(1, len(y) // 40)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - reach, 0)
    high = np.minimum(np.arange(len(y)) + reach + 1, len(y))
    return (sums[high] - sums[low]) / (high - low)


def _short(name: str, limit: int = 22) -> str:
    """A tick label: printable characters only, since SVG has no others."""
    name = "".join(c for c in name if c.isprintable()) or "(blank)"
    return name if len(name) <= limit else name[: limit - 1] + "…"
