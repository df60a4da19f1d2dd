"""What a cross-validation found, or the same run under several seeds: its table, its page, its JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.analysis.page import Html, element, figure, join, page, table
from jaxft.analysis.resampled import LEVEL, Interval, interval

TITLE = "jaxft cross-validation"
WRITER = "jaxft cross_validate"  # of cross_validate.json, under the key 'written by'
FORMAT = 1
HEADS = ("metric", "mean", "deviation", f"{LEVEL:.0%} interval", "lowest", "highest", "pooled")


@dataclasses.dataclass(frozen=True)
class Measured:
    """One trial.

    Attributes:
      name: of the trial; repeat, fold: from 0; both 0 where seeds differ.
      seed: train.seed. split_seed: data.split_seed.
      trained, held_out: how many rows it was trained and measured on.
      step: optimizer updates after which it was measured.
      stopped: why it ended before its last step; '' if it did not.
      seconds: its share of the time.
      metrics: on the held-out rows.
    """

    name: str
    repeat: int
    fold: int
    seed: int
    split_seed: int
    trained: int
    held_out: int
    step: int
    stopped: str
    seconds: float
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Validation:
    """A cross-validation (`folds` > 0), or one split under several seeds (`folds` 0).

    Attributes:
      metric: the one that counts; `minimised`: those of which less is better.
      shown: metrics that the terminal shows, `metric` first.
      checkpoint: 'last' or 'best', what of each trial was measured.
      config: every field of the config, flat, as JSON values.
      fingerprint: of which rows were held out in which trial, and of their targets.
      pooled: of each repeat, metrics over the held-out rows of all its folds; () of seeds.
      notes: what a reader must know, one line each.
    """

    task: str
    metric: str
    minimised: tuple[str, ...]
    shown: tuple[str, ...]
    folds: int
    repeats: int
    checkpoint: str
    config: Mapping[str, Any]
    fingerprint: str
    trials: tuple[Measured, ...]
    pooled: tuple[Mapping[str, float], ...]
    notes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Rows tested over rows trained on, by which the variance is corrected; 0 of seeds."""
        if not self.folds:
            return 0.0
        return sum(t.held_out for t in self.trials) / sum(t.trained for t in self.trials)

    @property
    def what(self) -> str:
        """'5 folds x 2 repeats' or '5 seeds'."""
        if not self.folds:
            return f"{len(self.trials)} seeds"
        return f"{self.folds} folds" + (f" x {self.repeats} repeats" if self.repeats > 1 else "")

    @property
    def metrics(self) -> list[str]:
        """Those that every trial has, the shown ones first."""
        names = dict.fromkeys((*self.shown, *self.trials[0].metrics))
        return [name for name in names if all(name in t.metrics for t in self.trials)]

    def values(self, metric: str) -> list[float]:
        """One a trial, in their order."""
        return [trial.metrics[metric] for trial in self.trials]

    def interval(self, metric: str) -> Interval:
        return interval(self.values(metric), self.ratio)

    def said_of(self, metric: str) -> str:
        """'accuracy 0.9312 ± 0.0050, with 95 % confidence between 0.9200 and 0.9424'."""
        found = self.interval(metric)
        return (
            f"{metric} {found.mean:.4f} ± {found.deviation:.4f} over {self.what}, {LEVEL:.0%} interval "
            f"{found.low:.4f} to {found.high:.4f}"
        )


def summary_rows(found: Validation, metrics: Sequence[str]) -> list[list[str]]:
    """Cells under HEADS, one row a metric; without the last of them where nothing is pooled."""
    rows = []
    for metric in metrics:
        values, one = found.values(metric), found.interval(metric)
        row = [metric, *(f"{x:.4f}" for x in (one.mean, one.deviation))]
        row += [f"{one.low:.4f} to {one.high:.4f}", f"{min(values):.4f}", f"{max(values):.4f}"]
        pooled = [of_one[metric] for of_one in found.pooled if metric in of_one]
        if found.pooled:
            row.append(f"{sum(pooled) / len(pooled):.4f}" if pooled else "–")
        rows.append(row)
    return rows


def heads(found: Validation) -> tuple[str, ...]:
    return HEADS if found.pooled else HEADS[:-1]


