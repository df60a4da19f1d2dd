"""Search over configs: `python -m jaxft.sweep --config FILE --space SPACE.py --workdir DIR`.

The space file names what is tried of which field; Optuna says which values come next and which trials are
not worth their end. The same command goes on where it was stopped, and several of them share the work.
"""

from __future__ import annotations

if __name__ == "__main__":  # before jax is imported: this may start the process anew
    from jaxft.terminal.start import begin

    begin(huge_pages=True)

import sys
from collections.abc import Sequence
from typing import Any

import jax  # noqa: F401 a second in which a signal is one line; what is imported later needs it

from jaxft.search.sweeps.extra import needed
from jaxft.search.sweeps.space_file import load
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse
from jaxft.terminal.tables import show_comparison

FLAGS = (
    Flag("space", "space file, FILE[:arg], with get_space()", required=True),
    Flag("workdir", "directory of the sweep; created, or continued if it holds this one", required=True),
    Flag("trials", "how many there are to be; 0: 30, or all points of a grid", default=0),
    Flag("sampler", "tpe, random, grid or cmaes", default="tpe"),
    Flag("pruner", "median, halving, hyperband, wilcoxon or none; default: median"),
    Flag("objectives", "metrics, seconds, parameters, trainable: A,B; default: eval.metric"),
    Flag("at_once", "trials that are asked for together; 0: by what is searched", default=0),
    Flag("seed", "of the sampler", default=0),
    Flag("storage", "a journal's FILE or a database's address; default: study.journal of the workdir"),
    Flag("study", "its name in the storage", default="sweep"),
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    values, config = parse(argv, FLAGS, with_config=True)
    assert config is not None
    needed("optuna")
    from jaxft.search.sweeps import place, plan, sweeping  # which import it

    space = load(values.space, config)
    asked: dict[str, Any] = {name: values[name].value for name in plan.Asked.__annotations__}
    where = place.open_place(values.workdir)
    found = sweeping.sweep(config, space, plan.Asked(**asked), where)
    heads, rows, notes = sweeping.summary(found, 10)
    show_comparison(heads, rows, notes, words=2)
    best = f"; best config: {values.workdir}/best.py" if found.best else ""
    print(f"page: {values.workdir}/sweep.html{best}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
