"""How often each label is there, and whether the splits agree on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxft.insight.finding import LEVELS, Finding, graded, percent
from jaxft.insight.parts import Part

_UNLIKELY = 1e-3  # p-value, below which splits are said to differ
_FEW = 8  # training rows of a class, below which little can be learned of it
_MOST = 0.9  # share of the largest class, from which accuracy says little


def findings(parts: Sequence[Part]) -> list[Finding]:
    """On class labels, sets of them, tags or numbers; nothing on other targets."""
    if all(part.classes is not None for part in parts):
        counts = [np.bincount(part.classes, minlength=len(part.names)) for part in parts]  # type: ignore[arg-type]
        return [_classes(parts, counts), *_drift(parts, counts)]
    if all(part.numbers is not None for part in parts):
        return _numbers(parts)
    if all(part.labels is not None for part in parts):
        rows = [part.labels.counts() for part in parts]  # type: ignore[union-attr]
        names = parts[0].labels.names  # type: ignore[union-attr]
        return [_several(parts, names, rows), *_drift_of_each(parts, names, rows)]
    return []


def _classes(parts: Sequence[Part], counts: Sequence[np.ndarray]) -> Finding:
    train, names = counts[0], parts[0].names
    most = int(train.argmax())
    share = train[most] / train.sum()
    rare = [f"{names[i]} ({train[i]})" for i in np.flatnonzero(train < _FEW)]
    unseen = [
        names[i]
        for i in np.flatnonzero(
            (train == 0) & (np.sum(counts[1:], axis=0) > 0 if parts[1:] else False)
        )
    ]
    level = graded(share, _MOST)
    summary = f"{len(names)} labels; always {names[most]!r} would be right for {share:.1%} of train"
    advice = ""
    if share >= _MOST:
        advice = "accuracy says little here: choose by eval.metric=macro_f1, or weight the classes"
    if rare:
        level = max(level, "warning", key=LEVELS.index)
        shown = ", ".join(rare[:8]) + (f" and {len(rare) - 8} more" if len(rare) > 8 else "")
        summary += f"; fewer than {_FEW} training rows: {shown}"
        advice = "collect more of the rare labels, merge them, or leave them out by data.classes"
    if unseen:
        level = "serious"
        summary += f"; never in train: {', '.join(unseen[:8])}"
    heads = ("label", *(f"{part.name}" for part in parts))
    order = np.argsort(-train, kind="stable")
    rows = tuple(
        (names[i], *(f"{count[i]:,} ({count[i] / max(count.sum(), 1):.1%})" for count in counts))
        for i in order[:40]
    )
    details = {
        part.name: {name: int(n) for name, n in zip(names, count, strict=True)}
        for part, count in zip(parts, counts, strict=True)
    }
    return Finding("label balance", level, summary, advice, heads, rows, details)


def _several(parts: Sequence[Part], names: Sequence[str], rows: Sequence[np.ndarray]) -> Finding:
    """Rows that have each label, of which a row has any number; of tags, their types."""
    tagged, train, size = parts[0].tags is not None, rows[0], len(parts[0])
    what = "types of tags" if tagged else "labels"
    none = int((np.diff(parts[0].labels.bounds) == 0).sum())  # type: ignore[union-attr]
    a_row = f"{train.sum() / size:.2f} a row of train"
    summary = f"{len(names)} {what}, {a_row}; {percent(none, size)} rows have none"
    level, advice = "note", ""
    everywhere = [] if tagged else [names[i] for i in np.flatnonzero(train == size).tolist()]
    if everywhere:
        level = "warning"
        summary += f"; in every row: {_named(everywhere)}"
        advice = "what is always there, or never, teaches nothing: leave it out by data.classes"
    if rare := [f"{names[i]} ({train[i]})" for i in np.flatnonzero(train < _FEW).tolist()]:
        level = "warning"
        summary += f"; in fewer than {_FEW} training rows: {_named(rare)}"
        advice = "collect more of the rare ones, merge them, or leave them out"
    held = np.sum(rows[1:], axis=0) if parts[1:] else np.zeros_like(train)
    if unseen := [names[i] for i in np.flatnonzero((train == 0) & (held > 0)).tolist()]:
        level = "serious"
        summary += f"; never in train: {_named(unseen)}"
    order = np.argsort(-train, kind="stable")[:40].tolist()
    shares = [count / max(len(part), 1) for part, count in zip(parts, rows, strict=True)]
    table = tuple(
        (
            names[i],
            *(f"{count[i]:,} ({share[i]:.1%})" for count, share in zip(rows, shares, strict=True)),
        )
        for i in order
    )
    details = {
        part.name: {name: int(n) for name, n in zip(names, count, strict=True)}
        for part, count in zip(parts, rows, strict=True)
    }
    heads = ("type" if tagged else "label", *(f"rows of {part.name}" for part in parts))
    return Finding("label balance", level, summary, advice, heads, table, details)


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _drift_of_each(
    parts: Sequence[Part], names: Sequence[str], rows: Sequence[np.ndarray]
) -> list[Finding]:
    """Of each label a chi-squared test of 2 x 2; the level of p is shared by all labels (Bonferroni)."""
    from scipy.stats import chi2_contingency

    found = []
    for part, count in zip(parts[1:], rows[1:], strict=True):
        apart = []
        for i, name in enumerate(names):
            both = np.array(
                [[n[i], len(one) - n[i]] for n, one in ((rows[0], parts[0]), (count, part))]
            )
            there, here = both[:, 0] / both.sum(1)
            if abs(there - here) >= 0.02:  # so there are rows with it and rows without
                p = float(chi2_contingency(both).pvalue)
                if p < _UNLIKELY / len(names):
                    apart.append((name, float(there), float(here), p))
        if not apart:
            continue
        apart.sort(key=lambda one: -abs(one[1] - one[2]))
        name, there, here, p = apart[0]
        found.append(
            Finding(
                "label drift",
                graded(abs(there - here), 0.05, 0.2),
                f"{part.name}: {len(apart)} of {len(names)} are in another share of rows than in train; most "
                f"of all {name!r}: {there:.1%} there, {here:.1%} here (p = {p:.1g})",
                "if rows to come are like train, draw the split again, stratified",
                ("label", "rows of train", f"rows of {part.name}", "p"),
                tuple((n, f"{a:.1%}", f"{b:.1%}", f"{q:.1g}") for n, a, b, q in apart[:20]),
                {"split": part.name, "labels": [list(one) for one in apart]},
            )
        )
    return found


def _drift(parts: Sequence[Part], counts: Sequence[np.ndarray]) -> list[Finding]:
    """Pearson's chi-squared test of each split against the training rows."""
    from scipy.stats import chi2_contingency

    found = []
    for part, count in zip(parts[1:], counts[1:], strict=True):
        both = np.stack([counts[0], count])
        both = both[:, both.sum(0) > 0]
        if both.shape[1] < 2:
            continue
        p = float(chi2_contingency(both).pvalue)
        shares = both / both.sum(1, keepdims=True)
        distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
        if p < _UNLIKELY and distance >= 0.02:
            far = int(np.abs(counts[0] / counts[0].sum() - count / count.sum()).argmax())
            found.append(
                Finding(
                    "label drift",
                    graded(distance, 0.05, 0.2),
                    f"{part.name}: labels are distributed otherwise than in train (distance {distance:.2f}, "
                    f"p = {p:.1g}); most of all {part.names[far]!r}: {counts[0][far] / counts[0].sum():.1%} "
                    f"there, {count[far] / count.sum():.1%} here",
                    "if rows to come are like train, draw the split again, stratified",
                    details={"split": part.name, "p": p, "total variation": distance},
                )
            )
    return found


