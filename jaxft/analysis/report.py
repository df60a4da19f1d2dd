"""report.html of a run: one self-contained page from the run directory's files, and nothing else.

It needs no model, no data set and no device. Where a file is missing, the page says what it does not
know.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxft.analysis import sections
from jaxft.analysis.page import Html, element, join, page
from jaxft.analysis.record import Record, read_record
from jaxft.analysis.view import View
from jaxft.base.nested import flatten


def write_report(
    run_dir: str | Path,
    *,
    view: View,
    defaults: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html into a run directory and return its path.

    Args:
      run_dir: the run directory, finished or not.
      view: what its task shows.
      defaults: the default config, nested or flat; fields that differ are listed first. None: all
        fields in one list.
      summary: in place of summary.json, which a run writes last.

    Raises:
      ValueError: there is no such directory.
      OSError: the page cannot be written.
    """
    path = Path(run_dir) / "report.html"
    record = read_record(run_dir)
    if summary is not None:
        record = dataclasses.replace(record, summary=dict(summary))
    text = render(record, view, None if defaults is None else flatten(defaults))
    beside = path.with_name(path.name + ".tmp")
    # Texts of a data set may hold halves of surrogate pairs, which UTF-8 cannot.
    beside.write_bytes(text.encode("utf-8", "replace"))
    os.replace(beside, path)
    return path


def render(record: Record, view: View, defaults: Mapping[str, Any] | None) -> str:
    """The page of a record of the task that `view` is of."""
    # Imported here: matplotlib costs 0.8 s, which training would pay at its start otherwise.
    from jaxft.analysis import plots

    parts = {
        "Training": _part(sections.training, record, plots, view.curves, view.eval_loss),
        "Learning rate": _part(sections.learning_rate, record, plots),
        **{heading: _part(make, record, plots) for heading, make in view.sections.items()},
        "Time": _part(sections.timing, record),
        "Configuration": _part(sections.configuration, record, defaults),
        "Environment": _part(sections.environment, record),
    }
    links = [
        element("a", name, attributes={"href": f"#{name.replace(' ', '-').lower()}"})
        for name in parts
    ]
    body = [
        element("header", _part(sections.header, record, view), element("nav", *links)),
        *(
            element(
                "section",
                element("h2", name),
                part,
                attributes={"id": name.replace(" ", "-").lower()},
            )
            for name, part in parts.items()
        ),
        element("footer", "Written by jaxft from the files of the run directory."),
    ]
    return page(f"{record.name}: jaxft report", element("main", join(body)))


def _part(make: Callable[..., Html], record: Record, *more: Any) -> Html:
    """A section; or why there is none, where the run's files hold something else than was written."""
    try:
        return make(record, *more)
    except Exception as error:  # one file that was edited must not cost the whole page
        reason = f"{type(error).__name__}: {error}"[:300]
        return sections.missing(f"A file of this run holds something unexpected ({reason}).")
