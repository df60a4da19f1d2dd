"""`optim.decay_towards='pretrained'`: weights decay towards those the run began with (L2-SP)."""

from __future__ import annotations

from collections.abc import Mapping

import optax

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.experiment.ideas.idea import Numbers


def decay(
    h: Numbers, c: ConfigDict, fresh: Mapping[str, bool]
) -> optax.GradientTransformation | None:
    """What takes the place of weight decay; None where it does not.

    Args:
      fresh: by path, whether it is newly initialised: it then decays towards zero.
    """
    if c.decay_towards != "pretrained":
        return None
    return optim.l2sp(h["weight_decay"], fresh=fresh, fresh_strength=h["weight_decay"])