def method(found: Validation) -> str:
    """How the interval is made, one line."""
    if not found.folds:
        return (
            f"{LEVEL:.0%} interval by Student's t over the seeds: it speaks of other seeds on these rows, "
            "not of other rows"
        )
    # As with data.examples_per_class: the estimate supposes that parts held out are the smaller ones.
    wide = "; more rows are held out than trained on, for which this is far too wide: read the deviation"
    return (
        f"{LEVEL:.0%} interval by the corrected resampled t (Nadeau and Bengio 2003): the variance of the "
        f"mean is (1/{len(found.trials)} + {found.ratio:.3f}) of that of the folds, which share most of "
        "their training rows; pooled: over the held-out rows of all folds together"
        f"{wide * (found.ratio > 1)}"
    )


def to_json(found: Validation) -> dict[str, Any]:
    """cross_validate.json."""
    estimates = {name: dataclasses.asdict(found.interval(name)) for name in found.metrics}
    return {
        "written by": WRITER,
        "format": FORMAT,
        **dataclasses.asdict(found),
        "estimates": estimates,
        "interval": {"level": LEVEL, "test over training rows": found.ratio},
        "method": method(found),
    }


def from_json(value: Any, where: str) -> Validation:
    """What `to_json` gave, read again.

    Args:
      where: the file's name, for the message.

    Raises:
      ValueError: it is anything else; one line.
    """
    if not isinstance(value, dict) or value.get("written by") != WRITER:
        raise ValueError(f"{where} is not what jaxft cross_validate wrote")
    if type(version := value.get("format")) is not int or version > FORMAT:
        raise ValueError(f"{where} has format {version!r:.40}; a later version of jaxft wrote it")
    try:
        trials = tuple(Measured(**trial) for trial in value["trials"])
        fields = {f.name: value[f.name] for f in dataclasses.fields(Validation)}
        lists = ("minimised", "shown", "pooled", "notes")
        found = Validation(
            **{**fields, **{name: tuple(fields[name]) for name in lists}, "trials": trials}
        )
        for name in found.metrics:
            found.interval(name)
        assert found.metric in found.metrics
    except (
        AssertionError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        ValueError,
    ) as error:
        raise ValueError(f"{where} is damaged ({error!r:.80}); restore it") from error
    return found


def render(found: Validation) -> str:
    """cross_validate.html."""
    from jaxft.analysis import plots  # 0.8 s, which reading need not pay

    repeats = sorted({trial.repeat for trial in found.trials})
    values = [[t.metrics[found.metric] for t in found.trials if t.repeat == r] for r in repeats]
    names = [f"repeat {r}" for r in repeats] if found.folds else ["seeds"]
    dot = "fold" if found.folds else "seed"
    parts: list[Html] = [
        element("p", f"jaxft · {found.task}", attributes={"class": "kicker"}),
        element("h1", found.what),
        element("p", found.said_of(found.metric) + ".", attributes={"class": "lead"}),
        *(element("p", note, attributes={"class": "note"}) for note in found.notes),
        element("h2", "Metrics"),
        table(
            heads(found),
            summary_rows(found, found.metrics),
            kinds="t" + "n" * (len(heads(found)) - 1),
        ),
        element("p", method(found) + ".", attributes={"class": "note"}),
        figure(
            plots.seeds(names, values, found.metric),
            f"{found.metric} on the held-out rows: a dot a {dot}, mean ± deviation.",
        ),
        element("h2", "Trials"),
        _trials(found),
        element("h2", "Configuration"),
        table(
            ["field", "value"],
            [[name, _plain(value)] for name, value in found.config.items()],
            kinds="cc",
        ),
        element("footer", "Written by jaxft."),
    ]
    return page(TITLE, element("main", join(parts)))


def _trials(found: Validation) -> Html:
    """A row each, with the shown metrics."""
    names = [name for name in found.shown if name in found.metrics]
    rows = []
    for t in found.trials:
        place = [str(t.repeat), str(t.fold)] if found.folds else []
        cells = [*place, str(t.seed), str(t.trained), str(t.held_out), str(t.step)]
        cells += [f"{t.metrics[name]:.4f}" for name in names]
        rows.append([*cells, f"{t.seconds:.1f}", t.stopped or "–"])
    first = ["repeat", "fold"] if found.folds else []
    columns = [*first, "seed", "rows trained on", "held out", "step", *names, "seconds", "stopped"]
    return table(columns, rows, kinds="n" * (len(columns) - 1) + "t")


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, str) and not value else str(value)
