"""`jaxft COMMAND …`, which is `python -m jaxft.COMMAND …`. Imports nothing heavy before the command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jaxft.base.nearest import nearest
from jaxft.terminal.start import begin

# Each is a module of jaxft with `main(argv)`.
COMMANDS = {
    "train": "fine-tune a checkpoint, or continue a run",
    "describe": "show what a config does to every parameter, before any compute",
    "plan": "what a run needs on hardware that is not here: memory, traffic, time, cost",
    "evaluate": "measure a finished run on labelled data",
    "predict": "label new rows",
    "export": "write a run's model in Hugging Face format",
    "compare": "hold runs against each other, in a table and a page",
    "check_data": "look for duplicates, leaks, damage and wrong labels in the data",
    "cross_validate": "mean and interval of a config over folds or seeds, out-of-fold predictions",
    "select": "rank checkpoints for your data, by a probe of their features",
    "find_lr": "find a learning rate, by a range test of a hundred updates",
    "sweep": "search over configs: many trials, of which the best is a config file",
    "soup": "average the best trials of a search into one model",
}
# Those that train, and start with `huge_pages`.
TRAINING = frozenset({"train", "cross_validate", "find_lr", "sweep", "soup"})
_USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named first; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0].lstrip("-") in ("help", "h", "helpfull"):
        print(_usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        print(
            f"jaxft: error: there is no command {name!r}{hint}; there are {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return _USER_ERROR
    begin(huge_pages=name in TRAINING)
    command = importlib.import_module(f"jaxft.{name}")
    from jaxft.terminal.errors import run_command

    return run_command(command.main, [f"jaxft {name}", *rest])


def _usage() -> str:
    lines = ["usage: jaxft COMMAND --flag=value …", ""]
    width = max(map(len, COMMANDS))
    lines += [f"  {name:<{width}} {about}" for name, about in COMMANDS.items()]
    return "\n".join([*lines, "", "jaxft COMMAND --help lists the flags of a command."])
