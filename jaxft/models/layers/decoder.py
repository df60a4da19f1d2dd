"""The decoder that Llama and its relatives share: RMSNorm before, rotary positions, gated feed-forward.

Attributes are named as in HF's LlamaModel. What differs between families is in the `Layer` of each
block.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
from flax import nnx

from jaxft.models.family import Batch, Carry, Context, Kept
from jaxft.models.layers import cached, modules, ops, rotary

# The rotary tables of blocks that look at everything, and of those with a window that have their own.
GLOBAL, LOCAL = "global", "local"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One block.

    Attributes:
        rate: of the dropout on the attention weights.
        head_norms: a norm of each head's queries and of its keys, before they are rotated.
        norm_offset: what is added to the parameters of norms.
        scale: of the attention's scores; None: 1 / sqrt(head_dim).
        cap: of the attention's scores; None: they are not capped.
        window: tokens that a token sees, itself included; None: all before it.
        rotary: which of the carry's tables rotates its queries and keys.
    """

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    activation: str
    epsilon: float
    std: float
    rate: float
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    norm_offset: float = 0.0
    scale: float | None = None
    cap: float | None = None
    window: int | None = None
    rotary: str = GLOBAL

    def norm(self, width: int | None = None) -> modules.RMSNorm:
        """Of the residual stream, or of something as wide as given."""
        wide = self.width if width is None else width
        return modules.RMSNorm(wide, epsilon=self.epsilon, offset=self.norm_offset)


class Config(Protocol):
    """The fields of a family's config that most decoders have."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int | None: ...
    @property
    def head_dim(self) -> int | None: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @property
    def initializer_range(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...


def layer_of(config: Config) -> Layer:
    """A block without biases that looks at everything, at the sizes of a completed config."""
    assert config.num_key_value_heads is not None and config.head_dim is not None
    return Layer(
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate=config.intermediate_size,
        activation=config.hidden_act,
        epsilon=config.rms_norm_eps,
        std=config.initializer_range,
        rate=config.attention_dropout,
    )


def sliding(
    layer: Layer, types: Sequence[str], window: int | None, table: str = GLOBAL
) -> list[Layer]:
    """A block of each of HF's `layer_types`, those of 'sliding_attention' with the window and table."""
    local = dataclasses.replace(layer, window=window, rotary=table)
    return [local if kind == "sliding_attention" else layer for kind in types]


class Attention(nnx.Module):
    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int, use_bias: bool) -> modules.Linear:
            return modules.Linear(inputs, outputs, std=layer.std, rngs=rngs, use_bias=use_bias)

        queries, keys = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        self.q_proj = linear(layer.width, queries, layer.qkv_bias)
        self.k_proj = linear(layer.width, keys, layer.qkv_bias)
        self.v_proj = linear(layer.width, keys, layer.qkv_bias)
        self.o_proj = linear(queries, layer.width, layer.output_bias)
        self.q_norm = layer.norm(layer.head_dim) if layer.head_norms else None
        self.k_norm = layer.norm(layer.head_dim) if layer.head_norms else None
        self.layer = layer

    def __call__(self, tokens: jax.Array, carry: Carry, context: Context) -> tuple[jax.Array, Kept]:
        """Normalised tokens [R, L, D] -> [R, K, D] at `context.reads`, or all [R, L, D]."""
        layer, turn = self.layer, carry["rotary"][self.layer.rotary]
        reads = context.reads
        cosines, sines = turn
        query = self._heads(self.q_proj(ops.take(tokens, reads)), self.q_norm)
        query = rotary.rotate(query, (ops.take(cosines, reads), ops.take(sines, reads)))
        key = rotary.rotate(self._heads(self.k_proj(tokens), self.k_norm), turn)
        value = self._heads(self.v_proj(tokens), None)
        attended, kept = cached.attend(
            query,
            key,
            value,
            carry,
            context,
            rate=layer.rate,
            seed=context.seed,
            window=layer.window,
            scale=layer.scale,
            cap=layer.cap,
        )
        return self.o_proj(attended.reshape(*attended.shape[:2], -1)), kept

    def _heads(self, x: jax.Array, norm: modules.RMSNorm | None) -> jax.Array:
        """[R, L, H * C] -> [R, L, H, C], each head normalised."""
        x = x.reshape(*x.shape[:2], -1, self.layer.head_dim)
        return x if norm is None else norm(x)


