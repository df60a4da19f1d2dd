"""Which weights of a state are evaluated and exported: the last ones, their average, or a mixture.

Everything that measures or exports asks here, so what is measured is what is exported.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np

from jaxft import optim
from jaxft.config import ConfigDict
from jaxft.run.build import Prepared, inputs_of, read_params
from jaxft.run.stages import Stages, split_for
from jaxft.training.parallel import Parallel
from jaxft.training.reader import CheckpointReader
from jaxft.training.step import TrainState

# Under pmap, for each copy. Made once: jit finds its program again by the function.
_schedule_free_copies = jax.vmap(optim.schedule_free_params)


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


def weights_of(run: Origin, state: TrainState, source: Any = None) -> Any:
    """The whole tree that stands for `state`, placed (replicated under pmap).

    Schedule-free and averaged weights come from the optimizer's slots. With `optim.wise_ft` they are
    mixed with the source's: one more copy of the model while this lasts.

    Args:
      source: what `read_params` gives, where the caller has it; None reads it if it is needed.
    """
    config, whole = run.prepared.config.optim, optim.merge(state.params, state.frozen)
    places = jax.tree.map(lambda x: x.sharding, whole)
    if config.average != "none":
        whole = optim.averaged(state.opt_state, whole)
    if config.schedule_free:
        pmapped = run.parallel.mode == "pmap"
        evaluated = _schedule_free_copies if pmapped else optim.schedule_free_params
        whole = jax.jit(evaluated, out_shardings=places)(state.opt_state, whole)
    if config.wise_ft is not None:
        source = read_params(run.prepared, run.parallel)[0] if source is None else source
        mix = jax.jit(optim.wise_ft, out_shardings=places)
        mixed = mix(run.parallel.replicate(source), whole, np.float32(config.wise_ft))
        # A new head has nothing pretrained to be mixed with, and what never trained keeps its bits.
        kept = {*run.initialised, *optim.by_path(state.frozen)}
        trained = optim.by_path(whole)
        whole = optim.path_map(lambda path, x: trained[path] if path in kept else x, mixed)
    return whole


def what_counts(config: ConfigDict) -> str:
    """One line for the terminal; empty when it is the last weights, as usual."""
    c, parts = config.optim, []
    if c.average == "ema":
        parts.append(f"the moving average of the weights (decay {c.average_decay:g})")
    if c.average == "swa":
        parts.append(f"the mean of the weights from {c.average_from} on")
    if c.schedule_free:
        parts.append("the schedule-free average of the weights")
    if c.wise_ft is not None:
        trained = "that" if parts else "the trained weights"
        parts.append(
            f"{c.wise_ft:.0%} of {trained} and {1 - c.wise_ft:.0%} of the pretrained weights"
        )
    return f"evaluated and exported: {', '.join(parts)}" if parts else ""


def best_weights(run: Origin, checkpoints: CheckpointReader, step: int, source: Any = None) -> Any:
    """The same for the checkpoint of `step` updates.

    Args:
      source: as in `weights_of`. The source and not a later state: what the checkpoint does not hold
        was frozen then, and may have trained since.

    Raises:
      ValueError: the checkpoint is damaged, or CheckpointGone.
    """
    stage, parallel = run.stages.saved_at(step), run.parallel
    source = read_params(run.prepared, parallel)[0] if source is None else source
    params, frozen = split_for(stage.frozen, source)
    config = run.prepared.config.optim
    if config.average != "none" or config.schedule_free:
        empty = parallel.init(params, frozen, inputs_of(run.prepared), stage.optimizer)
        state, _ = checkpoints.restore(step, empty)
    else:  # without the slots, which weigh twice as much as the parameters
        params, frozen = parallel.replicate((params, frozen))
        params = checkpoints.restore_params(step, params)
        state = TrainState(step, params, frozen, None, None)  # type: ignore[arg-type]
    return weights_of(run, state, source)
