"""`optim.average`: a moving average of the weights (ema), or the mean of late ones (swa), counts."""

from __future__ import annotations

from typing import Any

import optax

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.experiment.ideas.idea import Idea, Numbers, Weighed
from jaxft.experiment.length import Length


def _moving(
    tx: optax.GradientTransformation, h: Numbers, schedule: optax.Schedule, norm: optim.Norm
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(tx, optim.weight_ema(h["average_decay"]))


def _mean(
    tx: optax.GradientTransformation, h: Numbers, schedule: optax.Schedule, norm: optim.Norm
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(tx, optim.swa(h["average_from"]))


def _begin(config: ConfigDict, length: Length) -> Numbers:
    return {"average_from": max(length.within(config, "optim.average_from"), 1)}


def _weights(c: ConfigDict, weighed: Weighed, whole: Any) -> Any:
    return optim.averaged(weighed.state.opt_state, whole)


MOVING_AVERAGE = Idea(
    asked=lambda c: c.average == "ema",
    numbers=lambda config, length: {"average_decay": config.optim.average_decay},
    wrap=_moving,
    weights=_weights,
    slots=True,
    says=lambda c, before: f"the moving average of the weights (decay {c.average_decay:g})",
)
LATE_MEAN = Idea(
    asked=lambda c: c.average == "swa",
    numbers=_begin,
    wrap=_mean,
    weights=_weights,
    slots=True,
    says=lambda c, before: f"the mean of the weights from {c.average_from} on",
)
