"""From `config.optim` to what happens to each parameter: whether it trains, how fast, decayed or not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.models import Architecture, flatten
from jaxft.optim.hints import widened

# Rates above these are rarely meant: ten times the usual highest of each.
_HIGH_RATES = {"adamw": 0.05, "lion": 0.01, "sgd": 5.0}
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

    def knowing(self, fresh: Collection[str]) -> Treatment:
        """The same, warning of frozen ones among these paths, which are newly initialised."""
        random = [path for path in fresh if path in self.frozen]
        if not random:
            return self
        shown = ", ".join(random[:4]) + (f" and {len(random) - 4} more" if len(random) > 4 else "")
        warning = f"frozen at random values, since the checkpoint does not have them: {shown}"
        return dataclasses.replace(self, warnings=(*self.warnings, warning))

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
    below = {None: -1, "all": blocks}.get(c.freeze_below, c.freeze_below)
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


def group_labels(config: ConfigDict, paths: Collection[str]) -> dict[str, str]:
    """The number of the first of `optim.groups` that matches each path, or `REST`.

    Raises:
      ValueError: a pattern that matches nothing.
    """
    rules = [(pattern, str(i)) for i, (pattern, _) in enumerate(config.optim.groups)]
    return _rules(rules, dict.fromkeys(paths, 0), "groups", default=REST)


def settings_of(config: ConfigDict, path_labels: dict[str, str]) -> dict[str, dict[str, Any]]:
    """{path: {'lr', 'weight_decay', 'schedule', 'optimizer'}} before any factor."""
    return {path: group_settings(config, label) for path, label in path_labels.items()}


def group_settings(config: ConfigDict, label: str) -> dict[str, Any]:
    """The settings of one group, by its label: its own, else those of the run."""
    c = config.optim
    own = {name: c[name] for name in ("lr", "weight_decay", "schedule", "optimizer")}
    return own if label == REST else {**own, **dict(c.groups[int(label)][1])}


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
    named = [*(("frozen", p) for p in c.frozen), *(("lr_mult", p) for p, _ in c.lr_mult),
             *(("groups", p) for p, _ in c.groups)]  # fmt: skip
    for field, pattern in named:
        if narrower := widened(pattern, list(depths)):
            found.append(
                f"optim.{field} {pattern!r} also matches longer numbers that begin alike; for that "
                f"one alone write {narrower!r}"
            )
    for pattern, factor in c.lr_mult:
        matched = {p for p, yes in _at((pattern,), architecture.abstract, "lr_mult").items() if yes}
        if matched <= frozen:
            found.append(f"optim.lr_mult {pattern!r} x {factor:g} only matches frozen parameters")
    high = _HIGH_RATES[c.optimizer]
    if c.lr > high:
        found.append(
            f"optim.lr={c.lr:g} is far above what fine-tuning with {c.optimizer} takes "
            f"(rarely above {high:g}): the weights will be lost"
        )
    return found
