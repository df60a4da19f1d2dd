"""Where arrays live and how the pure step is compiled: `jit`, `jit` over a mesh, or `pmap`.

The mesh has the axes data, fsdp, context and tensor (`mesh.py`). The batch is cut over data x fsdp, and
in the step over context; a parameter as `cuts.py` says; an optimizer slot lives where its parameter lives.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxft.training.programs import Programs
from jaxft.training.step import Optimizer, TrainState, init_state

BATCH_AXES = ("data", "fsdp")
PMAP_AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A way to compile and place. Build it with `mesh.make_parallel`.

    Attributes:
      mode: 'jit' (one device), 'shard' (jit over `mesh`) or 'pmap' (all local devices, replicated).
      mesh: axes data, fsdp, context, tensor under 'shard'; the local devices under 'pmap'; None under 'jit'.
      shards: equal parts that the global batch is cut into, over all processes.
      device: what has all that no mesh places; None: the first of this process.
      sharers: processes that have the same rows, as their devices share these over the context axis.
    """

    mode: str
    mesh: Mesh | None
    shards: int
    device: jax.Device | None = None
    sharers: int = 1

    @property
    def axis_name(self) -> str | None:
        """What the step must sum over by hand: only pmap has one."""
        return PMAP_AXIS if self.mode == "pmap" else None

    @property
    def reader(self) -> tuple[int, int]:
        """(number, count) of this process among those that read different rows."""
        return jax.process_index() // self.sharers, jax.process_count() // self.sharers

    @property
    def platform(self) -> str:
        """Of its devices: 'cpu', 'gpu' or 'tpu'."""
        return (self._one if self.mesh is None else self.mesh.devices.flat[0]).platform

    @property
    def summary(self) -> str:
        """One line for the terminal."""
        kind = self._one.device_kind
        if self.mode == "shard" and self.mesh is not None:
            axes = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
            return f"jit over {self.mesh.size} {kind} devices ({axes})"
        return f"{self.mode} on {self.shards} {kind} device{'s' if self.shards > 1 else ''}"

    def shardings(self, specs: Any) -> Any:
        """A Sharding for every PartitionSpec of a tree; see `specs.param_specs`. Only a mesh can cut."""
        if self.mode == "shard" and self.mesh is not None:
            place = functools.partial(NamedSharding, self.mesh)
            return jax.tree.map(place, specs, is_leaf=_is_spec)
        # pmap, too, reads to one device first: `replicate` then copies to the others.
        here = SingleDeviceSharding(self._one)
        return jax.tree.map(lambda _: here, specs, is_leaf=_is_spec)

    def init(
        self, params: Any, frozen: Any, hparams: Any, optimizer: Optimizer, stats: Any = None
    ) -> TrainState:
        """State before the first update, placed. `params`, `frozen`, `stats` come placed (see above)."""
        whole = functools.partial(init_state, optimizer=optimizer)
        if self.mode == "pmap":
            return self.replicate(whole(params, frozen, hparams, stats))
        places = jax.tree.map(
            lambda x: x.sharding, self.abstract(params, frozen, hparams, optimizer, stats)
        )
        hparams = jax.tree.map(_place, hparams, places.hparams)
        init = jax.jit(
            lambda params, numbers: optimizer(numbers).init(params), out_shardings=places.opt_state
        )
        slots = init(params, hparams["optimizer"])
        step = _place(np.int32(0), places.step)
        return TrainState(step, params, frozen, slots, hparams, stats)

    def abstract(
        self, params: Any, frozen: Any, hparams: Any, optimizer: Optimizer, stats: Any = None
    ) -> TrainState:
        """Shapes and placement of what `init` returns: enough to compile for.

        `params`, `frozen` and `stats` may themselves be ShapeDtypeStructs with a sharding.
        """
        whole = functools.partial(init_state, optimizer=optimizer)
        state = jax.eval_shape(whole, params, frozen, hparams, stats)
        if self.mode == "pmap" and self.mesh is not None:
            stacked, n = NamedSharding(self.mesh, PartitionSpec(PMAP_AXIS)), self.mesh.size
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype, sharding=stacked), state
            )
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            state,
            self._state_shardings(state, params, frozen, stats),
        )

    def replicate(self, tree: Any) -> Any:
        """Under pmap a copy on each local device, stacked on a new leading axis; else unchanged."""
        if self.mode != "pmap" or self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec(PMAP_AXIS))
        copies = self.mesh.size

        # One program for the whole tree: leaf by leaf, each shape would be compiled on its own.
        def stack(leaves: Any) -> Any:
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *jnp.shape(x))), leaves)

        return jax.jit(stack, out_shardings=sharding)(jax.tree.map(np.asarray, tree))

    def unreplicate(self, tree: Any) -> Any:
        """The inverse of `replicate`."""
        if self.mode != "pmap":
            return tree
        # addressable_data is 20 times faster than x[0], which would compile a slice for every shape.
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)

    def whole(self, x: jax.Array) -> jax.Array:
        """One leaf of a placed tree, for numpy to read in this process; all must call.

        The caller lets it go with what numpy makes of it: `x` keeps no copy on the host.
        """
        return gathered(self.unreplicate(x))

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a global batch, onto its devices."""
        sharding = self._batch_sharding
        if self.mode == "jit":
            return jax.device_put(batch, sharding)
        if self.mode == "pmap":
            n = jax.local_device_count()
            cut = {k: v.reshape(n, v.shape[0] // n, *v.shape[1:]) for k, v in batch.items()}
            return jax.device_put(cut, sharding)
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        _, readers = self.reader
        return {
            k: jax.make_array_from_process_local_data(sharding, v, (len(v) * readers, *v.shape[1:]))
            for k, v in batch.items()
        }

    def abstract_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and placement of what `put` makes of a batch: enough to compile for."""
        n = jax.local_device_count()

        def abstract(x: np.ndarray) -> jax.ShapeDtypeStruct:
            rows, *rest = x.shape
            first = (n, rows // n) if self.mode == "pmap" else (rows * self.reader[1],)
            dtype = jax.dtypes.canonicalize_dtype(x.dtype)
            return jax.ShapeDtypeStruct((*first, *rest), dtype, sharding=self._batch_sharding)

        return {name: abstract(x) for name, x in batch.items()}

    def compile_train(self, step: Callable[..., Any], state: TrainState) -> Programs:
        """`step(state, batch) -> (state, metrics)`, donating the state."""
        if self.mode == "pmap":
            pmapped = jax.pmap(step, axis_name=PMAP_AXIS, donate_argnums=0)
            return Programs(pmapped, ahead=jax.process_count() == 1)
        if self.mode == "jit":
            return Programs(jax.jit(step, donate_argnums=0))
        shardings = jax.tree.map(lambda x: x.sharding, state)
        # Without out_shardings the compiler may return a sharded parameter's update replicated.
        step = self._in_mesh(step)
        return Programs(
            jax.jit(step, donate_argnums=0, out_shardings=(shardings, self._everywhere))
        )

    def compile_eval(self, step: Callable[..., Any]) -> Programs:
        """`step(params, batch) -> arrays` that every process can read whole."""
        if self.mode == "pmap":
            pmapped = jax.pmap(step, axis_name=PMAP_AXIS)
            return Programs(pmapped, ahead=jax.process_count() == 1)
        if self.mode == "jit":
            return Programs(jax.jit(step))
        return Programs(jax.jit(self._in_mesh(step), out_shardings=self._everywhere))

    def _in_mesh(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same, traced with the mesh in context: what compacts tokens does so on each device."""
        assert self.mesh is not None
        mesh = self.mesh.abstract_mesh

        def traced(*given: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh):
                return step(*given)

        return traced

    @property
    def _batch_sharding(self) -> NamedSharding | SingleDeviceSharding:
        if self.mesh is None:
            return SingleDeviceSharding(self._one)
        axes = PMAP_AXIS if self.mode == "pmap" else BATCH_AXES
        return NamedSharding(self.mesh, PartitionSpec(axes))

    @property
    def _one(self) -> jax.Device:
        return jax.local_devices()[0] if self.device is None else self.device

    @property
    def _everywhere(self) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec())

    def _state_shardings(
        self, state: TrainState, params: Any, frozen: Any, stats: Any
    ) -> TrainState:
        """The parameters' own, the same for slots of their shape; one copy a device for the rest.

        The rest are scalars and factored slots (Adafactor's rows and columns): a spec of the
        parameter would have more dimensions than they, and they are small.
        """
        mesh = self.mode == "shard"
        rest = self._everywhere if mesh else SingleDeviceSharding(self._one)
        by_path = dict(jax.tree_util.tree_leaves_with_path(params))

        def slot(path: tuple, leaf: Any) -> Any:
            # A slot tree (Adam's mu) repeats the parameter tree below its own prefix.
            ends = (path[i:] for i in range(len(path)))
            param = next((by_path[end] for end in ends if end in by_path), None)
            return rest if param is None or param.shape != leaf.shape else param.sharding

        def own(x: Any) -> Any:
            return x.sharding

        slots = jax.tree_util.tree_map_with_path(slot, state.opt_state)
        hparams = jax.tree.map(lambda _: rest, state.hparams)
        return TrainState(
            rest,  # type: ignore[arg-type]
            jax.tree.map(own, params),
            jax.tree.map(own, frozen),
            slots,
            hparams,
            jax.tree.map(own, stats),
        )


def gathered(x: jax.Array) -> Any:
    """The whole array, readable in this process; all must call."""
    if x.is_fully_addressable:
        # Another array of the same buffers: one keeps what numpy reads of it, as long as it lives.
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)
    if x.is_fully_replicated:
        return x.addressable_data(0)
    return multihost_utils.process_allgather(x, tiled=True)


def _place(value: Any, sharding: Any) -> jax.Array:
    """A host value, the same in every process, onto the devices.

    Not by device_put: between processes that compares the value, a collective, and one may have failed.
    Nor by a jitted constant, for which each value would be compiled anew.
    """
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
