"""`optim.groups`: parameters with a rate, decay, schedule or optimizer of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.experiment import schedule
from jaxft.experiment.cores import core
from jaxft.experiment.decisions import Decision, Decisions

Common = Callable[[Mapping[str, Any]], dict[str, Any]]
REST = "rest"  # what no pattern matches
_FROZEN = "frozen"


def rules(c: ConfigDict) -> list[tuple[str, str]]:
    """(pattern, label) in order; the label is the number of the group. `c` is `config.optim`."""
    return [(pattern, str(i)) for i, (pattern, _) in enumerate(c.groups)]


def settings(c: ConfigDict, label: str) -> dict[str, Any]:
    """'lr', 'weight_decay', 'schedule', 'optimizer' of a group: its own, else those of the run."""
    own = {name: c[name] for name in ("lr", "weight_decay", "schedule", "optimizer")}
    return own if label == REST else {**own, **dict(c.groups[int(label)][1])}


def numbers(c: ConfigDict, decisions: Decisions) -> dict[str, Any]:
    """'group_lr' and 'group_weight_decay' [G] of the groups that train; nothing without groups."""
    if not c.groups:
        return {}
    rows = _one_of_each(decisions)
    return {
        "group_lr": [row.lr for row in rows],
        "group_weight_decay": [row.weight_decay for row in rows],
    }


def optimizer(
    h: dict[str, Any], c: ConfigDict, decisions: Decisions, common: Common, norm: optim.Norm
) -> optax.GradientTransformationExtraArgs:
    """The settings of the first pattern that matches each parameter; before the factors of paths.

    Args:
      h: see `optimizer.numbers`; may be traced.
      common: `Layout.common` of the parameters that it is given.
      norm: what `optim.clip` measures gradients by.
    """
    groups: dict[str, optim.Group | None] = {}
    for i, row in enumerate(_one_of_each(decisions)):
        groups[row.group] = optim.Group(
            schedule.schedule(h, row.schedule, h["group_lr"][i]),
            h["group_weight_decay"][i],
            core(row.optimizer, h, c),
        )
    labels = {row.path: row.group if row.trains else _FROZEN for row in decisions}
    if _FROZEN in labels.values():
        groups[_FROZEN] = None
    decayed = common({row.path: row.decays for row in decisions})
    return optim.parameter_groups(
        groups, common(labels), clip=h.get("clip"), decayed=decayed, norm=norm
    )


def _one_of_each(decisions: Decisions) -> Sequence[Decision]:
    """The first trainable row of each group, in the order of the rows."""
    return list({row.group: row for row in reversed(decisions.rows) if row.trains}.values())[::-1]
