"""`optim.optimizer`: what turns gradients into directions."""

from __future__ import annotations

from typing import Any

import optax

from jaxft.config import ConfigDict

# Where `optim.b2` is None. Lion's is its paper's: Chen et al. 2023, https://arxiv.org/abs/2302.06675.
_B2 = {"adamw": 0.999, "lion": 0.99}


def numbers(c: ConfigDict) -> dict[str, float]:
    """'b1', 'eps' and a 'b2' for each optimizer that has one; `c` is `config.optim`."""
    b2 = {f"{name}_b2": default if c.b2 is None else c.b2 for name, default in _B2.items()}
    return {"b1": c.b1, "eps": c.eps, **b2}


def core(name: str, h: dict[str, Any], c: ConfigDict) -> optax.GradientTransformation:
    """The transform of one of the optimizers. Schedule-free averaging takes the place of momentum.

    Args:
      h: see `optimizer.numbers`; may be traced.
      c: `config.optim`, for its structure.
    """
    momentum = 0.0 if c.schedule_free else h["b1"]
    if name == "sgd":
        return optax.trace(momentum) if c.b1 and not c.schedule_free else optax.identity()
    if name == "lion":
        return optax.scale_by_lion(b1=momentum, b2=h["lion_b2"])
    return optax.scale_by_adam(b1=momentum, b2=h["adamw_b2"], eps=h["eps"])
