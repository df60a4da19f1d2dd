"""Average the best trials of a search into one model: `python -m jaxft.soup --trials DIR --output DIR`.

The soup of weights is a checkpoint in Hugging Face format like any other; with --ensemble every member is
one, too, and the predictions of the mean of their outputs are written.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported, which Ctrl-C may interrupt
    from jaxft.terminal.start import begin

    begin(huge_pages=True)

import sys
from collections.abc import Sequence

from jaxft.search.souping import soup
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_comparison

FLAGS = (
    Flag("trials", "directory of a search, such as a sweep's", required=True),
    Flag("output", "folder for soup/, soup.json and what --ensemble writes", required=True),
    Flag("top", "so many of the best trials", default=5),
    Flag("kind", "of soup/: greedy (each trial that makes it no worse) or uniform (all)", "greedy"),
    Flag("ensemble", "also members/, and predictions.jsonl of the mean of their logits", False),
)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, _ = parse(argv, FLAGS)
    found = soup(
        values.trials, values.output, top=values.top, kind=values.kind, ensemble=values.ensemble
    )
    rows = [
        [name, f"{value:.4f}", "" if tested is None else f"{tested:.4f}"]
        for name, (value, tested) in found.rows.items()
    ]
    members = f"greedy soup: {', '.join(found.members)}"
    heads = ("", f"{found.metric}, evaluation", "test")
    show_comparison(heads, rows, [members, *found.notes], words=1)
    print("\n".join(f"written: {path}" for path in found.written))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
