"""From `config.optim` to the optax transform that does it.

The structure (which optimizer and schedule, which parameters) is read from the config when a program
is traced. The numbers are arrays (`numbers`) that every step takes as inputs, so another
rate, decay or length of the run needs no other program.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import numpy as np
import optax

from jaxft import optim
from jaxft.config import ConfigDict, duration_steps
from jaxft.run import schedule
from jaxft.run.treatment import Treatment, group_labels, group_settings

# Where `optim.b2` is None. Lion's is its paper's: Chen et al. 2023, https://arxiv.org/abs/2302.06675.
_B2 = {"adamw": 0.999, "lion": 0.99}
_COUNTS = ("warmup", "num_steps", "average_from")


def numbers(
    config: ConfigDict, treatment: Treatment, *, num_steps: int, steps_per_epoch: int
) -> dict[str, np.ndarray]:
    """Every number of `config.optim` that an update reads, float32 (int32 where it counts updates).

    Scalars, but for 'scales' [P], the learning-rate factor of each path in the order of
    `treatment.lr_scale`, and 'group_lr', 'group_weight_decay' [G] of the groups in `_groups_of`.

    Raises:
      ValueError: a warm-up, or an average's start, after the end of the run.
    """
    c = config.optim
    steps = functools.partial(_steps, config, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    groups = [group_settings(config, label) for label in _groups_of(config, treatment)]
    values = {
        "lr": c.lr,
        "end_lr": c.end_lr,
        "warmup": steps("warmup"),
        "num_steps": num_steps,
        "weight_decay": c.weight_decay,
        "b1": c.b1,
        **{f"{name}_b2": b2 if c.b2 is None else c.b2 for name, b2 in _B2.items()},
        "eps": c.eps,
        "clip": c.clip,
        "scales": list(treatment.lr_scale.values()),
        "sam_radius": c.sam_radius,
        "average_decay": c.average_decay if c.average == "ema" else None,
        "average_from": max(steps("average_from"), 1) if c.average == "swa" else None,
        "group_lr": [group["lr"] for group in groups] or None,
        "group_weight_decay": [group["weight_decay"] for group in groups] or None,
    }
    return {
        name: np.asarray(x, np.int32 if name in _COUNTS else np.float32)
        for name, x in values.items()
        if x is not None
    }


def make_optimizer(
    h: dict[str, Any],
    *,
    config: ConfigDict,
    treatment: Treatment,
    fresh: Collection[str] = (),
    plan: optim.Plan = (),
    depths: dict[str, int] | None = None,
    stage: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The transform for the trainable parameters (with holes) or for all of them.

    Around `base_optimizer` go schedule-free averaging, the sharpness-aware gradient and the average
    of the weights, each where the config asks for it.

    Args:
      h: see `numbers`; may be traced.
      fresh, plan, depths, stage: as for `base_optimizer`.
    """
    c = config.optim
    tx = base_optimizer(
        h, config=config, treatment=treatment, fresh=fresh, plan=plan, depths=depths, stage=stage
    )
    if c.schedule_free:
        tx = optim.schedule_free(tx, _schedule(h, c.schedule, h["lr"]), b1=h["b1"])
    if c.sam_radius is not None:
        tx = optim.sam(tx, h["sam_radius"])
    if c.average == "ema":
        tx = optax.chain(tx, optim.weight_ema(h["average_decay"]))
    elif c.average == "swa":
        tx = optax.chain(tx, optim.swa(h["average_from"]))
    return tx


