"""The learning rate of every update: linear warm-up, then constant, linear or cosine.

The rates are those of Hugging Face's get_linear_schedule_with_warmup and its cosine twin: the first
update has rate 0 / warm-up, and the last one is a step short of the end. optax's own schedules take
their lengths as Python numbers; here every number may be traced, so that one compiled program serves
every rate and every length of a run.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import optax

KINDS = ("linear", "cosine", "constant")


def rate(
    step: Any, kind: str, *, lr: Any, end_lr: Any, warmup: Any, num_steps: Any, xp: Any = jnp
) -> Any:
    """Rate of the update with number `step` (0 is the first), in float32, in the shape of `step`.

    Args:
      step: int scalar or array.
      kind: one of KINDS.
      lr: the peak, reached at `warmup`.
      end_lr: share of `lr` at `num_steps`; later updates have it too.
      warmup, num_steps: in updates.
      xp: `jax.numpy`, or `numpy` where nothing is to be dispatched to a device.
    """
    step, lr, end_lr, warmup, num_steps = (
        xp.asarray(x, xp.float32) for x in (step, lr, end_lr, warmup, num_steps)
    )
    done = xp.clip((step - warmup) / xp.maximum(num_steps - warmup, 1), 0, 1)
    if kind == "constant":
        left = xp.ones_like(done)
    elif kind == "linear":
        left = (1 - end_lr) * (1 - done) + end_lr
    else:
        left = (1 - end_lr) * (0.5 * (1 + xp.cos(math.pi * done))) + end_lr
    return xp.where(step < warmup, lr * (step / xp.maximum(warmup, 1)), lr * left)


def schedule(h: dict[str, Any], kind: str, lr: Any) -> optax.Schedule:
    """The rate as a function of the update, with the warm-up, end and length of the run.

    Args:
      h: see `optimizer.numbers`; may be traced.
    """
    return lambda step: of_run(h, step, kind, lr)


def of_run(h: dict[str, Any], step: Any, kind: str, lr: Any, **xp: Any) -> Any:
    """`rate` with the numbers of the run."""
    return rate(
        step, kind, lr=lr, end_lr=h["end_lr"], warmup=h["warmup"], num_steps=h["num_steps"], **xp
    )
