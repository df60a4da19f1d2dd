"""Which weights of a state are evaluated and exported: the last ones, their average, or a mixture.

Everything that measures or exports asks here, so what is measured is what is exported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Protocol

from jaxft.config import ConfigDict
from jaxft.experiment.build import read_params
from jaxft.experiment.ideas import IDEAS
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.stages import Stages, split_for
from jaxft.training.parallel import Parallel
from jaxft.training.reader import CheckpointReader
from jaxft.training.step import TrainState


class Origin(Protocol):
    """What a state is made whole with: a `Run`, or a `SavedRun`, which has no data."""

    @property
    def prepared(self) -> Prepared: ...
    @property
    def parallel(self) -> Parallel: ...
    @property
    def stages(self) -> Stages: ...
    @property
    def initialised(self) -> tuple[str, ...]: ...


@dataclasses.dataclass(frozen=True)
class _Weighed:
    """See `ideas.idea.Weighed`."""

    run: Origin
    state: TrainState
    read: Any  # the source's tree, where the caller has it

    @property
    def parallel(self) -> Parallel:
        return self.run.parallel

    @property
    def initialised(self) -> tuple[str, ...]:
        return self.run.initialised

    def source(self) -> Any:
        return read_params(self.run.prepared, self.parallel)[0] if self.read is None else self.read


def weights_of(run: Origin, state: TrainState, source: Any = None) -> Any:
    """The whole tree that stands for `state`, placed (replicated under pmap).

    Args:
      source: what `read_params` gives, where the caller has it; None reads it if it is needed.
    """
    c = run.prepared.config.optim
    state = run.stages.plain(state)
    weighed, whole = _Weighed(run, state, source), state.whole
    for idea in IDEAS:
        if idea.weights is not None and idea.asked(c):
            whole = idea.weights(c, weighed, whole)
    return whole


def changes_weights(config: ConfigDict) -> bool:
    """Whether others than those of the state count."""
    return any(idea.weights is not None and idea.asked(config.optim) for idea in IDEAS)


def what_counts(config: ConfigDict) -> str:
    """One line for the terminal; empty when it is the last weights, as usual."""
    c, parts = config.optim, list[str]()
    for idea in IDEAS:
        if idea.asked(c) and (words := idea.says(c, "that" if parts else "the trained weights")):
            parts.append(words)
    return f"evaluated and exported: {', '.join(parts)}" if parts else ""


def best_weights(
    run: Origin, checkpoints: CheckpointReader, step: int, leave: Collection[str] = ()
) -> Any:
    """The same for the checkpoint of `step` updates.

    What the checkpoint does not hold is the source's, not a later state's: it was frozen then, and may have
    trained since.

    Args:
      leave: paths of what is frozen that the caller does not need: left as shapes, if no idea needs them. Not
        under pmap.

    Raises:
      ValueError: the checkpoint is damaged, or CheckpointGone.
    """
    stage, parallel = run.stages.saved_at(step), run.parallel
    config, source = run.prepared.config, None
    if any(idea.slots for idea in IDEAS if idea.asked(config.optim)):
        source, _ = read_params(run.prepared, parallel)
        empty = stage.begin(source, run.prepared.inputs(), parallel)
        state, _ = checkpoints.restore(step, stage.plain(empty, parallel))
        return weights_of(run, state, source)
    # Without the slots, which weigh twice as much as the parameters; and where the source is not mixed with
    # them, of that only what the checkpoint does not hold.
    if changes_weights(config):
        whole = source = read_params(run.prepared, parallel)[0]
    else:
        whole, _ = read_params(run.prepared, parallel, stage.frozen - stage.moving - {*leave})
    params, frozen, stats = split_for(stage.frozen, stage.moving, whole)
    params = checkpoints.restore_params(step, params)
    stats = checkpoints.restore_stats(step, stats)
    frozen = parallel.replicate(frozen)
    state = TrainState(step, params, frozen, None, None, stats)  # type: ignore[arg-type]
    return weights_of(run, state, source)
