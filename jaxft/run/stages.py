"""The stages of a run: which parameters train from which update on, each with its own program.

A run without gradual unfreezing has one stage. At a change of stage the trainable tree grows, what
trained before keeps its slots bit for bit, and the next program has been compiled meanwhile.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Collection, Sequence
from typing import Any

import jax

from jaxft import optim
from jaxft.config import ConfigDict, duration_steps
from jaxft.run.compilation import blank_batches, release_free_memory
from jaxft.run.data import Batches
from jaxft.training.parallel import Parallel, Programs
from jaxft.training.step import Optimizer, TrainState

_NEAR = 256  # updates whose batches are looked at for the shapes to compile first: 0.3 ms each


@dataclasses.dataclass(frozen=True)
class Stage:
    """From update `start` (0 is the first) to the next stage's start.

    Attributes:
      frozen: paths that have not trained so far: no gradient, no slot, not in checkpoints.
      held: paths that trained earlier and pause now.
      state: shapes and placement of the state in this stage.
      program: its compiled step.
    """

    start: int
    frozen: frozenset[str]
    held: frozenset[str]
    optimizer: Optimizer
    state: TrainState
    program: Programs


def make_plan(
    config: ConfigDict,
    depths: dict[str, int],
    frozen: Collection[str],
    *,
    num_steps: int,
    steps_per_epoch: int,
) -> optim.Plan:
    """The plan of `config.optim.unfreeze` over depths; () when everything trains from the start.

    Args:
      frozen: paths that never train. Depths of which nothing does are in no stage.

    Raises:
      ValueError: a stage would begin after the end of the run, or names a depth that is not there.
    """
    c = config.optim
    if c.unfreeze == "none":
        return ()

    def steps(field: str, value: Any) -> int:
        return duration_steps(
            f"optim.{field}", value, steps_per_epoch=steps_per_epoch, total_steps=num_steps
        )

    for_good = {path: path in frozen for path in depths}
    groups = sorted({depth for path, depth in depths.items() if path not in frozen})
    if len(groups) < 2:
        raise ValueError(
            f"config.optim.unfreeze={c.unfreeze!r} has nothing to unfreeze: all but one depth "
            f"({groups[0] if groups else 'none'}) is frozen for good by optim.frozen or freeze_below"
        )
    try:
        if c.unfreeze == "explicit":
            unfrozen: dict[int, Any] = {}
            for at, who in c.unfreeze_at:  # two durations may be the same update
                start = steps("unfreeze_at", at)
                unfrozen[start] = (*unfrozen.get(start, ()), *who)
            plan = optim.explicit(unfrozen)
            optim.check_plan(plan, depths)
            plan = optim.prune_plan(plan, depths, for_good)
        else:
            make = getattr(optim, c.unfreeze)
            if c.unfreeze_every is None:
                every = max(1, num_steps // (len(make(groups, 1)) + 1))
            else:
                every = steps("unfreeze_every", c.unfreeze_every)
            plan = make(groups, every)
    except ValueError as error:
        raise ValueError(f"config.optim.unfreeze={c.unfreeze!r}: {error}") from error
    if plan[-1].start >= num_steps:
        raise ValueError(
            f"config.optim.unfreeze={c.unfreeze!r} begins its last stage at update {plan[-1].start}, "
            f"but the run has {num_steps}; "
            + (
                "lengthen it, or freeze more for good"
                if c.unfreeze_every is None
                else f"shorten optim.unfreeze_every={c.unfreeze_every!r}, or leave it out to fit"
            )
        )
    return plan


def frozen_and_held(
    plan: optim.Plan, depths: dict[str, int], index: int
) -> tuple[frozenset[str], frozenset[str]]:
    """Paths that have not trained up to stage `index`, and those that pause in it."""
    if not plan:
        return frozenset(), frozenset()
    waiting = optim.frozen_in(plan, depths, index)
    frozen = frozenset(path for path, yes in waiting.items() if yes)
    now = plan[index].groups
    return frozen, frozenset(p for p, d in depths.items() if d not in now and p not in frozen)


def split_for(stage_frozen: frozenset[str], params: Any) -> tuple[Any, Any]:
    """(trainable, frozen) parts of a whole tree of parameters."""
    labels = optim.path_map(
        lambda path, _: optim.FROZEN if path in stage_frozen else optim.TRAIN, params
    )
    parts = optim.split(params, labels, names=(optim.TRAIN, optim.FROZEN))
    return parts[optim.TRAIN], parts[optim.FROZEN]


class Stages:
    """The stages of one run, in order; the loop asks for the one of each update.

    Args:
      stages: at least one; the first starts at 0.
    """

    def __init__(self, stages: Sequence[Stage], parallel: Parallel):
        self._stages, self._parallel = stages, parallel
        self._ahead: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._stages)

    def index(self, step: int) -> int:
        """Number of the stage that update `step` (0 is the first) belongs to."""
        return sum(stage.start <= step for stage in self._stages) - 1

    def at(self, step: int) -> Stage:
        """The stage that update `step` belongs to."""
        return self._stages[self.index(step)]

    def saved_at(self, step: int) -> Stage:
        """The stage whose state a checkpoint of `step` updates holds."""
        return self.at(max(step - 1, 0))

    def begins(self, step: int) -> bool:
        """Whether update `step` is the first of a later stage."""
        return step > 0 and self.at(step).start == step

    def describe(self, step: int) -> str:
        """What trains from update `step` on, for the log."""
        stage = self.at(step)
        paths = optim.by_path(stage.state.params)
        sizes = [math.prod(x.shape) for path, x in paths.items() if path not in stage.held]
        number = self.index(step) + 1
        return (
            f"stage {number} of {len(self)}: {len(sizes)} tensors, {sum(sizes):,} parameters train"
        )

    def compile(self, step: int, batches: Batches) -> None:
        """Compile what the updates from `step` on need: of its stage, the shapes of their batches."""
        self.wait()
        near = range(step, min(step + _NEAR, len(batches)))
        self._compile([self.at(step)], blank_batches(batches, self._parallel, near))

    def compile_ahead(self, step: int, batches: Batches) -> None:
        """Begin in the background on the rest of the stage of update `step`, and on the next stage.

        The rest are shapes that other seeds draw, for the cache, or this one draws later. XLA compiles
        without the interpreter's lock: the loop goes on meanwhile.
        """
        self.wait()
        index, blank = self.index(step), blank_batches(batches, self._parallel)
        work = functools.partial(self._compile, self._stages[index : index + 2], blank)
        self._ahead = threading.Thread(target=work, daemon=True)
        self._ahead.start()

    def wait(self) -> None:
        """Until nothing is being compiled in the background."""
        if self._ahead is not None:
            self._ahead.join()

    def advance(self, state: TrainState, step: int) -> TrainState:
        """The state for the stage that begins with update `step`: trained slots are kept as they are."""
        stage = self.at(step)
        whole = self._parallel.unreplicate(optim.merge(state.params, state.frozen))
        hparams = self._parallel.unreplicate(state.hparams)
        fresh = self._parallel.init(*split_for(stage.frozen, whole), hparams, stage.optimizer)
        slots = optim.grow(state.opt_state, fresh.opt_state)
        return dataclasses.replace(fresh, step=state.step, opt_state=slots)

    def _compile(self, stages: Sequence[Stage], blank: Sequence[dict[str, Any]]) -> None:
        for stage in stages:
            stage.program.compile((stage.state,), blank)
        release_free_memory()


def abstract_params(abstract: Any, shardings: Any) -> Any:
    """Shapes with their placement, for `Parallel.abstract`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        shardings,
    )
