"""From `config.optim` to the optax transform that does it.

The structure (which optimizer and schedule, which parameters) is read from the config when a program
is traced. The numbers are arrays (`numbers`) that every step takes as inputs, so another
rate, decay or length of the run needs no other program.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.experiment import cores, schedule
from jaxft.experiment.decisions import Decisions
from jaxft.experiment.ideas import IDEAS, groups, pretrained_decay
from jaxft.experiment.length import Length
from jaxft.models.stacking import NOTHING, Layout

_COUNTS = ("warmup", "num_steps", "average_from")


def numbers(config: ConfigDict, decisions: Decisions, length: Length) -> dict[str, np.ndarray]:
    """Every number of `config.optim` that an update reads, float32 (int32 where it counts updates).

    Scalars, but for 'scales' [P], the learning-rate factor of each row of `decisions`, and the [G] of
    `groups.numbers`.

    Raises:
      ValueError: a warm-up, or an average's start, after the end of the run.
    """
    c = config.optim
    values = {
        "lr": c.lr,
        "end_lr": c.end_lr,
        "warmup": length.within(config, "optim.warmup"),
        "num_steps": length.steps,
        "weight_decay": c.weight_decay,
        **({} if c.clip is None else {"clip": c.clip}),
        "scales": [row.lr_scale for row in decisions],
        **cores.numbers(c),
        **groups.numbers(c, decisions),
    }
    for idea in IDEAS:
        if idea.asked(c):
            values |= idea.numbers(config, length)
    return {
        name: np.asarray(x, np.int32 if name in _COUNTS else np.float32)
        for name, x in values.items()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class OptimizerOf:
    """Makes the transform of a run, for the trainable parameters (with holes) or for all of them.

    Called with the numbers (see `numbers`; may be traced), it gives `base` in the ideas that the config
    asks for.

    Attributes:
      fresh: paths that are newly initialised.
      stage: the one stage of gradual unfreezing that the program is for; None: whichever it is.
      layout: how the parameters that it is given are stacked.
      norm: what `optim.clip` and `optim.sam_radius` measure gradients by.
    """

    config: ConfigDict
    decisions: Decisions
    fresh: frozenset[str] = frozenset()
    stage: int | None = None
    layout: Layout = NOTHING
    norm: optim.Norm = optax.tree.norm

    def __call__(self, h: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
        c, tx = self.config.optim, self.base(h)
        for idea in IDEAS:
            if idea.wrap is not None and idea.asked(c):
                tx = idea.wrap(tx, h, schedule.schedule(h, c.schedule, h["lr"]), self.norm)
        return tx

    def base(self, h: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
        """Clip, core, decay, scales and schedule; what `jaxft.optim.lint` looks at."""
        c, rows, common = self.config.optim, self.decisions, self.layout.common
        scales = {row.path: h["scales"][i] for i, row in enumerate(rows)}
        place = {row.path: i for i, row in enumerate(rows)}
        for path, members in self.layout.members.items():  # one factor a block
            scales[path] = jnp.asarray(h["scales"])[np.array([place[one] for one in members])]
        if c.groups:
            own = groups.optimizer(h, c, rows, common, self.norm)
            return optax.chain(own, optim.scale_by_path(scales))
        return optim.fine_tuning_optimizer(
            schedule.schedule(h, c.schedule, h["lr"]),
            core=cores.core(c.optimizer, h, c),
            frozen=common({row.path: not row.trains for row in rows}),
            scales=scales,
            weight_decay=h["weight_decay"],
            decayed=common({row.path: row.decays for row in rows}),
            decay=pretrained_decay.decay(
                h, c, common({row.path: row.path in self.fresh for row in rows})
            ),
            clip=h.get("clip"),
            norm=self.norm,
            plan=rows.plan or None,
            groups=rows.depths if rows.plan else None,
            stage=self.stage if rows.plan else None,
        )


def learning_rates(h: dict[str, np.ndarray], config: ConfigDict, length: Length) -> np.ndarray:
    """[steps] float32 of the run's own schedule, before any factor, computed on the host."""
    steps, kind = np.arange(length.steps), config.optim.schedule
    return schedule.of_run(h, steps, kind, h["lr"], xp=np).astype(np.float32)
