"""A learning-rate range test told: its table, its page, its JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.analysis.page import Html, element, figure, has_title, is_by, join, page, table
from jaxft.analysis.range_curve import BETA, DIVERGED, RangeCurve, Suggestion, smoothed

TITLE = "jaxft: which learning rate"
WRITER = "jaxft find_lr"  # of find_lr.json, under the key 'written by'
HEADS = ("", "rule", "learning rate", "of each seed", "what it is")
_LETTERS = {"valley": "V", "slide": "S", "steep": "T", "minimum / 10": "M"}


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """What was tested, and what it says.

    Attributes:
      optimizer: what follows the rate, in words.
      lr: `optim.lr` of the config.
      seed: the first; the others follow it.
      together: the seeds were one program.
      suggestions: of the mean over seeds; `recommended` is one of their rates.
      by_seed: rule -> the rate that it finds on each seed's own curve, as far as it finds one.
      notes: what was otherwise than in the run.
    """

    task: str
    model: str
    data: str
    optimizer: str
    lr: float
    batch_size: int
    seed: int
    together: bool
    curve: RangeCurve
    suggestions: tuple[Suggestion, ...]
    recommended: Suggestion
    by_seed: dict[str, tuple[float, ...]]
    notes: tuple[str, ...]


def band(curve: RangeCurve) -> tuple[np.ndarray, np.ndarray]:
    """[common] each: the least and the highest smoothed loss of a seed."""
    each = smoothed(curve.losses[:, : curve.common])
    return each.min(0), each.max(0)


def chart(curve: RangeCurve) -> dict[str, np.ndarray]:
    """x, y, and the band, as far as they are worth a look."""
    low, high = band(curve)
    arrays = {"x": curve.rates, "y": curve.mean, "low": low, "high": high}
    shown = {name: array[: curve.shown] for name, array in arrays.items()}
    return shown | {"high": np.minimum(shown["high"], curve.ceiling)}


def marks(test: RangeTest) -> dict[str, float]:
    """Letter -> rate; the recommended one is first."""
    ordered = sorted(test.suggestions, key=lambda one: one != test.recommended)
    return {_LETTERS[one.name]: one.rate for one in ordered}


def rows(test: RangeTest) -> list[list[str]]:
    """Cells under HEADS, one row a rule."""
    return [
        [
            _LETTERS[one.name], one.name + (" (recommended)" if one == test.recommended else ""),
            f"{one.rate:.2g}", _range(test.by_seed.get(one.name, ())), one.meaning,
        ]
        for one in test.suggestions
    ]  # fmt: skip


def _range(rates: Sequence[float]) -> str:
    return f"{min(rates):.2g} – {max(rates):.2g}" if len(rates) > 1 else ""


def option(test: RangeTest) -> str:
    """What takes the recommended rate."""
    return f"--config.optim.lr={test.recommended.rate:.2g}"


def notes(test: RangeTest) -> list[str]:
    """What a reader must know, one line each."""
    curve, seeds = test.curve, len(test.curve.losses)
    ended = len(curve.rates) < curve.planned
    why = (
        f"the loss was above {DIVERGED:g} x the least" if ended else "the highest rate was reached"
    )
    several = (
        f"{seeds} seeds read the same batches; newly initialised weights and dropout differ; rules read "
        f"their mean on the {curve.common} steps that all have, the band is from the least to the highest"
    )
    return [
        f"{test.optimizer} at batches of {test.batch_size} on {test.data}; config.optim.lr is {test.lr:g}",
        f"{len(curve.rates)} of {curve.planned} steps, rates from {curve.rates[0]:.3g} to "
        f"{curve.rates[-1]:.3g}: {why}; smoothed by {BETA}",
        *([several] if seeds > 1 else []),
        *test.notes,
        "a test of the first updates without warm-up: a long run with a schedule may take a higher rate, and "
        "what is best for the evaluation only runs can tell",
    ]


def to_json(test: RangeTest) -> dict[str, Any]:
    """find_lr.json."""
    values = {f.name: getattr(test, f.name) for f in dataclasses.fields(test)}
    del values["curve"]
    curve = test.curve
    return {
        "written by": WRITER,
        **values,
        "suggestions": [dataclasses.asdict(one) for one in test.suggestions],
        "recommended": dataclasses.asdict(test.recommended),
        "notes": notes(test),
        "planned_steps": curve.planned,
        "rates": curve.rates.tolist(),
        "losses": [[x if np.isfinite(x) else None for x in one] for one in curve.losses.tolist()],
        "smoothed": curve.mean.tolist(),
    }


def render(test: RangeTest) -> str:
    """find_lr.html."""
    from jaxft.analysis.range_picture import range_picture  # matplotlib: 0.8 s

    seeds = len(test.curve.losses)
    caption = "Loss of each batch, and smoothed, by the rate of its update" + (
        f"; the mean of {seeds} seeds, and a band from the least to the highest."
        if seeds > 1
        else "."
    )
    low, high = band(test.curve)
    picture = range_picture(test.curve, low, high, [(s.name, s.rate) for s in test.suggestions],
                            test.recommended.name)  # fmt: skip
    parts: list[Html] = [
        element("p", f"jaxft · {test.task}", attributes={"class": "kicker"}),
        element("h1", "Which learning rate"),
        element("p", f"{test.model}: {option(test)}", attributes={"class": "lead"}),
        figure(picture, caption),
        table(HEADS, rows(test), kinds="ttntw"),
        *(element("p", note, attributes={"class": "note"}) for note in notes(test)),
        element(
            "p",
            "Range test: Smith 2017, arXiv:1506.01186. Smoothing, end and rules: those of fastai's lr_find "
            "(Howard and Gugger 2020, arXiv:2002.04688).",
            attributes={"class": "note"},
        ),
        element("footer", "Written by jaxft."),
    ]
    return page(TITLE, element("main", join(parts)))


def is_page(path: Path) -> bool:
    """Whether a file is an earlier find_lr.html."""
    return has_title(path, TITLE)


def is_json(path: Path) -> bool:
    """Whether a file is an earlier find_lr.json."""
    return is_by(path, WRITER)
