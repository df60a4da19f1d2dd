"""`optim.decay_towards='pretrained'`: weights decay towards those the run began with (L2-SP)."""

from __future__ import annotations

from collections.abc import Collection

import optax

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.experiment.decisions import Decisions
from jaxft.experiment.ideas.idea import Numbers


def decay(
    h: Numbers, c: ConfigDict, decisions: Decisions, fresh: Collection[str]
) -> optax.GradientTransformation | None:
    """What takes the place of weight decay; None where it does not.

    Args:
      fresh: paths that are newly initialised: they decay towards zero.
    """
    if c.decay_towards != "pretrained":
        return None
    new = {row.path: row.path in fresh for row in decisions}
    return optim.l2sp(h["weight_decay"], fresh=new, fresh_strength=h["weight_decay"])
