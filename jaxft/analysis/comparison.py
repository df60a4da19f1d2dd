"""Several runs side by side: grouped where only the seed differs, with means over the seeds.

Reads what is given and no file; the page is one self-contained document, as the report of a run.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.analysis.page import Html, element, figure, join, page, table
from jaxft.analysis.record import Record

TITLE = "jaxft comparison"
SEED = "train.seed"
# Of source.json: what two runs must share, besides their config, to be the same experiment.
_SAME_SOURCE = (
    "model fingerprint",
    "label names",
    "columns",
    "training fingerprint",
    "evaluation fingerprint",
)


@dataclasses.dataclass(frozen=True)
class Compared:
    """One run.

    Attributes:
      name: as it was given.
      config: every field, flat, as JSON values.
      source: source.json.
    """

    name: str
    record: Record
    config: Mapping[str, Any]
    source: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        return bool(self.record.summary)

    def value(self, split: str, metric: str) -> float | None:
        """A metric of the best checkpoint on 'eval' or 'test', or None."""
        metrics = self.record.metrics(split)
        return _number(metrics.get(metric)) if isinstance(metrics, Mapping) else None

    @property
    def seconds(self) -> float | None:
        """From start to end, of the last process that worked on it."""
        seconds = self.record.summary.get("seconds")
        return _number(seconds.get("total")) if isinstance(seconds, Mapping) else None


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that are equal but for the seed, in the order given; at least one.

    Attributes:
      letter: A, B, …: its name in tables.
      differs: its values of the fields that are not the same in all groups.
    """

    letter: str
    runs: tuple[Compared, ...]
    differs: Mapping[str, Any]

    @property
    def seeds(self) -> list[Any]:
        return [run.config.get(SEED) for run in self.runs]

    def values(self, split: str, metric: str) -> list[float]:
        """One a run that has this metric."""
        found = (run.value(split, metric) for run in self.runs)
        return [value for value in found if value is not None]


