"""`optim.sam_radius`: the gradient is taken a little uphill of the weights."""

from __future__ import annotations

import optax

from jaxft import optim
from jaxft.experiment.ideas.idea import Idea, Numbers


def _wrap(
    tx: optax.GradientTransformation, h: Numbers, schedule: optax.Schedule, norm: optim.Norm
) -> optax.GradientTransformationExtraArgs:
    return optim.sam(tx, h["sam_radius"], norm=norm)


SHARPNESS_AWARE = Idea(
    asked=lambda c: c.sam_radius is not None,
    numbers=lambda config, length: {"sam_radius": config.optim.sam_radius},
    wrap=_wrap,
)
