"""How figures become SVG text: matplotlib Figure objects, no global state, no display.

Colours are those of Okabe & Ito (2008), told apart with any colour vision; no meaning is carried by
colour alone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, GREY, PALE = "#1d2127", "#6b737d", "#c9ced4"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the font of the page
    "text.parse_math": False,  # a label name may hold dollar signs
    "font.size": 9,
    "axes.edgecolor": PALE,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@contextmanager
def drawn(width: float, height: float) -> Iterator[tuple[Figure, Any]]:
    """A figure in our style and a function that gives its SVG once the block has ended."""
    out: list[str] = []
    # rc_context puts the process's settings back; a random salt keeps ids of several figures apart.
    with (
        matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"{width}x{height}"}),
        warnings.catch_warnings(),
    ):
        # Glyphs that matplotlib's font lacks: the browser has them, only their width is a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, lambda: out[0]
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    out.append(text[text.index("<svg") :])