def base_optimizer(
    h: dict[str, Any],
    *,
    config: ConfigDict,
    treatment: Treatment,
    fresh: Collection[str] = (),
    plan: optim.Plan = (),
    depths: dict[str, int] | None = None,
    stage: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip, core, decay, scales and schedule; what `jaxft.optim.lint` looks at.

    Args:
      h: see `numbers`; may be traced.
      fresh: paths that are newly initialised: with L2-SP they decay towards zero.
      plan, depths, stage: gradual unfreezing, and the one stage that the program is for.
    """
    c = config.optim
    scales = {path: h["scales"][i] for i, path in enumerate(treatment.lr_scale)}
    if c.groups:
        return optax.chain(_groups(h, config, treatment), optim.scale_by_path(scales))
    decay = None
    if c.decay_towards == "pretrained":
        new = {path: path in fresh for path in treatment.lr_scale}
        decay = optim.l2sp(h["weight_decay"], fresh=new, fresh_strength=h["weight_decay"])
    return optim.fine_tuning_optimizer(
        _schedule(h, c.schedule, h["lr"]),
        core=_core(h, config, c.optimizer),
        frozen={path: path in treatment.frozen for path in treatment.lr_scale},
        scales=scales,
        weight_decay=h["weight_decay"],
        decayed={path: path in treatment.decayed for path in treatment.lr_scale},
        decay=decay,
        clip=h.get("clip"),
        plan=plan or None,
        groups=depths if plan else None,
        stage=stage if plan else None,
    )


def learning_rates(h: dict[str, np.ndarray], config: ConfigDict, num_steps: int) -> np.ndarray:
    """[num_steps] float32 of the run's own schedule, before any factor, computed on the host."""
    steps = np.arange(num_steps)
    return _rate(h, steps, config.optim.schedule, h["lr"], xp=np).astype(np.float32)


def _core(h: dict[str, Any], config: ConfigDict, name: str) -> optax.GradientTransformation:
    """What turns gradients into directions. Schedule-free averaging takes the place of momentum."""
    momentum = 0.0 if config.optim.schedule_free else h["b1"]
    if name == "sgd":
        has_momentum = config.optim.b1 and not config.optim.schedule_free
        return optax.trace(momentum) if has_momentum else optax.identity()
    if name == "lion":
        return optax.scale_by_lion(b1=momentum, b2=h["lion_b2"])
    return optax.scale_by_adam(b1=momentum, b2=h["adamw_b2"], eps=h["eps"])


def _groups(
    h: dict[str, Any], config: ConfigDict, treatment: Treatment
) -> optax.GradientTransformationExtraArgs:
    """`optim.groups`: the settings of the first pattern that matches, else those of the run."""
    labels = group_labels(config, treatment.lr_scale)
    labels = {p: "frozen" if p in treatment.frozen else label for p, label in labels.items()}
    groups: dict[str, optim.Group | None] = {}
    for i, label in enumerate(_groups_of(config, treatment)):
        chosen = group_settings(config, label)
        groups[label] = optim.Group(
            _schedule(h, chosen["schedule"], h["group_lr"][i]),
            h["group_weight_decay"][i],
            _core(h, config, chosen["optimizer"]),
        )
    if "frozen" in labels.values():
        groups["frozen"] = None
    return optim.parameter_groups(groups, labels, clip=h.get("clip"))


def _groups_of(config: ConfigDict, treatment: Treatment) -> list[str]:
    """Labels of the groups that train, in the order of their first parameter; none without groups."""
    if not config.optim.groups:
        return []
    labels = group_labels(config, treatment.lr_scale)
    return list(dict.fromkeys(x for path, x in labels.items() if path not in treatment.frozen))


def _schedule(h: dict[str, Any], kind: str, lr: Any) -> optax.Schedule:
    return lambda step: _rate(h, step, kind, lr)


def _rate(h: dict[str, Any], step: Any, kind: str, lr: Any, **xp: Any) -> Any:
    return schedule.rate(
        step, kind, lr=lr, end_lr=h["end_lr"], warmup=h["warmup"], num_steps=h["num_steps"], **xp
    )


def _steps(config: ConfigDict, field: str, *, num_steps: int, steps_per_epoch: int) -> int:
    """A duration of `config.optim` that must lie in the run, in updates."""
    value = config.optim[field]
    steps = duration_steps(
        f"optim.{field}", value, steps_per_epoch=steps_per_epoch, total_steps=num_steps
    )
    if steps > num_steps:
        raise ValueError(
            f"config.optim.{field}={value!r} is {steps} steps, the run has {num_steps}"
        )
    return steps
