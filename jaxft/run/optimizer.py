"""From `config.optim` to what happens to each parameter, and to the optax transform that does it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import optax

from jaxft import optim
from jaxft.config import ConfigDict, duration_steps
from jaxft.models import Architecture, flatten

REST = "rest"  # what no pattern of `optim.groups` matches


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What was decided for every parameter, by path.

    Attributes:
      frozen: paths that stay as they are.
      lr_scale: factor on the schedule's rate; also of frozen paths, where it has no effect.
      decayed: paths that weight decay acts on, were they trainable.
      totals: parameter counts, 'total' and 'trainable'.
      warnings: what is allowed but probably not meant.
    """

    frozen: frozenset[str]
    lr_scale: dict[str, float]
    decayed: frozenset[str]
    totals: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line for the terminal."""
        total, trainable = self.totals["total"], self.totals["trainable"]
        rates = [scale for path, scale in self.lr_scale.items() if path not in self.frozen]
        spread = f", learning-rate factors {min(rates):.3g} to {max(rates):.3g}" if rates else ""
        return f"{trainable:,} of {total:,} parameters trainable ({trainable / total:.1%}){spread}"


def treat(config: ConfigDict, architecture: Architecture) -> Treatment:
    """Settle `optim.frozen`, `freeze_below`, `layer_decay` and `lr_mult` for every parameter.

    Raises:
      ValueError: a pattern that matches nothing, or more blocks to freeze than there are.
    """
    c, abstract, depths = config.optim, architecture.abstract, architecture.depths
    blocks = architecture.num_blocks
    below = -1 if c.freeze_below is None else c.freeze_below
    if below > blocks:
        raise ValueError(
            f"config.optim.freeze_below={below}, but the model has {blocks} blocks: "
            f"{blocks} freezes everything but the head"
        )
    named = _at(c.frozen, abstract, "frozen")
    frozen = {path for path, depth in depths.items() if depth <= below or named[path]}
    multipliers = flatten(_rules(c.lr_mult, abstract, "lr_mult", default=1.0))
    lr_scale = {
        path: c.layer_decay ** (blocks + 1 - depth) * multipliers[path]
        for path, depth in depths.items()
    }
    decayed = {path for path, yes in flatten(optim.decay_mask(abstract)).items() if yes}
    sizes = {path: math.prod(leaf.shape) for path, leaf in flatten(abstract).items()}
    return Treatment(
        frozen=frozenset(frozen),
        lr_scale=lr_scale,
        decayed=frozenset(decayed),
        totals={
            "total": sum(sizes.values()),
            "trainable": sum(size for path, size in sizes.items() if path not in frozen),
        },
        warnings=tuple(_warnings(config, architecture, frozen)),
    )


def frozen_blocks(architecture: Architecture, still: Collection[str]) -> int:
    """The depth up to which everything is in `still`; -1 when some of the stem is trainable.

    Up to there the forward pass needs no dropout, and the backward pass does not reach it.
    """
    depths, blocks = architecture.depths, architecture.num_blocks
    lowest = min((depths[path] for path in depths if path not in still), default=blocks + 1)
    return min(lowest - 1, blocks)


def make_optimizer(
    config: ConfigDict,
    treatment: Treatment,
    *,
    num_steps: int,
    steps_per_epoch: int,
    **rest: Any,
) -> optax.GradientTransformationExtraArgs:
    """The transform for the trainable parameters (with holes) or for all of them.

    Args:
      rest: as for `base_optimizer`. Around that go schedule-free averaging, the sharpness-aware
        gradient and the average of the weights, each where the config asks for it.
    """
    c = config.optim
    tx = base_optimizer(
        config, treatment, num_steps=num_steps, steps_per_epoch=steps_per_epoch, **rest
    )
    if c.schedule_free:
        tx = optim.schedule_free(tx, make_schedule(config, num_steps, steps_per_epoch), b1=c.b1)
    if c.sam_radius is not None:
        tx = optim.sam(tx, c.sam_radius)
    if c.average == "ema":
        tx = optax.chain(tx, optim.weight_ema(c.average_decay))
    elif c.average == "swa":
        start = duration_steps(
            "optim.average_from", c.average_from, steps_per_epoch=steps_per_epoch,
            total_steps=num_steps,
        )  # fmt: skip
        if start > num_steps:
            raise ValueError(
                f"config.optim.average_from={c.average_from!r} is step {start}, the run has {num_steps}"
            )
        tx = optax.chain(tx, optim.swa(max(start, 1)))
    return tx


def base_optimizer(
    config: ConfigDict,
    treatment: Treatment,
    *,
    num_steps: int,
    steps_per_epoch: int,
    fresh: Collection[str] = (),
    plan: optim.Plan = (),
    depths: dict[str, int] | None = None,
    stage: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip, core, decay, scales and schedule; what `jaxft.optim.lint` looks at.

    Args:
      fresh: paths that are newly initialised: with L2-SP they decay towards zero.
      plan, depths, stage: gradual unfreezing, and the one stage that the program is for.
    """
    c = config.optim
    schedule = make_schedule(config, num_steps, steps_per_epoch)
    frozen = {path: path in treatment.frozen for path in treatment.lr_scale}
    if c.groups:
        groups = _groups(config, treatment, num_steps, steps_per_epoch)
        return optax.chain(groups, optim.scale_by_path(treatment.lr_scale))
    decay = None
    if c.decay_towards == "pretrained":
        new = {path: path in fresh for path in treatment.lr_scale}
        decay = optim.l2sp(c.weight_decay, fresh=new, fresh_strength=c.weight_decay)
    return optim.fine_tuning_optimizer(
        schedule,
        core=_core(config, c.optimizer),
        frozen=frozen,
        scales=treatment.lr_scale,
        weight_decay=c.weight_decay,
        decayed={path: path in treatment.decayed for path in treatment.lr_scale},
        decay=decay,
        clip=c.clip,
        plan=plan or None,
        groups=depths if plan else None,
        stage=stage if plan else None,
    )