def group(runs: Sequence[Compared]) -> list[Group]:
    """The groups, by their first run."""
    together: dict[str, list[Compared]] = {}
    for run in runs:
        config = {field: value for field, value in run.config.items() if field != SEED}
        source = [run.source.get(name) for name in _SAME_SOURCE]
        key = json.dumps([config, source, run.finished], sort_keys=True)
        together.setdefault(key, []).append(run)
    fields = differing([members[0].config for members in together.values()])
    return [
        Group(_letter(i), tuple(members), {f: members[0].config.get(f) for f in fields})
        for i, members in enumerate(together.values())
    ]


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields other than the seed that do not have one value in all."""
    fields = dict.fromkeys(field for config in configs for field in config if field != SEED)
    return [f for f in fields if len({json.dumps(config.get(f)) for config in configs}) > 1]


def notes(groups: Sequence[Group]) -> list[str]:
    """What a reader must know before comparing, one line each."""
    found = []
    for g in groups:
        twice = sorted({str(seed) for seed in g.seeds if g.seeds.count(seed) > 1})
        if twice:
            found.append(
                f"{g.letter}: seed {', '.join(twice)} occurs more than once; its runs are copies of "
                "each other, and ± is too small"
            )
        if not g.runs[0].finished:
            found.append(f"{g.letter} is not finished: these are its evaluations so far")
    rows = {json.dumps(g.runs[0].source.get("evaluation fingerprint")) for g in groups}
    if len(rows) > 1:
        found.append("the groups were not evaluated on the same rows, or not on the same texts")
    return found


def summary_rows(
    groups: Sequence[Group], metrics: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """(heads, one row of cells a group): what the terminal shows, and the page first.

    Args:
      metrics: those that are shown, if any run has them; first the one that chose the best checkpoint.
    """
    columns = [
        (split, name)
        for split in ("eval", "test")
        for name in metrics
        if any(g.values(split, name) for g in groups)
    ]
    heads = ["", "runs", "seeds", "differs in", *(f"{split} {name}" for split, name in columns)]
    rows = []
    for g in groups:
        cells = [g.letter, ", ".join(run.name for run in g.runs), ", ".join(map(str, g.seeds))]
        cells.append(", ".join(f"{f}={plain(v)}" for f, v in g.differs.items()) or "–")
        cells += [spread(g.values(split, name)) for split, name in columns]
        seconds = [run.seconds for run in g.runs if run.seconds is not None]
        rows.append([*cells, spread(seconds, digits=1)])
    return [*heads, "seconds"], rows


def spread(values: Sequence[float], *, digits: int = 4) -> str:
    """Mean ± standard deviation of a sample; without ± for a single value.

    >>> spread([0.5, 0.7]), spread([0.5]), spread([])
    ('0.6000 ± 0.1414', '0.5000', '–')
    """
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def render(groups: Sequence[Group], metrics: Sequence[str]) -> str:
    """The page. Arguments as of `summary_rows`."""
    from jaxft.analysis import plots  # 0.8 s, which a command without a page need not pay

    metric, count = metrics[0], sum(len(g.runs) for g in groups)
    heads, rows = summary_rows(groups, metrics)
    split = "test" if all(g.values("test", metric) for g in groups) else "eval"
    values = [g.values(split, metric) for g in groups]
    parts: list[Html] = [
        element("p", "jaxft · comparison", attributes={"class": "kicker"}),
        element(
            "h1", f"{count} runs" + (f" in {len(groups)} groups" if len(groups) < count else "")
        ),
        element(
            "p",
            "Runs that are equal but for the seed are one group: mean ± standard deviation over its "
            "runs. Seconds are from start to end.",
        ),
        *(element("p", note, attributes={"class": "note"}) for note in notes(groups)),
        element("h2", "Results"),
        table(heads, rows, kinds="twtw" + "n" * (len(heads) - 4)),
    ]
    if any(values):
        svg = plots.seeds([f"{g.letter}  {g.runs[0].name}" for g in groups], values, metric)
        words = {"test": "test", "eval": "evaluation"}[split]
        parts.append(figure(svg, f"{metric} on the {words} data: a dot a run, mean ± deviation."))
    parts += [element("h2", "Configuration"), _configuration(groups)]
    parts += [element("h2", "Runs"), _runs(groups, metric)]
    parts.append(element("footer", "Written by jaxft from the files of the run directories."))
    return page(TITLE, element("main", join(parts)))


def is_comparison(path: Path) -> bool:
    """Whether a file is an earlier page of `render`."""
    with path.open("rb") as file:
        return f"<title>{TITLE}</title>".encode() in file.read(4096)


def plain(value: Any) -> str:
    """A config value as one would write it."""
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(plain, value)) + ")"
    return repr(value) if isinstance(value, str) and not value else str(value)


def _configuration(groups: Sequence[Group]) -> Html:
    fields = list(groups[0].differs)
    if not fields:
        return element("p", "No field but the seed differs.", attributes={"class": "none"})
    rows = [[field, *(plain(g.differs[field]) for g in groups)] for field in fields]
    return table(["field", *(g.letter for g in groups)], rows, kinds="c" * (len(groups) + 1))


def _runs(groups: Sequence[Group], metric: str) -> Html:
    rows = []
    for g in groups:
        for run in g.runs:
            values = [run.value(split, metric) for split in ("eval", "test")]
            best = run.record.summary.get("best_step")
            rows.append(
                [g.letter, run.name, str(run.config.get(SEED)), "–" if best is None else str(best),
                 *(spread([] if value is None else [value]) for value in values),
                 spread([] if run.seconds is None else [run.seconds], digits=1)]
            )  # fmt: skip
    heads = ["", "run", "seed", "best step", f"eval {metric}", f"test {metric}", "seconds"]
    return table(heads, rows, kinds="twnnnnn")


def _letter(index: int) -> str:
    """
    >>> _letter(0), _letter(25), _letter(26)
    ('A', 'Z', 'AA')
    """
    rest, last = divmod(index, 26)
    return (_letter(rest - 1) if rest else "") + chr(ord("A") + last)


def _number(value: Any) -> float | None:
    """A number, or None for what a damaged file may hold in its place."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if real else None
