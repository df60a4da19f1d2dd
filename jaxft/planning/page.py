"""plan.html, and which files are earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxft.analysis.page import Html, element, figure, has_title, is_by, join, page, table
from jaxft.planning import told
from jaxft.planning.plan import WRITER, Plan

TITLE = "jaxft: a plan"
OTHERS_HEADS = ("mesh", "batch", "dtype", "recomputed", "fits", "needed", "an update", "per second")


def render(plan: Plan, others: Sequence[Sequence[str]] = ()) -> str:
    """plan.html.

    Args:
      others: cells under OTHERS_HEADS of what else was looked at.
    """
    from jaxft.analysis.plan_picture import holding_picture, memory_picture  # matplotlib: 0.8 s

    blocks = plan.parameters["blocks"]
    parts: list[Html] = [
        element("p", f"jaxft · {plan.task} · {plan.topology}", attributes={"class": "kicker"}),
        element("h1", headline := told.headline(plan)),
        element("p", told.subject(plan), attributes={"class": "lead"}),
        *(element("p", line) for line in plan.advice),
        element("h2", "Memory of a device"),
        figure(memory_picture(plan.memory), headline),
        table(("", "bytes a device", "share"), told.memory_rows(plan), kinds="tnn"),
        element("h2", "Who holds what"),
        figure(
            holding_picture(plan.held, blocks),
            "Parameters and slots that each device holds of the stem, each block and the head; below "
            f"depth {plan.parameters['frozen_blocks']} nothing is differentiated.",
        ),
        element("h2", "Time, cost, energy"),
        *(element("p", line) for line in told.time_lines(plan)),
    ]
    if plan.traffic or plan.least:
        parts += [
            element("h2", "What the devices send"),
            *([table(told.TRAFFIC_HEADS, told.traffic_rows(plan), kinds="ttnnn")] if plan.traffic else []),
            table(
                told.LEAST_HEADS, told.least_rows(plan), kinds="tnnn",
                caption="Beside the least that any program must receive (docs/plan.md)",
            ),
        ]  # fmt: skip
    if others:
        parts += [
            element("h2", "What else was looked at"),
            table(OTHERS_HEADS, others, kinds="tttttnnn"),
        ]
    parts += [
        element("h2", "How this was found"),
        *(element("p", note, attributes={"class": "note"}) for note in plan.notes),
        element("p", _compiled(plan), attributes={"class": "note"}),
        element("footer", "Written by jaxft."),
    ]
    return page(TITLE, element("main", join(parts)))


def _compiled(plan: Plan) -> str:
    if not plan.compiler:
        return "The program was traced and not compiled."
    return (
        f"The run's own update was traced in {plan.seconds['trace']:.0f} s and compiled for the machine in "
        f"{plan.seconds['compile']:.0f} s; no weight was read and nothing was run."
    )


def is_page(path: Path) -> bool:
    """Whether a file is an earlier plan.html."""
    return has_title(path, TITLE)


def is_json(path: Path) -> bool:
    """Whether a file is an earlier plan.json."""
    return is_by(path, WRITER)