def _numbers(parts: Sequence[Part]) -> list[Finding]:
    """The Kolmogorov-Smirnov test of each split against the training rows, and numbers far outside."""
    from scipy.stats import ks_2samp

    train = np.asarray(parts[0].numbers, float)
    low, middle, high = np.quantile(train, (0.25, 0.5, 0.75))
    far = np.flatnonzero(np.abs(train - middle) > 10 * max(high - low, 1e-12))
    summary = f"numbers from {train.min():g} to {train.max():g}, median {middle:g}"
    outside = far if high > low and len(far) <= 0.01 * len(train) else far[:0]
    if len(outside):
        summary += (
            f"; {len(outside)} are further from the median than ten times the middle half is wide"
        )
    rows = tuple((parts[0].where(i), f"{train[i]:g}") for i in outside[:20].tolist())
    found = [
        Finding(
            "targets",
            graded(len(outside), 1),
            summary,
            "a slipped decimal point or another unit?" if len(outside) else "",
            ("row", "number") if rows else (),
            rows,
            {"split": "train", "rows": parts[0].rows[outside].tolist()},
        )
    ]
    for part in parts[1:]:
        numbers = np.asarray(part.numbers, float)
        test = ks_2samp(train, numbers)
        if test.pvalue < _UNLIKELY:
            found.append(
                Finding(
                    "label drift",
                    graded(float(test.statistic), 0.1, 0.3),
                    f"{part.name}: numbers are distributed otherwise than in train (distance "
                    f"{test.statistic:.2f}, p = {test.pvalue:.1g}; median {np.median(numbers):g})",
                    "if rows to come are like train, draw the split again",
                    details={
                        "split": part.name,
                        "p": float(test.pvalue),
                        "distance": float(test.statistic),
                    },
                )
            )
    return found
