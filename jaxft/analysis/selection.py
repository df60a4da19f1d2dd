"""Candidates held against each other by their probes: the ranking, its table, its page, its JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.analysis import tuning
from jaxft.analysis.candidate import Candidate, Unranked
from jaxft.analysis.page import Html, element, has_title, is_by, join, page, table

TITLE = "jaxft: which checkpoint"
WRITER = "jaxft select"  # of select.json, under the key 'written by'
HEADS = (
    "", "checkpoint", "best block", "probe", "LogME", "H-score", "parameters", "MFLOP/example",
    "peak MB", "seconds",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Selection:
    """The candidates, the best first.

    Attributes:
      data: what to call the rows; `rows`: how many of them were used.
      metric: of the probe; `minimised`: less of it is better.
      block_metric: of the probes of blocks, of which more is better.
      gradient_batches, gradient_batch_size: of which the gradients are; 0 batches: there are none.
      unranked: what was named, and could not be measured.
    """

    task: str
    data: str
    rows: int
    folds: int
    seed: int
    metric: str
    minimised: bool
    block_metric: str
    gradient_batches: int
    gradient_batch_size: int
    candidates: tuple[Candidate, ...]
    unranked: tuple[Unranked, ...] = ()

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


def ranked(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """By the probe of the best block, the best first; equal ones in the order given.

    Not by the last block, which pretraining may have turned away from what the head reads: training
    turns it back soon.
    """
    return tuple(sorted(candidates, key=lambda one: -one.best_block.mean))


def suggestion(selection: Selection) -> list[str]:
    """For the best candidate: the option, if there is one, why, and what its gradients say of it."""
    depth, why = tuning.blocks_to_tune(selection.best.blocks)
    option = [] if depth is None else [f"--config.optim.freeze_below={depth}"]
    said = tuning.said_of_gradients(selection.best.gradients, depth)
    return [*option, f"{selection.best.name}: {why}", *([said] if said else [])]


def evidence(selection: Selection) -> str:
    """What the columns of `tuning.rows` are, one line."""
    gradients = (
        "gradient signal: squared norm of the mean gradient over the variance of a batch's, both unbiased, "
        f"± what it would be by chance ({selection.gradient_batches} batches of "
        f"{selection.gradient_batch_size}, a linear head fitted on other rows)"
    )
    return "; ".join(
        [
            f"probe: {selection.block_metric} of ridge regression, ± its standard error",
            *([gradients] if selection.gradient_batches else []),
            "weights above noise: singular values above the Marchenko-Pastur edge over the others, mean of a "
            "block's matrices (after Spectrum; not used for the suggestion)",
        ]
    )


def notes(selection: Selection) -> list[str]:
    """What a reader must know of the ranking, one line each."""
    best = selection.best
    tied = [
        one.name
        for one in selection.candidates[1:]
        if best.best_block.mean - one.best_block.mean
        <= one.best_block.error + best.best_block.error
    ]
    sign = 1 if selection.minimised else -1
    by_last = sorted(selection.candidates, key=lambda one: sign * one.probe.mean)
    otherwise = f"by the probe of the last block the order is {', '.join(c.name for c in by_last)}"
    ties = f"{', '.join(tied)}: within the standard errors of {best.name}, so a tie"
    return [
        f"ranked by {selection.block_metric} of ridge regression on the best block (its number); probe: "
        f"{selection.metric} of a linear probe on the last block; {selection.folds} folds, mean ± standard "
        f"error; {selection.rows} rows of {selection.data}",
        *([ties] if tied else []),
        *([otherwise] if by_last != list(selection.candidates) else []),
        *(f"{one.name} is not ranked: {one.why}" for one in selection.unranked),
        "frozen features only: fine-tuning may rank close candidates otherwise",
    ]


def summary_rows(selection: Selection) -> list[list[str]]:
    """Cells under HEADS, one row a candidate."""
    return [
        [
            str(place), one.name, _best_block(one), str(one.probe), f"{one.logme:.4f}",
            "–" if one.h_score is None else f"{one.h_score:.3f}", f"{one.parameters:,}",
            "–" if one.flops is None else f"{one.flops / 1e6:,.3g}",
            "–" if one.peak_bytes is None else f"{one.peak_bytes / 1e6:,.1f}", f"{one.seconds:.1f}",
        ]
        for place, one in enumerate(selection.candidates, start=1)
    ]  # fmt: skip


def _best_block(one: Candidate) -> str:
    most = one.best_block
    return f"{most} ({one.blocks.index(most) + 1})"


def block_rows(selection: Selection) -> tuple[list[str], list[list[str]]]:
    """(heads, one row a block, one column a candidate), '' where it has fewer blocks."""
    deepest = max(len(one.blocks) for one in selection.candidates)
    rows = [
        [
            str(depth + 1),
            *(str(c.blocks[depth]) if depth < len(c.blocks) else "" for c in selection.candidates),
        ]
        for depth in range(deepest)
    ]
    return ["block", *(one.name for one in selection.candidates)], rows


def to_json(selection: Selection) -> dict[str, Any]:
    """select.json."""
    depth, why = tuning.blocks_to_tune(selection.best.blocks)
    said = tuning.said_of_gradients(selection.best.gradients, depth)
    return {
        "written by": WRITER,
        **dataclasses.asdict(selection),
        "suggestion": {"optim.freeze_below": depth, "why": why, "gradients": said},
        "notes": notes(selection),
    }


def render(selection: Selection) -> str:
    """select.html."""
    heads, blocks = block_rows(selection)
    count = len(selection.candidates)
    parts: list[Html] = [
        element("p", f"jaxft · {selection.task}", attributes={"class": "kicker"}),
        element("h1", "Which checkpoint"),
        *(element("p", note, attributes={"class": "note"}) for note in notes(selection)),
        element("h2", "Candidates"),
        table(HEADS, summary_rows(selection), kinds="nw" + "n" * (len(HEADS) - 2)),
        element("h2", "Blocks"),
        element(
            "p",
            f"{selection.block_metric} of ridge regression on what the head would read after each block, "
            f"mean ± standard error over {selection.folds} folds.",
        ),
        table(heads, blocks, kinds="n" + "n" * count),
        element("h2", "What to tune"),
        *(element("p", line) for line in suggestion(selection)),
        *_evidence_of_each(selection),
        element(
            "p",
            "LogME: You et al. 2021, arXiv:2102.11005. H-score: Bao et al. 2019, with a shrunk covariance "
            "(Ibrahim et al. 2021, arXiv:2110.06893). Gradient signal: the inverse of the noise scale of "
            "McCandlish et al. 2018, arXiv:1812.06162. Weights above noise: Spectrum (Hartford et al. 2024, "
            "arXiv:2406.06623), the noise by Gavish and Donoho 2014, arXiv:1305.5870.",
            attributes={"class": "note"},
        ),
        element("footer", "Written by jaxft."),
    ]
    return page(TITLE, element("main", join(parts)))


def _evidence_of_each(selection: Selection) -> list[Html]:
    """A table for each candidate."""
    parts = [element("p", evidence(selection), attributes={"class": "note"})]
    for one in selection.candidates:
        parts += [element("h3", one.name), table(tuning.HEADS, tuning.rows(one), kinds="nnnn")]
    return parts


def is_page(path: Path) -> bool:
    """Whether a file is an earlier select.html."""
    return has_title(path, TITLE)


def is_json(path: Path) -> bool:
    """Whether a file is an earlier select.json."""
    return is_by(path, WRITER)
