"""What the mesh in context (`jax.sharding.use_abstract_mesh`) means for arrays inside of a model.

Left to itself, the compiler carries the cuts of parameters on to activations: those of a BERT's last block,
of few tokens, were cut by width and sent around at each operation. What is said here is all it needs.
Without a mesh, and inside of `shard_map`, everything is the identity.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from jaxft.models import cuts
from jaxft.models.tree import Params, by_path

ROWS = ("data", "fsdp")  # the axes that cut the first axis of a batch
TENSOR, FSDP = cuts.TENSOR, cuts.FSDP
CONTEXT = "context"  # cuts the tokens of a row


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


def row_axes(count: int) -> tuple[str, ...] | None:
    """The axes over which that many rows are cut; None where these do not divide them."""
    found = sizes()
    axes = tuple(name for name in ROWS if name in found)
    return None if count % math.prod(found[name] for name in axes) else axes


def cuts_tokens(length: int) -> bool:
    """Whether there is a context axis and it divides rows of that many tokens."""
    context = sizes().get(CONTEXT, 1)
    return context > 1 and length % context == 0


def rows(x: jax.Array) -> jax.Array:
    """Activations, cut by their first axis over the batch's axes of the mesh and whole otherwise.

    The tokens [R, L, D] of a row are cut over the context axis, and over a tensor axis, of those that divide
    their number. Over the latter, norms, dropout and sums of the residual stream are then computed once, not
    on each of its devices (sequence parallelism, Korthikanti et al., 2022, arXiv:2205.05198).
    """
    axes = row_axes(len(x)) if sizes() and x.ndim else None
    if axes is None:
        return x
    tokens = _token_axes(x.shape[1]) if x.ndim == 3 else ()
    return lax.with_sharding_constraint(
        x, PartitionSpec(axes or None, *((tokens,) if tokens else ()))
    )


def _token_axes(length: int) -> tuple[str, ...]:
    """Those over which the tokens of a row are cut."""
    found, parts = sizes(), 1
    axes: tuple[str, ...] = ()
    for name in (CONTEXT, TENSOR):
        if name in found and length % (parts * found[name]) == 0:
            axes, parts = (*axes, name), parts * found[name]
    return axes


def tokens(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch of texts with what it has of each token [R, L] cut over the context axis."""
    given = dict(batch)
    if CONTEXT not in sizes():
        return given
    names = ("input_ids", "decoder_input_ids")
    shapes = {given[name].shape for name in names if name in given}
    cut = {
        shape: PartitionSpec(row_axes(shape[0]) or None, CONTEXT)
        for shape in shapes
        if cuts_tokens(shape[1])
    }
    return {
        name: lax.with_sharding_constraint(x, cut[x.shape]) if x.shape in cut else x
        for name, x in given.items()
    }


def in_line(x: jax.Array) -> jax.Array:
    """[..., D] -> [N, D], for products, of which XLA:CPU copies less so.

    Where tokens [R, L, D] are cut over the context axis, in the order of the devices, so that each keeps its
    own, and gradients are summed over rows and tokens at once: over the one and then the other, all of them
    would be sent twice.
    """
    if x.ndim != 3 or not cuts_tokens(x.shape[1]):
        return x.reshape(-1, x.shape[-1])
    rows, length, width = x.shape
    parts, axes = _parts(rows), (*(row_axes(rows) or ()), CONTEXT)
    cut = x.reshape(parts[0], rows // parts[0], parts[1], length // parts[1], width)
    flat = cut.transpose(0, 2, 1, 3, 4).reshape(-1, width)
    return lax.with_sharding_constraint(flat, PartitionSpec(axes, PartitionSpec.UNCONSTRAINED))


def in_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[N, D] -> [*shape, D]: the inverse."""
    if len(shape) != 2 or not cuts_tokens(shape[1]):
        return x.reshape(*shape, x.shape[-1])
    rows, length = shape
    parts = _parts(rows)
    cut = x.reshape(*parts, rows // parts[0], length // parts[1], x.shape[-1])
    whole = cut.transpose(0, 2, 1, 3, 4).reshape(*shape, x.shape[-1])
    spec = PartitionSpec(row_axes(rows) or None, CONTEXT, PartitionSpec.UNCONSTRAINED)
    return lax.with_sharding_constraint(whole, spec)


def _parts(rows: int) -> tuple[int, int]:
    """Into how many those rows, and each of them, are cut."""
    found = sizes()
    return math.prod(found[name] for name in row_axes(rows) or ()), found[CONTEXT]


def looked_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows [R, L, D] of a table [V, D] at ids [R, L], cut as `rows` cuts them.

    A table that lies by columns over fsdp (`cuts.spec_of`) and has more rows than a device has tokens stays
    there: each device looks up its columns for the rows of all that share the parameters, and these exchange
    them, so that what is sent are tokens. One with fewer rows is gathered. Then a device goes on with its own
    rows at once: a norm over columns that lie apart would be summed over devices for the tokens of them all,
    and for a table that is whole everywhere the gradients of all those tokens would be gathered.
    """
    found = sizes()
    data, fsdp, tensor, context = (found.get(name, 1) for name in ("data", FSDP, TENSOR, CONTEXT))
    if not found or ids.ndim != 2 or len(ids) % (data * fsdp):
        return jnp.take(table, ids, axis=0, mode="clip")
    axes = cuts.spec_of("embedding", table.shape, (), fsdp=fsdp, tensor=1)
    if axes[-1] == FSDP and ids.size < len(table) * data * fsdp * context:
        over_data, at = "data" if data > 1 else None, CONTEXT if cuts_tokens(ids.shape[1]) else None
        ids = lax.with_sharding_constraint(ids, PartitionSpec(over_data, at))
        spec = PartitionSpec(over_data, _token_axes(ids.shape[1]) or None, FSDP)
        sent = jnp.take(table, ids, axis=0, mode="clip")
        return rows(lax.with_sharding_constraint(sent, spec))
    if FSDP in axes:
        whole = PartitionSpec(TENSOR if tensor > 1 and len(table) % tensor == 0 else None, None)
        table = _gathered(table, whole, table.dtype)
    line = in_line(ids[..., None])[:, 0]
    return rows(in_rows(jnp.take(table, line, axis=0, mode="clip"), ids.shape))


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
