"""One update of many trials as one program: the step, mapped over a leading axis of what differs.

Trials share the frozen parameters and either share the batch or have their own. What they have apart
(trainable parameters, slots, moving statistics, the step, the root key and every number of the optimizer)
has a leading axis of trials; what they share has none, so nothing of it is computed or kept twice: of
shared batches, the frozen blocks that come first are computed once for all trials.

The axis may lie over devices: each then has its trials and a copy of what is shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxft.optim import merge, path_map
from jaxft.training.programs import Programs
from jaxft.training.step import TrainState

AXIS = "trial"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trials:
    """K states in one.

    Attributes:
      own: what differs, each leaf [K, ...]; of `frozen`, leaves that trials were begun with apart.
      live: [K] bool: the others stay as they are, bit for bit, whatever is computed for them.
    """

    own: TrainState
    live: jax.Array

    @property
    def count(self) -> int:
        """K."""
        return self.live.shape[0]

    @property
    def whole(self) -> Any:
        """The leaves [K, ...] of the model's tree that differ, None where one is shared."""
        own = self.own
        parts = (
            (own.params, own.frozen) if own.stats is None else (own.params, own.frozen, own.stats)
        )
        return merge(*parts)


@dataclasses.dataclass(frozen=True)
class TrialAxis:
    """Where trials lie: on one device, or over all of `mesh`, whose one axis is that of trials."""

    mesh: Mesh | None = None

    @property
    def size(self) -> int:
        """Devices; the number of trials is a multiple of it."""
        return 1 if self.mesh is None else self.mesh.size

    def place(self, tree: Any) -> Any:
        """Leaves [K, ...], cut."""
        return jax.device_put(tree, self._cut)

    def everywhere(self, tree: Any) -> Any:
        """What all trials share, a copy on each device."""
        return jax.device_put(tree, self._whole)

    def put(self, batch: Mapping[str, np.ndarray], *, own: bool) -> dict[str, jax.Array]:
        """A batch onto the devices. own: its arrays are [K, ...], one a trial."""
        return jax.device_put(dict(batch), self._cut if own else self._whole)

    def abstract(self, tree: Any, *, own: bool) -> Any:
        """Shapes and places of what `put` gives, or `place` and `everywhere`."""
        sharding = self._cut if own else self._whole

        def leaf(x: Any) -> jax.ShapeDtypeStruct:
            dtype = jax.dtypes.canonicalize_dtype(x.dtype)
            return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)

        return jax.tree.map(leaf, tree)

    def compile_train(self, step: Callable[..., Any], *, own_batches: bool) -> Programs:
        """`(trials, shared, batch) -> (trials, metrics)` of a step `(state, batch)`; see `trials_step`.

        The trials are donated; metrics are [K], the same on every device.
        """
        mapped = trials_step(step, own_batches=own_batches)
        if self.mesh is None:
            return Programs(jax.jit(mapped, donate_argnums=0))
        places = (self._cut, self._whole)
        return Programs(jax.jit(mapped, donate_argnums=0, out_shardings=places))

    def compile_eval(self, step: Callable[..., Any]) -> Programs:
        """`(leaves [K, ...] that differ, shared, batch) -> arrays [K, ...]` of `(whole, batch) -> arrays`.

        All trials see the same batch.
        """

        def mapped(own: Any, shared: Any, batch: Any) -> Any:
            return jax.vmap(lambda own: step(merge(own, shared), batch))(own)

        if self.mesh is None:
            return Programs(jax.jit(mapped))
        return Programs(jax.jit(mapped, out_shardings=self._whole))

    @property
    def _cut(self) -> Any:
        return self._over(PartitionSpec(AXIS))

    @property
    def _whole(self) -> Any:
        return self._over(PartitionSpec())

    def _over(self, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(self.mesh, spec)


def trial_axis(devices: int | None = None) -> TrialAxis:
    """Over so many of this process's devices; None: over all of them."""
    here = jax.local_devices()[:devices]
    return TrialAxis(None if len(here) == 1 else Mesh(np.array(here), (AXIS,)))


def trials_step(step: Callable[..., Any], *, own_batches: bool) -> Callable[..., Any]:
    """`(trials, shared, batch) -> (trials, metrics [K])` of a pure step `(state, batch)`.

    Args:
      own_batches: the arrays of a batch are [K, ...]; else all trials see the same.
    """

    def one(own: TrainState, shared: Any, batch: Any) -> tuple[TrainState, Any]:
        state = dataclasses.replace(own, frozen=merge(own.frozen, shared))
        state, metrics = step(state, batch)
        return dataclasses.replace(state, frozen=own.frozen), metrics

    mapped = jax.vmap(one, in_axes=(0, None, 0 if own_batches else None))

    def all_of_them(trials: Trials, shared: Any, batch: Any) -> tuple[Trials, Any]:
        after, metrics = mapped(trials.own, shared, batch)

        def moved(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(trials.live.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return dataclasses.replace(trials, own=jax.tree.map(moved, after, trials.own)), metrics

    return all_of_them


def stack_states(
    states: Sequence[TrainState], apart: Collection[str], axis: TrialAxis, count: int | None = None
) -> tuple[Trials, Any]:
    """(trials, shared) of states of one structure, which may share their arrays and are left as they are.

    Args:
      apart: paths of frozen leaves that are not the same in all of them.
      count: K; places beyond the states hold copies of the first that are not live. None: as many as
        there are, rounded up to what the axis can cut.
    """
    count = -(-len(states) // axis.size) * axis.size if count is None else count
    trials, shared = _stacked(states, apart, count, axis.place)
    return trials, axis.everywhere(shared)


def _stacked(
    states: Sequence[TrainState], apart: Collection[str], count: int, place: Callable[[Any], Any]
) -> tuple[Trials, Any]:
    first = states[0]

    def held(path: str, x: Any) -> Any:
        return x if path in apart else None

    shared = path_map(lambda path, x: None if path in apart else x, first.frozen)
    owns = [dataclasses.replace(s, frozen=path_map(held, s.frozen)) for s in states]
    owns += [owns[0]] * (count - len(states))
    own = jax.tree.map(lambda *leaves: place(jnp.stack(leaves)), *owns)
    return Trials(own, place(jnp.arange(count) < len(states))), shared


def abstract_trials(
    state: TrainState, apart: Collection[str], axis: TrialAxis, count: int
) -> tuple[Trials, Any]:
    """Shapes and places of what `stack_states` gives of so many states like this one."""
    trials, shared = jax.eval_shape(
        lambda state: _stacked([state] * count, apart, count, lambda tree: tree), state
    )
    return axis.abstract(trials, own=True), axis.abstract(shared, own=False)


def take_trials(trials: Trials, numbers: Sequence[int], axis: TrialAxis) -> Trials:
    """Those of these places, in this order; -1: a copy of the first of them that is not live."""
    index = np.array([number if number >= 0 else numbers[0] for number in numbers])
    live = np.asarray(trials.live)[index] & (np.array(numbers) >= 0)
    own = jax.tree.map(lambda x: axis.place(jnp.take(x, index, axis=0)), trials.own)
    return Trials(own, axis.place(live))


def stopped_trials(trials: Trials, numbers: Sequence[int], axis: TrialAxis) -> Trials:
    """The same, where those of these places do not move any more."""
    live = np.array(trials.live)
    live[list(numbers)] = False
    return dataclasses.replace(trials, live=axis.place(live))


def state_of(trials: Trials, shared: Any, number: int) -> TrainState:
    """The state of one trial, as a run has it."""
    own = jax.tree.map(lambda x: x[number], trials.own)
    return dataclasses.replace(own, frozen=merge(own.frozen, shared))
