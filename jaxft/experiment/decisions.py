"""What happens to each parameter, settled once: optimizer, stages, tables and reports read these rows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterator

from jax.sharding import PartitionSpec

from jaxft import optim


@dataclasses.dataclass(frozen=True)
class Decision:
    """One parameter.

    Attributes:
      path, shape, depth: what it is: stem 0, blocks 1 to L, head L + 1.
      stages: numbers of the stages in which it trains; () where it never does.
      lr_scale: factor on the rate of its group; of frozen ones, too, where it has no effect.
      group: label of its group of `optim.groups`.
      lr, weight_decay, schedule, optimizer: of that group; the peak rate is `lr * lr_scale`.
      decays: weight decay acts on it, were it trainable.
      placement: the axis of the mesh that cuts each dimension, None where it is whole; without a
        mesh it is whole on every device.
    """

    path: str
    shape: tuple[int, ...]
    depth: int
    stages: tuple[int, ...]
    lr_scale: float
    group: str
    lr: float
    weight_decay: float
    schedule: str
    optimizer: str
    decays: bool
    placement: PartitionSpec

    @property
    def trains(self) -> bool:
        """At some time of the run."""
        return bool(self.stages)

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate it has; 0 when frozen."""
        return self.lr * self.lr_scale if self.trains else 0.0

    @property
    def decay(self) -> float:
        """The decoupled coefficient of weight decay that acts on it."""
        return self.weight_decay if self.trains and self.decays else 0.0


@dataclasses.dataclass(frozen=True)
class Decisions:
    """One row per parameter, in the order of the model's tree.

    Attributes:
      plan: of gradual unfreezing, over depths; () for none, which is one stage.
      warnings: what is allowed but probably not meant.
    """

    rows: tuple[Decision, ...]
    plan: optim.Plan = ()
    warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.rows)

    @functools.cached_property
    def frozen(self) -> frozenset[str]:
        """Paths that never train."""
        return frozenset(row.path for row in self if not row.trains)

    @functools.cached_property
    def depths(self) -> dict[str, int]:
        return {row.path: row.depth for row in self}

    @functools.cached_property
    def placements(self) -> dict[str, PartitionSpec]:
        return {row.path: row.placement for row in self}

    @property
    def starts(self) -> tuple[int, ...]:
        """The update with which each stage begins."""
        return tuple(int(stage.start) for stage in self.plan) or (0,)

    def frozen_in(self, stage: int) -> frozenset[str]:
        """Paths that have not trained up to this stage: no gradient, no slot."""
        return frozenset(
            row.path for row in self if not any(number <= stage for number in row.stages)
        )

    def held_in(self, stage: int) -> frozenset[str]:
        """Paths that trained earlier and pause in this stage."""
        still = self.frozen_in(stage)
        return frozenset(
            row.path for row in self if stage not in row.stages and row.path not in still
        )

    def knowing(self, fresh: Collection[str]) -> Decisions:
        """The same, warning of frozen ones among these paths, which are newly initialised."""
        random = [path for path in fresh if path in self.frozen]
        if not random:
            return self
        shown = ", ".join(random[:4]) + (f" and {len(random) - 4} more" if len(random) > 4 else "")
        warning = f"frozen at random values, since the checkpoint does not have them: {shown}"
        return dataclasses.replace(self, warnings=(*self.warnings, warning))

    @functools.cached_property
    def totals(self) -> dict[str, int]:
        """Parameter counts, 'total' and 'trainable'."""
        return {
            "total": sum(row.size for row in self),
            "trainable": sum(row.size for row in self if row.trains),
        }

    @property
    def summary(self) -> str:
        """One line for the terminal."""
        total, trainable = self.totals["total"], self.totals["trainable"]
        rates = [row.lr_scale for row in self if row.trains]
        spread = f", learning-rate factors {min(rates):.3g} to {max(rates):.3g}" if rates else ""
        return f"{trainable:,} of {total:,} parameters trainable ({trainable / total:.1%}){spread}"
