"""Two cross-validations on the same folds, or two configs under the same seeds, held against each other.

Pair by pair: what is hard in a fold is hard for both, so their difference varies less than each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.analysis.comparison import TITLE, differing, plain
from jaxft.analysis.page import Html, element, figure, is_by, join, page, table
from jaxft.analysis.resampled import LEVEL, Difference, difference
from jaxft.analysis.validation import Validation

_ALPHA = 0.05
_FEWEST_RANKS = 6  # pairs, of which signed ranks can have a p below 0.05
WRITER = "jaxft cross_validate --against"  # of comparison.json, under the key 'written by'


def check_pair(first: Validation, second: Validation, names: Sequence[str]) -> None:
    """Raises ValueError where the two were not measured on the same rows in the same way; one line.

    names: of the two, for the message.
    """
    a, b = names
    if first.task != second.task:
        raise ValueError(
            f"{a} is of task {first.task!r}, {b} of {second.task!r}: nothing to compare"
        )
    if first.what != second.what:
        raise ValueError(
            f"{a} has {first.what}, {b} has {second.what}; a paired test needs the same"
        )
    if first.checkpoint != second.checkpoint:
        raise ValueError(
            f"{a} measured the {first.checkpoint} weights of each trial, {b} the {second.checkpoint}; give "
            "both the same --checkpoint"
        )
    if first.fingerprint != second.fingerprint:
        what = "folds hold" if first.folds else "evaluation rows hold"
        raise ValueError(
            f"the {what} other rows in {a} than in {b}, so their trials are no pairs; use the same data, "
            "data.group, data.split_seed, --folds and --repeats"
        )
    if not first.folds and [t.seed for t in first.trials] != [t.seed for t in second.trials]:
        raise ValueError(f"{a} and {b} were run under other seeds; give both the same train.seed")
    if first.metric not in second.metrics:
        raise ValueError(f"{b} has no {first.metric}, by which {a} is measured")


def of_metric(first: Validation, second: Validation, metric: str) -> Difference:
    """Second minus first; both as of `check_pair`."""
    return difference(first.values(metric), second.values(metric), first.ratio)


def differs(first: Validation, second: Validation) -> dict[str, tuple[Any, Any]]:
    """The fields that are not the same, with both values."""
    fields = differing([first.config, second.config])
    return {field: (first.config.get(field), second.config.get(field)) for field in fields}


def heads(first: Validation) -> tuple[str, ...]:
    """Of the columns of `rows`."""
    own = ("metric", "A", "B", "B - A", f"{LEVEL:.0%} interval", "p")
    return own if first.folds else (*own, "p (Wilcoxon)")


def rows(first: Validation, second: Validation, metrics: Sequence[str]) -> list[list[str]]:
    """Cells under `heads`, one row a metric that both have."""
    found = []
    for metric in (name for name in metrics if name in second.metrics):
        one = of_metric(first, second, metric)
        apart = one.interval
        row = [metric, *(f"{of.interval(metric).mean:.4f}" for of in (first, second))]
        row += [f"{apart.mean:+.4f}", f"{apart.low:+.4f} to {apart.high:+.4f}", _said_of_p(one.p)]
        found.append(row if first.folds else [*row, _said_of_p(one.wilcoxon)])
    return found


def verdict(first: Validation, second: Validation) -> str:
    """What the test of the metric that counts says, in words."""
    metric = first.metric
    found = of_metric(first, second, metric)
    apart = found.interval
    each = "fold" if first.folds else "seed"
    better = "B" if (apart.mean > 0) != (metric in first.minimised) else "A"
    size = f"{abs(apart.mean):.4f}"
    between = f"{LEVEL:.0%} interval of B - A: {apart.low:+.4f} to {apart.high:+.4f}"
    if found.p is None:
        return (
            f"{better} is better in {metric} by {size} in each {each} alike: no variance to test by"
        )
    if found.p == 1.0 and not apart.deviation:
        return f"A and B have the same {metric} in each {each}"
    if found.p < _ALPHA:
        return f"{better} is better in {metric} by {size} ({between}; p = {found.p:.2g})"
    return (
        f"no difference in {metric} is shown (p = {found.p:.2g}): {better} is ahead by {size}, which may be "
        f"chance ({between})"
    )


def notes(first: Validation, second: Validation) -> list[str]:
    """What A and B are, how the test is made, and what else a reader must know; one line each."""
    count, apart = len(first.trials), differs(first, second)
    found = [
        f"{letter}: {', '.join(f'{f}={plain(v[i])}' for f, v in apart.items()) or 'the same config'}"
        for i, letter in enumerate("AB")
    ]
    if first.folds:
        found.append(
            f"paired over {first.what}: corrected resampled t test (Nadeau and Bengio 2003), the variance of "
            f"the mean difference is (1/{count} + {first.ratio:.3f}) of that of the {count} differences"
        )
    else:
        found.append(
            f"paired over {first.what}: Student's t test and Wilcoxon's of signed ranks; they speak of other "
            "seeds on these rows, not of other rows"
        )
        if count < _FEWEST_RANKS:
            found.append(
                f"of {count} pairs signed ranks have no p below {2 / 2**count:.3g}; give {_FEWEST_RANKS}"
            )
    return [*found, *(note for note in first.notes if note.startswith("optimistic"))]


def to_json(first: Validation, second: Validation) -> dict[str, Any]:
    """comparison.json."""
    found = {}
    for metric in (name for name in first.metrics if name in second.metrics):
        one = of_metric(first, second, metric)
        found[metric] = {
            "A": first.interval(metric).mean, "B": second.interval(metric).mean,
            "B - A": one.interval.mean, "low": one.interval.low, "high": one.interval.high,
            "deviation": one.interval.deviation, "p": one.p, "p of Wilcoxon": one.wilcoxon,
        }  # fmt: skip
    return {
        "written by": WRITER,
        "differs": {name: list(values) for name, values in differs(first, second).items()},
        "metrics": found,
        "verdict": verdict(first, second),
        "notes": notes(first, second),
    }


def render(first: Validation, second: Validation) -> str:
    """The page; `comparison.is_comparison` knows it."""
    from jaxft.analysis import plots  # 0.8 s, which a command without a page need not pay

    metric, kinds = first.metric, "t" + "n" * (len(heads(first)) - 1)
    values = [first.values(metric), second.values(metric)]
    apart = [b - a for a, b in zip(*values, strict=True)]
    dot = "fold" if first.folds else "seed"
    fields = [[name, plain(a), plain(b)] for name, (a, b) in differs(first, second).items()]
    each = [
        [t.name, *(f"{x:.4f}" for x in (a, b)), f"{b - a:+.4f}"]
        for t, a, b in zip(first.trials, *values, strict=True)
    ]
    parts: list[Html] = [
        element("p", f"jaxft · {first.task}", attributes={"class": "kicker"}),
        element("h1", "Two configs, pair by pair"),
        element("p", verdict(first, second) + ".", attributes={"class": "lead"}),
        *(element("p", note, attributes={"class": "note"}) for note in notes(first, second)),
        element("h2", "Metrics"),
        table(heads(first), rows(first, second, first.metrics), kinds=kinds),
        figure(
            plots.seeds(["A", "B"], values, metric), f"{metric}: a dot a {dot}, mean ± deviation."
        ),
        figure(
            plots.seeds(["B - A"], [apart], f"difference in {metric}"),
            f"B - A of the same {dot}: mean ± deviation.",
        ),
        element("h2", "Pairs"),
        table(["trial", "A", "B", "B - A"], each, kinds="tnnn"),
        element("h2", "Configuration"),
        table(["field", "A", "B"], fields, kinds="ccc")
        if fields
        else element("p", "No field differs.", attributes={"class": "none"}),
        element("footer", "Written by jaxft."),
    ]
    return page(TITLE, element("main", join(parts)))


def is_json(path: Path) -> bool:
    """Whether a file is an earlier comparison.json."""
    return is_by(path, WRITER)


def _said_of_p(p: float | None) -> str:
    return "–" if p is None else f"{p:.2g}"