def _core(config: ConfigDict, name: str) -> optax.GradientTransformation:
    """What turns gradients into directions. Schedule-free averaging takes the place of momentum."""
    c = config.optim
    momentum = 0.0 if c.schedule_free else c.b1
    if name == "sgd":
        return optax.trace(momentum) if momentum else optax.identity()
    if name == "lion":
        return optax.scale_by_lion(b1=momentum, b2=c.b2)
    return optax.scale_by_adam(b1=momentum, b2=c.b2, eps=c.eps)


def settings_of(config: ConfigDict, path_labels: dict[str, str]) -> dict[str, dict[str, Any]]:
    """{path: {'lr', 'weight_decay', 'schedule', 'optimizer'}} before any factor."""
    c = config.optim
    own = {name: c[name] for name in ("lr", "weight_decay", "schedule", "optimizer")}
    return {
        path: own if label == REST else {**own, **dict(c.groups[int(label)][1])}
        for path, label in path_labels.items()
    }


def group_labels(config: ConfigDict, paths: Collection[str]) -> dict[str, str]:
    """The number of the first of `optim.groups` that matches each path, or `REST`.

    Raises:
      ValueError: a pattern that matches nothing.
    """
    rules = [(pattern, str(i)) for i, (pattern, _) in enumerate(config.optim.groups)]
    return _rules(rules, dict.fromkeys(paths, 0), "groups", default=REST)


def make_schedule(
    config: ConfigDict,
    num_steps: int,
    steps_per_epoch: int,
    *,
    lr: float | None = None,
    kind: str | None = None,
) -> optax.Schedule:
    """Linear warm-up from 0 to `optim.lr`, then constant, linear or cosine to `end_lr` x lr.

    The rates are those of Hugging Face's get_linear_schedule_with_warmup and its cosine twin: the
    first update has rate 0 / warm-up, and the last one is a step short of the end.

    Args:
      lr, kind: in place of `optim.lr` and `optim.schedule`.

    Raises:
      ValueError: the warm-up is longer than the run.
    """
    c = config.optim
    lr, kind = c.lr if lr is None else lr, kind or c.schedule
    warmup = duration_steps(
        "optim.warmup", c.warmup, steps_per_epoch=steps_per_epoch, total_steps=num_steps
    )
    if warmup > num_steps:
        raise ValueError(
            f"config.optim.warmup={c.warmup!r} is {warmup} steps, the run has {num_steps}"
        )
    rest = max(1, num_steps - warmup)
    after = {
        "constant": optax.constant_schedule(lr),
        "linear": optax.linear_schedule(lr, lr * c.end_lr, rest),
        "cosine": optax.cosine_decay_schedule(lr, rest, alpha=c.end_lr),
    }[kind]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup])


def _groups(
    config: ConfigDict, treatment: Treatment, num_steps: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """`optim.groups`: the settings of the first pattern that matches, else those of the run."""
    labels = group_labels(config, treatment.lr_scale)
    settings = settings_of(config, labels)
    labels = {p: "frozen" if p in treatment.frozen else label for p, label in labels.items()}
    groups: dict[str, optim.Group | None] = {}
    for path, label in labels.items():
        if label == "frozen":
            groups[label] = None
        elif label not in groups:
            s = settings[path]
            schedule = make_schedule(
                config, num_steps, steps_per_epoch, lr=s["lr"], kind=s["schedule"]
            )
            groups[label] = optim.Group(schedule, s["weight_decay"], _core(config, s["optimizer"]))
    return optim.parameter_groups(groups, labels, clip=config.optim.clip)


def _rules(rules: Any, tree: Any, field: str, *, default: Any) -> Any:
    """`match_rules`, naming the config field whose pattern is wrong."""
    try:
        return optim.match_rules(rules, tree, default=default)
    except ValueError as error:
        raise ValueError(f"config.optim.{field}: {error}") from error


def _at(patterns: tuple[str, ...], tree: Any, field: str) -> dict[str, bool]:
    return flatten(_rules([(p, True) for p in patterns], tree, field, default=False))


def _warnings(config: ConfigDict, architecture: Architecture, frozen: set[str]) -> list[str]:
    """Allowed, but probably not what was meant."""
    c, depths, found = config.optim, architecture.depths, []
    head = {path for path, depth in depths.items() if depth == architecture.num_blocks + 1}
    if len(frozen) == len(depths):
        found.append("every parameter is frozen: there is nothing to train")
    elif head <= frozen:
        found.append("the head is frozen: a newly initialised one will stay random")
    for pattern, factor in c.lr_mult:
        matched = {p for p, yes in _at((pattern,), architecture.abstract, "lr_mult").items() if yes}
        if matched <= frozen:
            found.append(f"optim.lr_mult {pattern!r} x {factor:g} only matches frozen parameters")
    if c.weight_decay and c.frozen:
        found.append("weight decay does not act on the frozen parameters")
    return found
