"""`optim.schedule_free`: a weighted average of the iterates takes the place of schedule and momentum."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.experiment.ideas.idea import Idea, Numbers, Weighed

# Under pmap, for each copy. Made once: jit finds its program again by the function.
_of_copies = jax.vmap(optim.schedule_free_params)


def _wrap(
    tx: optax.GradientTransformation, h: Numbers, schedule: optax.Schedule, norm: optim.Norm
) -> optax.GradientTransformationExtraArgs:
    return optim.schedule_free(tx, schedule, b1=h["b1"])


def _weights(c: ConfigDict, weighed: Weighed, whole: Any) -> Any:
    places = jax.tree.map(lambda x: x.sharding, whole)
    evaluated = _of_copies if weighed.parallel.mode == "pmap" else optim.schedule_free_params
    return jax.jit(evaluated, out_shardings=places)(weighed.state.opt_state, whole)


SCHEDULE_FREE = Idea(
    asked=lambda c: c.schedule_free,
    wrap=_wrap,
    weights=_weights,
    slots=True,
    says=lambda c, before: "the schedule-free average of the weights",
)
