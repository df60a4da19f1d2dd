"""The modules that two or more families share; their arithmetic is in ops.py.

Parameters are kept in fp32 and cast where they are used: every module computes in the dtype of its
input. Nothing here knows about families.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.layers import attention, mesh, ops
from jaxft.models.layers.sight import Sight


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last axis; kernel [in, out]."""

    def __init__(
        self, inputs: int, outputs: int, *, std: float, rngs: nnx.Rngs, use_bias: bool = True
    ):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        return _product(x, self.kernel[...], bias)


def _product(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """[..., in] -> [..., out], by a product of [N, in]."""
    flat = ops.linear(mesh.in_line(x), kernel, bias)
    return mesh.in_rows(flat, x.shape[:-1])


class Embedding(nnx.Module):
    """A table [rows, width] looked up by integer ids; ids out of range are the caller's mistake.

    Args:
        padding: a row that has no gradient, as PyTorch's `padding_idx`; None: every row has one.
    """

    def __init__(
        self, rows: int, width: int, *, std: float, rngs: nnx.Rngs, padding: int | None = None
    ):
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (rows, width)))
        self.padding = padding

    def __call__(self, ids: jax.Array) -> jax.Array:
        found = mesh.looked_up(self.embedding[...], ids)
        if self.padding is None:
            return found
        return jnp.where((ids == self.padding)[..., None], jax.lax.stop_gradient(found), found)


class LayerNorm(nnx.Module):
    """Normalises the last axis in fp32 and returns the input's dtype."""

    def __init__(self, width: int, *, epsilon: float, use_bias: bool = True):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if use_bias else None
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...]
        bias = jnp.zeros_like(scale) if self.bias is None else self.bias[...]
        return ops.layer_norm(x, scale, bias, self.epsilon)


class RMSNorm(nnx.Module):
    """Divides by the root mean square of the last axis in fp32 and returns the input's dtype.

    The factors are `offset + scale`, all 1 at first: Gemma's parameters are distances from 1.
    """

    def __init__(self, width: int, *, epsilon: float, offset: float = 0.0):
        self.scale = nnx.Param(jnp.full(width, 1.0 - offset))
        self.epsilon, self.offset = epsilon, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...]
        if self.offset:  # in fp32: bf16 has no 1.001
            scale = self.offset + scale.astype(jnp.float32)
        return ops.rms_norm(x, scale, self.epsilon)


def fused_heads(
    fused: Linear, tokens: jax.Array, reads: jax.Array | None, heads: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, key and value from one layer, tokens [R, L, D] -> each [R, L, H, D / H].

    The query has only the tokens at `reads` [R, K], if they are given; the rest is not computed.
    """
    width, looking = tokens.shape[-1], ops.take(tokens, reads)
    if reads is None or mesh.divides(heads):
        parts = fused_parts(fused, [looking, tokens, tokens], heads)
    else:
        query = _columns(fused, looking, slice(0, width))
        parts = [query, *jnp.split(_columns(fused, tokens, slice(width, None)), 2, axis=-1)]
    query, key, value = (x.reshape(*x.shape[:2], heads, -1) for x in parts)
    return query, key, value


def fused_parts(fused: Linear, inputs: Sequence[jax.Array], pieces: int) -> list[jax.Array]:
    """The equal parts of what a layer gives, each of an input; of one input only if all are the same.

    Over a tensor axis that divides the pieces of a part, each device computes its own: its columns of the
    parts, which are no one piece of the kernel.
    """
    count = len(inputs)
    if not mesh.divides(pieces):
        return jnp.split(fused(inputs[0]), count, axis=-1)
    width = fused.kernel.shape[-1] // count
    return [_columns(fused, x, slice(n * width, (n + 1) * width)) for n, x in enumerate(inputs)]


def _columns(fused: Linear, x: jax.Array, columns: slice) -> jax.Array:
    """What the layer gives there, without computing the rest; over a tensor axis in equal parts."""
    kernel, bias = mesh.columns(fused.kernel[...][:, columns]), None
    if fused.bias is not None:
        bias = mesh.columns(fused.bias[...][columns])
    return _product(x, kernel, bias)


class SelfAttention(nnx.Module):
    """Multi-head attention up to, not including, its output projection.

    Called with the tokens that look [B, Q, D], those that are looked at [B, T, D] and which looks at which;
    None: each at all.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rate: float,
        std: float,
        rngs: nnx.Rngs,
        use_bias: bool = True,
    ):
        self.query = Linear(width, width, std=std, rngs=rngs, use_bias=use_bias)
        self.key = Linear(width, width, std=std, rngs=rngs, use_bias=use_bias)
        self.value = Linear(width, width, std=std, rngs=rngs, use_bias=use_bias)
        self.heads = heads
        self.rate = rate

    def __call__(
        self, looking: jax.Array, tokens: jax.Array, sight: Sight | None, seed: ops.Seed
    ) -> jax.Array:
        def split(x):  # [B, T, D] -> [B, T, H, D / H]
            return x.reshape(*x.shape[:2], self.heads, -1)

        query = split(self.query(looking))
        key, value = split(self.key(tokens)), split(self.value(tokens))
        context = attention.among(query, key, value, sight, rate=self.rate, seed=seed)
        return context.reshape(looking.shape)
