"""The stacks of T5: encoder and decoder, before whose layers stands a norm without mean, after them a sum.

Attributes are named as in HF's T5Stack. The first block of a stack has the table of relative positions,
and leaves in the carry what the others need of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.family import Block, Carry, Context, Kept
from jaxft.models.layers import attention, modules, ops, relative, ring
from jaxft.models.layers.sight import Places, Sight
from jaxft.models.layers.stochastic_depth import Branch, whole


@dataclasses.dataclass(frozen=True)
class Layer:
    """The sizes of every block.

    Attributes:
        head_dim: of a head; heads need not add up to the width.
        gated: the feed-forward layer is widened twice, once as a gate (Shazeer, 2020, arXiv:2002.05202).
        rate: of every dropout.
        factor: of the initial values.
        buckets: of relative positions. From `farthest` on all are in the last.
    """

    width: int
    heads: int
    head_dim: int
    intermediate: int
    gated: bool
    activation: str
    epsilon: float
    rate: float
    factor: float
    buckets: int
    farthest: int

    def norm(self) -> modules.RMSNorm:
        """Of the residual stream."""
        norm = modules.RMSNorm(self.width, epsilon=self.epsilon)
        norm.scale = nnx.Param(jnp.full(self.width, float(self.factor)))
        return norm

    def linear(
        self, inputs: int, outputs: int, rngs: nnx.Rngs, variance: int | None = None
    ) -> modules.Linear:
        """Of initial variance 1 / `variance`; None: 1 / inputs."""
        std = self.factor * (inputs if variance is None else variance) ** -0.5
        return modules.Linear(inputs, outputs, std=std, rngs=rngs, use_bias=False)


class Attention(nnx.Module):
    """Of a stack to itself, or of the decoder to the encoder. Its scores are not scaled.

    Args:
        positions: None: it has no table of relative positions; else whether the table also tells apart
            what comes after the token that looks.
    """

    def __init__(self, layer: Layer, *, positions: bool | None, rngs: nnx.Rngs):
        width, inner = layer.width, layer.heads * layer.head_dim
        self.q = layer.linear(width, inner, rngs, width * layer.head_dim)
        self.k = layer.linear(width, inner, rngs)
        self.v = layer.linear(width, inner, rngs)
        self.o = layer.linear(inner, width, rngs)
        if positions is not None:
            self.relative_attention_bias = modules.Embedding(
                layer.buckets, layer.heads, std=layer.factor * width**-0.5, rngs=rngs
            )
        self.both_ways, self.layer = bool(positions), layer

    def keys_and_values(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[R, T, D] -> each [R, T, H, C]."""
        return self._heads(self.k(tokens)), self._heads(self.v(tokens))

    def __call__(
        self,
        looking: jax.Array,
        seen: tuple[jax.Array, jax.Array],
        sight: Sight | jax.Array,
        biases: jax.Array | None = None,
        seed: ops.Seed = None,
    ) -> jax.Array:
        """Tokens [R, Q, D], keys and values [R, T, H, C] each -> [R, Q, D].

        Args:
            sight: or a mask, see `ops.attention`.
            biases: as `biases_in_row` gives them; beside a mask as of `ops.attention`.
        """
        query, rate = self._heads(self.q(looking)), self.layer.rate
        if isinstance(sight, Sight):
            attended = attention.among(
                query, *seen, sight, rate=rate, seed=seed, scale=1.0, biases=biases
            )
        else:
            attended = ops.attention(
                query, *seen, sight, rate=rate, seed=seed, scale=1.0, bias=biases
            )
        return self.o(attended.reshape(*attended.shape[:2], -1))

    def biases(self, distances: Any) -> jax.Array:
        """Distances [...] that are known -> [..., H] fp32: of what is looked at less what looks."""
        table = self.relative_attention_bias.embedding[...]
        found = relative.buckets(
            distances, both_ways=self.both_ways, count=len(table), farthest=self.layer.farthest
        )
        return table[found].astype(jnp.float32)

    def biases_in_row(self, length: int, seed: ops.Seed) -> jax.Array:
        """[1, H, L, L] fp32. Of two tokens of an example, wherever in the row that is.

        Of rows that are long or cut, [2 L, H] by distance, of which `attention.among` makes what it needs.
        """
        biases = self.biases(relative.distances_in_a_row(length))
        return biases if ring.takes(length, length, seed) else relative.by_distance(biases)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.layer.heads, -1)


class FeedForward(nnx.Module):
    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        width, wide = layer.width, layer.intermediate
        if layer.gated:
            self.wi_0, self.wi_1 = (layer.linear(width, wide, rngs) for _ in range(2))
        else:
            self.wi = layer.linear(width, wide, rngs)
        self.wo = layer.linear(wide, width, rngs)
        self.layer = layer

    def __call__(self, x: jax.Array, seed: ops.Seed) -> jax.Array:
        act, gated = ops.ACTIVATIONS[self.layer.activation], self.layer.gated
        wide = act(self.wi_0(x)) * self.wi_1(x) if gated else act(self.wi(x))
        return self.wo(ops.dropout(wide, self.layer.rate, seed))


