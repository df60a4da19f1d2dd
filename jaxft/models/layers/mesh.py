"""What the mesh in context (`jax.sharding.use_abstract_mesh`) means for arrays inside of a model.

Left to itself, the compiler carries the cuts of parameters on to activations: those of a BERT's last block,
of few tokens, were cut by width and sent around at each operation. What is said here is all it needs.
Without a mesh, and inside of `shard_map`, everything is the identity.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxft.models import cuts
from jaxft.models.tree import Params, by_path

ROWS = ("data", "fsdp")  # the axes that cut the first axis of a batch
TENSOR, FSDP = cuts.TENSOR, cuts.FSDP


def sizes() -> dict[str, int]:
    """The axes of more than one device that the compiler lays out."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return {
        name: size for name, size in mesh.shape.items() if size > 1 and kinds[name] == AxisType.Auto
    }


def divides(parts: int) -> bool:
    """Whether there is a tensor axis and it divides that many heads."""
    tensor = sizes().get(TENSOR, 1)
    return tensor > 1 and parts % tensor == 0


def rows(x: jax.Array) -> jax.Array:
    """Activations, cut by their first axis over the batch's axes of the mesh and whole otherwise.

    With a tensor axis the tokens [R, L, D] of a row are cut over it, if it divides their number: norms,
    dropout and sums of the residual stream are then computed once, not on each of its devices (sequence
    parallelism, Korthikanti et al., 2022, arXiv:2205.05198).
    """
    found = sizes()
    axes = tuple(name for name in ROWS if name in found)
    if not found or not x.ndim or len(x) % math.prod(found[name] for name in axes):
        return x
    tensor = found.get(TENSOR, 1)
    tokens = TENSOR if x.ndim == 3 and tensor > 1 and x.shape[1] % tensor == 0 else None
    return lax.with_sharding_constraint(
        x, PartitionSpec(axes or None, *((tokens,) if tokens else ()))
    )


def looked_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows [R, L, D] of a table [V, D] at ids [R, L], cut as `rows` cuts them.

    A table that lies by columns over fsdp (`cuts.spec_of`) and has more rows than a device has tokens stays
    there: each device looks up its columns for the rows of all that share the parameters, and these exchange
    them, so that what is sent are tokens. One with fewer rows is gathered. Then a device goes on with its own
    rows at once: a norm over columns that lie apart would be summed over devices for the tokens of them all,
    and for a table that is whole everywhere the gradients of all those tokens would be gathered.
    """
    found = sizes()
    data, fsdp, tensor = (found.get(name, 1) for name in ("data", FSDP, TENSOR))
    if not found or ids.ndim != 2 or len(ids) % (data * fsdp):
        return jnp.take(table, ids, axis=0, mode="clip")
    axes = cuts.spec_of("embedding", table.shape, (), fsdp=fsdp, tensor=1)
    if axes[-1] == FSDP and ids.size < len(table) * data * fsdp:
        over_data = "data" if data > 1 else None
        ids = lax.with_sharding_constraint(ids, PartitionSpec(over_data))
        at = TENSOR if tensor > 1 and ids.shape[1] % tensor == 0 else None
        sent = jnp.take(table, ids, axis=0, mode="clip")
        return rows(lax.with_sharding_constraint(sent, PartitionSpec(over_data, at, FSDP)))
    if FSDP in axes:
        whole = PartitionSpec(TENSOR if tensor > 1 and len(table) % tensor == 0 else None, None)
        table = _gathered(table, whole, table.dtype)
    return rows(jnp.take(table, ids, axis=0, mode="clip"))


def columns(x: jax.Array) -> jax.Array:
    """A kernel [in, out] or bias [out], cut by its outputs over the tensor axis."""
    if TENSOR not in sizes():
        return x
    return lax.with_sharding_constraint(x, PartitionSpec(*[None] * (x.ndim - 1), TENSOR))


class Placed(Protocol):
    """Of an architecture, where its parameters are."""

    @property
    def depths(self) -> dict[str, int]: ...
    @property
    def tensor_rules(self) -> cuts.Rules: ...


def used(params: Params, of: Placed, depth: int, dtype: Any = None) -> Params:
    """The same tree, those of one depth cut over the tensor axis alone: as they are computed with.

    One gather each, kernels in `dtype` where it is given, in which they will be used: half of the bytes of
    fp32 where it is bf16. But of tables: the rows that are looked up are sent, which are fewer. The gradient
    is as it comes, so that it may be summed to where the parameter lives.
    """
    if FSDP not in sizes():
        return params
    leaves = [
        used_one(path, x, of, dtype) if of.depths.get(path) == depth else x
        for path, x in by_path(params).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def used_one(path: str, x: jax.Array, of: Placed, dtype: Any = None) -> jax.Array:
    """The same of one parameter."""
    found, leaf = sizes(), path.rpartition("/")[2]
    if FSDP not in found or x.size < cuts.MIN_FSDP_SIZE or leaf == "embedding":
        return x
    spec = cuts.spec_of(path, x.shape, of.tensor_rules, fsdp=1, tensor=found.get(TENSOR, 1))
    return _gathered(x, spec, x.dtype if dtype is None or leaf != "kernel" else dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(x, spec, dtype):
    return lax.with_sharding_constraint(x.astype(dtype), spec).astype(x.dtype)


_gathered.defvjp(
    lambda x, spec, dtype: (_gathered(x, spec, dtype), None), lambda spec, dtype, _, g: (g,)
)
