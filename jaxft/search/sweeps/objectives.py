"""What a sweep optimises: a metric of the evaluation, time or memory of a trial, the size of its model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from jaxft.base.nearest import nearest
from jaxft.config import ConfigDict
from jaxft.experiment.prepared import Prepared
from jaxft.search.trials.trial import Outcome
from jaxft.tasks.names import METRICS

# Besides metrics, less of each is better.
MEASURED = ("seconds", "parameters", "trainable", "memory")


def named(text: str, config: ConfigDict) -> tuple[str, ...]:
    """The objectives that 'accuracy,seconds' names; '' is `eval.metric`.

    Raises:
      ValueError: one of them is none, or is there twice; or the first is not `eval.metric`.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or [config.eval.metric]
    known = (*METRICS[config.task], *MEASURED)
    for name in names:
        if name not in known:
            raise ValueError(
                f"--objectives: {name!r} is none of config.task={config.task!r}, which has "
                f"{', '.join(known)}{nearest(name, known)}"
            )
        if names.count(name) > 1:
            raise ValueError(f"--objectives: {name!r} is there twice")
    if names[0] != config.eval.metric:
        raise ValueError(
            f"--objectives: the first is what chooses the best checkpoint of a trial, "
            f"config.eval.metric={config.eval.metric!r}, not {names[0]!r}; give that one, or set the config's"
        )
    return tuple(names)


def directions(names: Sequence[str], config: ConfigDict) -> tuple[str, ...]:
    """'max' or 'min' of each."""
    return tuple(METRICS[config.task].get(name, "min") for name in names)


def vmapped(names: Sequence[str]) -> str:
    """The mode of `run_trials`: the memory of a trial is known only where it runs by itself."""
    return "off" if "memory" in names else "auto"


def values(
    names: Sequence[str], row: Mapping[str, float], outcome: Outcome, prepared: Prepared
) -> tuple[float, ...] | None:
    """Of one evaluation of a trial; None where one of them is not finite.

    Args:
      row: of `Outcome.history`.

    Raises:
      ValueError: the memory is asked for, and the backend does not say it.
    """
    if "memory" in names and outcome.memory is None:
        raise ValueError(
            "--objectives: the compiler of this device does not say the 'memory' of a trial"
        )
    totals = prepared.decisions.totals
    measured = {
        "seconds": outcome.seconds,
        "trainable": totals["trainable"],
        "parameters": totals["total"],
        "memory": outcome.memory or 0,
    }
    found = tuple(float(measured[n] if n in measured else row[n]) for n in names)
    return found if all(map(math.isfinite, found)) else None
