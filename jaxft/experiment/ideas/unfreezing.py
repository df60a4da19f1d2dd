"""`optim.unfreeze`, `unfreeze_every` and `unfreeze_at`: groups of depths train from later updates on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from jaxft import optim
from jaxft.config import ConfigDict, duration_steps
from jaxft.experiment.length import Length


def make_plan(
    config: ConfigDict, depths: dict[str, int], frozen: Collection[str], length: Length
) -> optim.Plan:
    """The plan of `config.optim.unfreeze` over depths; () when everything trains from the start.

    Args:
      frozen: paths that never train. Depths of which nothing does are in no stage.

    Raises:
      ValueError: a stage would begin after the end of the run, or names a depth that is not there.
    """
    c = config.optim
    if c.unfreeze == "none":
        return ()
    for_good = {path: path in frozen for path in depths}
    groups = sorted({depth for path, depth in depths.items() if path not in frozen})
    if len(groups) < 2:
        raise ValueError(
            f"config.optim.unfreeze={c.unfreeze!r} has nothing to unfreeze: all but one depth "
            f"({groups[0] if groups else 'none'}) is frozen for good by optim.frozen or freeze_below"
        )
    try:
        if c.unfreeze == "explicit":
            plan = _explicit(c, length)
            optim.check_plan(plan, depths)
            plan = optim.prune_plan(plan, depths, for_good)
        else:
            make = getattr(optim, c.unfreeze)
            if c.unfreeze_every is None:
                every = max(1, length.steps // (len(make(groups, 1)) + 1))
            else:
                every = length.of(config, "optim.unfreeze_every")
            plan = make(groups, every)
    except ValueError as error:
        raise ValueError(f"config.optim.unfreeze={c.unfreeze!r}: {error}") from error
    if plan[-1].start >= length.steps:
        raise ValueError(
            f"config.optim.unfreeze={c.unfreeze!r} begins its last stage at update {plan[-1].start}, "
            f"but the run has {length.steps}; "
            + (
                "lengthen it, or freeze more for good"
                if c.unfreeze_every is None
                else f"shorten optim.unfreeze_every={c.unfreeze_every!r}, or leave it out to fit"
            )
        )
    return plan


def stages_of(plan: optim.Plan, depth: int) -> tuple[int, ...]:
    """Numbers of the stages in which a depth trains; without a plan there is one stage, of all."""
    if not plan:
        return (0,)
    return tuple(number for number, stage in enumerate(plan) if depth in stage.groups)


def _explicit(c: ConfigDict, length: Length) -> optim.Plan:
    unfrozen: dict[int, Any] = {}
    for at, who in c.unfreeze_at:  # two durations may be the same update
        start = duration_steps(
            "optim.unfreeze_at", at, steps_per_epoch=length.epoch, total_steps=length.steps
        )
        unfrozen[start] = (*unfrozen.get(start, ()), *who)
    return optim.explicit(unfrozen)
