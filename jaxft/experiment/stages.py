"""The stages of a run: which parameters train from which update on, each with its own program.

A run without gradual unfreezing has one stage. At a change of stage the trainable tree grows, what
trained before keeps its slots bit for bit, and the next program has been compiled in the meantime.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxft import optim
from jaxft.experiment.compilation import batch_shapes, release_free_memory
from jaxft.experiment.stacking import stacked, unstacked
from jaxft.experiment.streaming import TrainBatches
from jaxft.models.stacking import NOTHING, STACKED, Layout
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs
from jaxft.training.step import Optimizer, TrainState

_MOVING = "moving"
_NEAR = 256  # updates whose batches are looked at for the shapes to compile first: 0.3 ms each


@dataclasses.dataclass(frozen=True)
class Stage:
    """From update `start` (0 is the first) to the next stage's start.

    Attributes:
      frozen: paths that have not changed so far, batch statistics too: no gradient, no slot, not in
        checkpoints.
      held: paths that trained earlier and pause now.
      moving: paths of batch statistics that move in this stage or did in an earlier one.
      state: shapes and placement of the state in this stage.
      step: the update of this stage, `(state, batch) -> (state, metrics)`.
      program: the same, compiled.
      layout: how its state is stacked. `frozen`, `held` and `moving` are paths of what is not.
    """

    start: int
    frozen: frozenset[str]
    held: frozenset[str]
    moving: frozenset[str]
    optimizer: Optimizer
    state: TrainState
    step: Callable[..., Any]
    program: Programs
    layout: Layout = NOTHING

    def begin(self, whole: Any, hparams: Any, parallel: Parallel) -> TrainState:
        """A state with the structure of this stage and fresh slots; `whole` and `hparams` come placed."""
        params, frozen, stats = stacked(self.layout, split_for(self.frozen, self.moving, whole))
        return parallel.init(params, frozen, hparams, self.optimizer, stats)

    def plain(self, state: TrainState, parallel: Parallel, *, frozen: bool = True) -> TrainState:
        """The same state (or its shapes) with every leaf at its own path, as checkpoints have it.

        Args:
          frozen: False leaves what is frozen as it is, which checkpoints do not hold.
        """
        if not self.layout:
            return state
        given = (state.params, state.opt_state, state.stats, state.frozen if frozen else None)
        params, slots, stats, still = unstacked(self.layout, given, _axis(parallel))
        still = still if frozen else state.frozen
        return dataclasses.replace(state, params=params, frozen=still, opt_state=slots, stats=stats)

    def taken(self, state: TrainState, plain: TrainState, parallel: Parallel) -> TrainState:
        """`state` with the step, parameters, slots and statistics of a plain one, which are used up."""
        given = (plain.params, plain.opt_state, plain.stats)
        params, slots, stats = stacked(self.layout, given, _axis(parallel), taken=True)
        return dataclasses.replace(
            state, step=plain.step, params=params, opt_state=slots, stats=stats
        )


def _axis(parallel: Parallel) -> int:
    """Along which blocks are stacked in a state."""
    return int(parallel.mode == "pmap")


def split_for(frozen: frozenset[str], moving: frozenset[str], whole: Any) -> tuple[Any, Any, Any]:
    """(trainable, frozen, batch statistics that move, or None) of a model's tree."""

    def label(path: str, _: Any) -> str:
        if path in moving:
            return _MOVING
        return optim.FROZEN if path in frozen else optim.TRAIN

    names = (optim.TRAIN, optim.FROZEN, _MOVING)
    parts = optim.split(whole, optim.path_map(label, whole), names=names)
    return parts[optim.TRAIN], parts[optim.FROZEN], parts[_MOVING] if moving else None


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

    @property
    def programs(self) -> list[Programs]:
        """One a stage."""
        return [stage.program for stage in self._stages]

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
        paths = optim.by_path(stage.plain(stage.state, self._parallel).params)
        sizes = [math.prod(x.shape) for path, x in paths.items() if path not in stage.held]
        number = self.index(step) + 1
        return (
            f"stage {number} of {len(self)}: {len(sizes)} tensors, {sum(sizes):,} parameters train"
        )

    def compile(self, step: int, batches: TrainBatches) -> None:
        """Compile what the updates from `step` on need: of its stage, the shapes of their batches."""
        self.wait()
        near = range(step, min(step + _NEAR, self._end(self.index(step), len(batches))))
        shapes = batch_shapes(batches, self._parallel, near, at=step)
        self._compile([(self.at(step), shapes)])

    def compile_ahead(self, step: int, batches: TrainBatches) -> None:
        """Begin in the background on the rest of the stage of update `step`, and on the next stage.

        The rest are shapes that other seeds draw, for the cache, or this one draws later. XLA compiles
        without the interpreter's lock: the loop goes on meanwhile. Nothing happens where all are there.
        """
        self.wait()
        left = []
        for stage in self._stages[(index := self.index(step)) : index + 2]:
            shapes = batch_shapes(batches, self._parallel, at=max(step, stage.start))
            left += [(stage, shapes)] if stage.program.lacks(shapes) else []
        if not left:
            return
        self._ahead = threading.Thread(target=self._compile, args=(left,), daemon=True)
        self._ahead.start()

    def wait(self) -> None:
        """Until nothing is being compiled in the background."""
        if self._ahead is not None:
            self._ahead.join()

    def advance(self, state: TrainState, step: int) -> TrainState:
        """The state for the stage that begins with update `step`: trained slots are kept as they are."""
        stage, before = self.at(step), self.plain(state)
        whole, hparams = self._parallel.unreplicate((before.whole, state.hparams))
        fresh = stage.begin(whole, hparams, self._parallel)
        after = stage.plain(fresh, self._parallel, frozen=False)
        slots = optim.grow(before.opt_state, after.opt_state)
        return stage.taken(
            fresh, dataclasses.replace(after, step=state.step, opt_state=slots), self._parallel
        )

    def plain(self, state: TrainState, *, frozen: bool = True) -> TrainState:
        """A state of any stage with every leaf at its own path, see `Stage.plain`."""
        if STACKED not in state.params:
            return state
        names = state.params[STACKED].keys()
        stage = next(
            one for one in self._stages if names == {group.name for group in one.layout.groups}
        )
        return stage.plain(state, self._parallel, frozen=frozen)

    def restored(
        self, state: TrainState, step: int, restore: Callable[[TrainState], tuple[TrainState, Any]]
    ) -> tuple[TrainState, Any]:
        """The state of a checkpoint of `step` updates, and what comes with it.

        Args:
          state: of that stage.
          restore: fills a plain state, of which only shapes and places matter.
        """
        stage = self.saved_at(step)
        if not stage.layout:
            return restore(state)
        plain, rest = restore(stage.plain(stage.state, self._parallel))
        return stage.taken(state, plain, self._parallel), rest

    def _end(self, index: int, last: int) -> int:
        """The first update of the next stage; of the last stage `last`."""
        return self._stages[index + 1].start if index + 1 < len(self._stages) else last

    def _compile(self, ahead: Sequence[tuple[Stage, Sequence[dict[str, Any]]]]) -> None:
        for stage, shapes in ahead:
            stage.program.compile((stage.state,), shapes)
        release_free_memory()


def abstract_params(abstract: Any, shardings: Any) -> Any:
    """Shapes with their placement, for `Parallel.abstract`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        shardings,
    )