class SelfLayer(nnx.Module):
    def __init__(self, layer: Layer, *, positions: bool | None, rngs: nnx.Rngs):
        self.SelfAttention = Attention(layer, positions=positions, rngs=rngs)
        self.layer_norm, self.rate = layer.norm(), layer.rate

    def __call__(
        self,
        hidden: jax.Array,
        sight: Sight,
        biases: jax.Array,
        seed: ops.Seed,
        branch: Branch = whole,
    ) -> jax.Array:
        """[R, L, D] -> [R, K, D] at the `reads` of sight, [R, L, D] where these are None."""
        weights_seed, output_seed = ops.split(seed, 2)
        normed, reads = self.layer_norm(hidden), sight.reads
        seen = self.SelfAttention.keys_and_values(normed)
        update = self.SelfAttention(ops.take(normed, reads), seen, sight, biases, weights_seed)
        return ops.take(hidden, reads) + branch(ops.dropout(update, self.rate, output_seed))


class CrossLayer(nnx.Module):
    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        self.EncDecAttention = Attention(layer, positions=None, rngs=rngs)
        self.layer_norm, self.rate = layer.norm(), layer.rate

    def __call__(
        self,
        hidden: jax.Array,
        seen: tuple[jax.Array, jax.Array],
        sight: Sight | jax.Array,
        seed: ops.Seed = None,
        branch: Branch = whole,
    ) -> jax.Array:
        """[R, Q, D], and what `keys_and_values` gives of the encoder's output -> [R, Q, D]."""
        weights_seed, output_seed = ops.split(seed, 2)
        update = self.EncDecAttention(self.layer_norm(hidden), seen, sight, seed=weights_seed)
        return hidden + branch(ops.dropout(update, self.rate, output_seed))


class FeedForwardLayer(nnx.Module):
    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        self.DenseReluDense = FeedForward(layer, rngs=rngs)
        self.layer_norm, self.rate = layer.norm(), layer.rate

    def __call__(
        self, hidden: jax.Array, seed: ops.Seed = None, branch: Branch = whole
    ) -> jax.Array:
        inner_seed, output_seed = ops.split(seed, 2)
        update = self.DenseReluDense(self.layer_norm(hidden), inner_seed)
        return hidden + branch(ops.dropout(update, self.rate, output_seed))


class EncoderBlock(nnx.Module):
    """One depth of the encoder; the first one leaves the biases of relative positions."""

    def __init__(self, layer: Layer, *, first: bool, rngs: nnx.Rngs):
        attention = SelfLayer(layer, positions=True if first else None, rngs=rngs)
        self.layer = nnx.List([attention, FeedForwardLayer(layer, rngs=rngs)])
        self.first = first

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        layers: Any = self.layer
        attention, feed_forward = layers
        first, last = ops.split(context.seed, 2)
        hidden, segments = carry["hidden"], carry["segment_ids"]
        one, two = context.branches(2, segments)
        if self.first:
            biases = attention.SelfAttention.biases_in_row(hidden.shape[1], context.seed)
            carry = {**carry, "biases": biases}
        hidden = attention(hidden, Sight(Places(segments)), carry["biases"], first, one)
        return {**carry, "hidden": feed_forward(hidden, last, two)}, {}


class DecoderBlock(nnx.Module):
    """One depth of the decoder; the first one turns to the decoder's tokens."""

    def __init__(self, layer: Layer, *, first: bool, rngs: nnx.Rngs):
        attention = SelfLayer(layer, positions=False if first else None, rngs=rngs)
        cross, feed_forward = CrossLayer(layer, rngs=rngs), FeedForwardLayer(layer, rngs=rngs)
        self.layer = nnx.List([attention, cross, feed_forward])
        self.first = first

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        layers: Any = self.layer
        attention, cross, feed_forward = layers
        first, second, last = ops.split(context.seed, 3)
        if self.first:
            carry = self._begun(carry, attention.SelfAttention, context.seed)
        segments, reads = carry["decoder_segment_ids"], context.reads
        one, two, three = context.branches(3, segments)
        biases = carry["biases"]
        if reads is not None and biases.ndim == 4:
            biases = biases[0][:, reads].swapaxes(0, 1)
        sight = Sight(Places(segments, carry["decoder_positions"]), reads, causal=True)
        hidden = attention(carry["hidden"], sight, biases, first, one)
        sight = Sight(Places(carry["segment_ids"]), reads, looking=Places(segments))
        seen = cross.EncDecAttention.keys_and_values(carry["encoded"])
        hidden = feed_forward(cross(hidden, seen, sight, second, two), last, three)
        return {**carry, "hidden": hidden}, {}

    def _begun(self, carry: Carry, positions: Attention, seed: ops.Seed) -> Carry:
        carry, encoded = dict(carry), carry["hidden"]
        hidden = carry.pop("decoder_hidden").astype(encoded.dtype)
        biases = positions.biases_in_row(hidden.shape[1], seed)
        return {**carry, "hidden": hidden, "encoded": encoded, "biases": biases}


class Stack(nnx.Module):
    def __init__(self, layer: Layer, count: int, *, decodes: bool, rngs: nnx.Rngs):
        block = DecoderBlock if decodes else EncoderBlock
        self.block = nnx.List([block(layer, first=not n, rngs=rngs) for n in range(count)])
        self.final_layer_norm = layer.norm()
        self.rate = layer.rate

    @property
    def positions(self) -> Attention:
        """The attention that has the table of relative positions."""
        first: Any = self.block[0].layer[0]
        return first.SelfAttention


@dataclasses.dataclass(frozen=True)
class Finishing:
    """The encoder's last block, with the norm that gives what the decoder looks at."""

    block: Block
    stack: Stack

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        carry, kept = self.block(carry, context)
        *_, end = ops.split(context.seed, 3)
        normed = self.stack.final_layer_norm(carry["hidden"])
        rest = {name: value for name, value in carry.items() if name != "biases"}
        return {**rest, "hidden": ops.dropout(normed, self.stack.rate, end)}, kept
