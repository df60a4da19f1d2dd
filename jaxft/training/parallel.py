"""Where arrays live and how the pure step is compiled: `jit`, `jit` over a mesh, or `pmap`.

The mesh has the axes data, fsdp and tensor. The batch is cut over data x fsdp; a parameter by its
family's tensor rule and then over fsdp; an optimizer slot lives where its parameter lives.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxft.optim import match_rules
from jaxft.training.programs import Programs
from jaxft.training.step import Optimizer, TrainState, init_state

BATCH_AXES = ("data", "fsdp")
PMAP_AXIS = "devices"
# Cutting a small parameter costs a gather at each use and saves nothing: 2**16 elements = 256 KiB.
MIN_FSDP_SIZE = 2**16


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A way to compile and place. Build it with `make_parallel`.

    Attributes:
      mode: 'jit' (one device), 'shard' (jit over `mesh`) or 'pmap' (all local devices, replicated).
      mesh: axes data, fsdp, tensor under 'shard'; the local devices under 'pmap'; None under 'jit'.
      shards: equal parts that the global batch is cut into, over all processes.
      device: what has all that no mesh places; None: the first of this process.
    """

    mode: str
    mesh: Mesh | None
    shards: int
    device: jax.Device | None = None

    @property
    def axis_name(self) -> str | None:
        """What the step must sum over by hand: only pmap has one."""
        return PMAP_AXIS if self.mode == "pmap" else None

    @property
    def summary(self) -> str:
        """One line for the terminal."""
        kind = self._one.device_kind
        if self.mode == "shard" and self.mesh is not None:
            axes = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
            return f"jit over {self.mesh.size} {kind} devices ({axes})"
        return f"{self.mode} on {self.shards} {kind} device{'s' if self.shards > 1 else ''}"

    def shardings(self, specs: Any) -> Any:
        """A Sharding for every PartitionSpec of a tree; see `param_specs`. Only a mesh can cut."""
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
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

    def abstract_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and placement of what `put` makes of a batch: enough to compile for."""
        n = jax.local_device_count()

        def abstract(x: np.ndarray) -> jax.ShapeDtypeStruct:
            rows, *rest = x.shape
            first = (n, rows // n) if self.mode == "pmap" else (rows * jax.process_count(),)
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


def param_specs(
    abstract: Any, rules: Sequence[tuple[str, PartitionSpec]], *, fsdp: int, tensor: int
) -> Any:
    """How each parameter is cut: by its rule over 'tensor', then a free dimension over 'fsdp'.

    A function of shapes and sizes: no device is asked.

    Args:
      abstract: a tree of things with `.shape`.
      rules: (path pattern, spec over 'tensor'); what none matches is cut over fsdp alone.
      fsdp, tensor: sizes of the mesh; an axis of one device cuts nothing.

    Returns:
      A tree of PartitionSpec with one entry a dimension.
    """
    chosen = match_rules(rules, abstract, default=PartitionSpec(), must_match=False)
    return jax.tree.map(
        lambda leaf, rule: _spec(leaf.shape, rule, fsdp=fsdp, tensor=tensor), abstract, chosen
    )


def make_parallel(
    mode: str,
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Devices of this run, over all processes.

    Args:
      mode: 'jit', 'shard', 'pmap', or 'auto' (jit on one device, shard on more).
      data, fsdp, tensor: mesh sizes; data = -1 takes the devices that are left.
      devices: of a machine that is not here, to compile for under 'jit' or 'shard'; None: those that are.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or tensor spans processes.
    """
    given, there = devices, jax.devices() if devices is None else devices
    # By process: each one's part of the batch is then contiguous, in the order of their numbers.
    devices = sorted(there, key=lambda d: (d.process_index, d.id))
    processes = len({d.process_index for d in devices})
    if mode == "auto":
        mode = "jit" if len(devices) == 1 and fsdp == tensor == 1 else "shard"
    if mode != "shard" and (fsdp > 1 or tensor > 1):
        raise ValueError(
            f"parallel.fsdp={fsdp} and parallel.tensor={tensor} need parallel.mode='shard', not {mode!r}"
        )
    if mode == "jit":
        if processes > 1:
            raise ValueError(
                "parallel.mode='jit' uses one device; with several processes use 'shard'"
            )
        return Parallel("jit", None, 1, None if given is None else devices[0])
    if mode == "pmap":
        if given is not None:
            raise ValueError("parallel.mode='pmap' compiles for devices that are here; use 'shard'")
        mesh = Mesh(np.array(jax.local_devices()), (PMAP_AXIS,))
        return Parallel("pmap", mesh, len(devices))
    sizes = [len(devices) // (fsdp * tensor) if data == -1 else data, fsdp, tensor]
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"parallel.data={data}, fsdp={fsdp}, tensor={tensor} do not multiply to the "
            f"{len(devices)} devices that are here"
        )
    local = len(devices) // processes
    if local % tensor:
        raise ValueError(
            f"parallel.tensor={tensor} does not divide the {local} devices of a process: devices "
            "that share a tensor must be in one process"
        )
    # Auto axes: the compiler lays out what lies between; Explicit ones need annotations in the model.
    mesh = Mesh(
        np.array(devices).reshape(sizes), (*BATCH_AXES, "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    return Parallel("shard", mesh, sizes[0] * sizes[1], None if given is None else devices[0])


def gathered(x: jax.Array) -> Any:
    """The whole array, readable in this process; all must call."""
    if x.is_fully_addressable:
        return x
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


def _spec(shape: tuple[int, ...], rule: PartitionSpec, *, fsdp: int, tensor: int) -> PartitionSpec:
    """`rule` with fsdp on the largest free dimension that it divides."""
    axes = [*rule, *[None] * (len(shape) - len(rule))]
    for i, axis in enumerate(axes):
        if axis is not None and shape[i] % tensor:
            axes[i] = None  # e.g. 3 labels over 2 devices: kept whole
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % fsdp == 0]
    if fsdp > 1 and free and int(np.prod(shape)) >= MIN_FSDP_SIZE:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*(None if axis == "tensor" and tensor == 1 else axis for axis in axes))


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