class FeedForward(nnx.Module):
    """The gated linear unit of Shazeer, 2020, arXiv:2002.05202."""

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> modules.Linear:
            return modules.Linear(
                inputs, outputs, std=layer.std, rngs=rngs, use_bias=layer.mlp_bias
            )

        self.gate_proj = linear(layer.width, layer.intermediate)
        self.up_proj = linear(layer.width, layer.intermediate)
        self.down_proj = linear(layer.intermediate, layer.width)
        self.activation = layer.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(ops.ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """A norm before attention and one, by HF called post-attention, before the feed-forward."""

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        self.self_attn = Attention(layer, rngs=rngs)
        self.mlp = FeedForward(layer, rngs=rngs)
        self.input_layernorm, self.post_attention_layernorm = layer.norm(), layer.norm()

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        hidden = carry["hidden"]
        first, second = context.branches(2, carry["segment_ids"])
        update, kept = self.self_attn(self.input_layernorm(hidden), carry, context)
        hidden = ops.take(hidden, context.reads) + first(update)
        hidden = hidden + second(self.mlp(self.post_attention_layernorm(hidden)))
        return {**carry, "hidden": hidden}, kept


class SandwichBlock(nnx.Module):
    """Gemma's: a norm before attention and feed-forward, and one of what they give."""

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs):
        self.self_attn = Attention(layer, rngs=rngs)
        self.mlp = FeedForward(layer, rngs=rngs)
        self.input_layernorm, self.post_attention_layernorm = layer.norm(), layer.norm()
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = layer.norm(), layer.norm()

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        hidden = carry["hidden"]
        first, second = context.branches(2, carry["segment_ids"])
        update, kept = self.self_attn(self.input_layernorm(hidden), carry, context)
        hidden = ops.take(hidden, context.reads) + first(self.post_attention_layernorm(update))
        update = self.mlp(self.pre_feedforward_layernorm(hidden))
        hidden = hidden + second(self.post_feedforward_layernorm(update))
        return {**carry, "hidden": hidden}, kept


class Decoder(nnx.Module):
    """The carry holds hidden [R, L, D], the batch's segment_ids and positions, and rotary tables.

    Args:
        turns: the frequencies of each rotary table that a layer names.
        block: of a layer and rngs.
        padding: the token whose embedding does not train; None: all do.
        multiplier: of the embeddings.
    """

    def __init__(
        self,
        vocabulary: int,
        layers: Sequence[Layer],
        turns: Mapping[str, rotary.Frequencies],
        *,
        rngs: nnx.Rngs,
        padding: int | None,
        block: Callable[..., nnx.Module] = Block,
        multiplier: float = 1.0,
    ):
        first = layers[0]
        self.embed_tokens = modules.Embedding(
            vocabulary, first.width, std=first.std, rngs=rngs, padding=padding
        )
        self.layers = nnx.List([block(layer, rngs=rngs) for layer in layers])
        self.norm = first.norm()
        self.turns = tuple(turns.items())  # hashable, as what is no parameter must be
        self.multiplier = multiplier

    def stem(self, batch: Batch, context: Context) -> Carry:
        hidden = self.embed_tokens(batch["input_ids"])
        positions = batch["positions"]
        return {
            "hidden": hidden if self.multiplier == 1 else hidden * self.multiplier,
            "segment_ids": batch["segment_ids"],
            "positions": positions,
            "rotary": {name: rotary.table(positions, turns) for name, turns in self.turns},
        }

    @property
    def blocks(self) -> nnx.List:
        return self.layers

    def finish(self, hidden: jax.Array) -> jax.Array:
        return self.norm(hidden)
