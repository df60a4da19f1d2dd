"""Operators of torch that torchax lacks, or has in a form that cannot be traced here."""

from typing import Any

import jax
import jax.numpy as jnp
import torch
import torchax
from torchax.tensor import Tensor
from torchax.view import View


def _normal(x: Any, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Any:
    draws = jax.random.normal(torchax.default_env().get_and_rotate_prng_key(), tuple(x.shape))
    return x.copy_(torchax.default_env().j2t_iso(mean + std * draws))


def _uniform(x: Any, low: float = 0.0, high: float = 1.0, *, generator: Any = None) -> Any:
    key = torchax.default_env().get_and_rotate_prng_key()
    draws = jax.random.uniform(key, tuple(x.shape), minval=low, maxval=high)
    return x.copy_(torchax.default_env().j2t_iso(draws))


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    product = torch.matmul(input, weight.t())
    return product if bias is None else product + bias


def _copy(x: Any, source: Any, non_blocking: bool = False) -> Any:
    env = torchax.default_env()
    if isinstance(source, View):
        source = source.torch()
    value = env.t2j_iso(source if isinstance(source, Tensor) else env.to_xla(source))
    value = jnp.broadcast_to(value, tuple(x.shape)).astype(x.jax().dtype)
    if isinstance(x, View):
        x.update(value)
    else:
        x.apply_jax_(lambda _: value)
    return x


def _vector_norm(
    x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """With the gradient 0 of the 2-norm of a vector of zeros, as torch has it; jax has none there."""
    env = torchax.default_env()
    value = env.t2j_iso(x if dtype is None else x.to(dtype))
    axes = tuple(dim) if isinstance(dim, list | tuple) else dim
    if ord != 2:
        found = jnp.linalg.vector_norm(value, ord=ord, axis=axes, keepdims=keepdim)
        return env.j2t_iso(found)
    square = jnp.sum(jnp.square(jnp.abs(value)), axis=axes, keepdims=keepdim)
    root = jnp.sqrt(jnp.where(square > 0, square, 1))
    return env.j2t_iso(jnp.where(square > 0, root, 0).astype(value.dtype))


def _grouped_mm(
    x: Any, weights: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Any:
    """Rows [S, D] times the matrix [E, D, F] of their group; group e ends at row offs[e]."""
    env = torchax.default_env()
    rows, matrices, ends = (env.t2j_iso(y) for y in (x, weights, offs))
    sizes = jnp.diff(ends, prepend=jnp.zeros(1, ends.dtype)).astype(jnp.int32)
    return env.j2t_iso(jax.lax.ragged_dot(rows, matrices, sizes))


def _embedding(
    weight: Any, indices: Any, padding_idx: int = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:  # fmt: skip
    """Rows of a table, of which that of padding has no gradient.

    A place past the end has the last row: padding has such positions in rows that are longer than the
    longest text of the model. torchax's own is no number there, and attention spreads it to all tokens.
    """
    env = torchax.default_env()
    table, ids = env.t2j_iso(weight), env.t2j_iso(indices)
    found = jnp.take(table, ids, axis=0, mode="clip")
    if padding_idx >= 0:
        padding = (ids == padding_idx)[..., None]
        found = jnp.where(padding, jax.lax.stop_gradient(found), found)
    return env.j2t_iso(found)


def install() -> None:
    """Into torchax's environment."""
    env, linear = torchax.default_env(), torch.nn.functional.linear
    # torchax's own in-place draws fail on a tensor that is traced, and its copy takes no view as a
    # source and does not repeat it along axes that it lacks.
    for name, definition in (("normal_", _normal), ("uniform_", _uniform), ("copy_", _copy)):
        operator = getattr(torch.ops.aten, name).default
        env.override_op_definition(operator, definition, is_view_op=True)
    # torchax's own knows the weight by another name than torch, and some models give it by name.
    env.override_op_definition(linear, _linear)
    env.override_op_definition(torch.ops.aten._grouped_mm.default, _grouped_mm)
    env.override_op_definition(torch.ops.aten.embedding.default, _embedding)
    env.override_op_definition(torch.ops.aten.linalg_vector_norm.default, _vector_norm)
