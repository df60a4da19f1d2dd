"""The stem and the encoder that ViT, DeiT and, but for its blocks, DINOv2 share.

Attributes are named as in HF's files of ViT. The norms come before attention and feed-forward.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.family import Carry, Context, Kept
from jaxft.models.layers import modules, ops
from jaxft.models.layers.patches import Projection, require_shape

# transformers 5 names the modules of a live model otherwise than its files do; a state dict that was
# saved as it is has the live model's names.
ATTENTION_ALIASES = (
    (r"attention\.q_proj\.", "attention.attention.query."),
    (r"attention\.k_proj\.", "attention.attention.key."),
    (r"attention\.v_proj\.", "attention.attention.value."),
    (r"attention\.o_proj\.", "attention.output.dense."),
)
ALIASES = (
    (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    *ATTENTION_ALIASES,
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
)


class StemConfig(Protocol):
    """The fields of a family's config that the stem and the attention read."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_dropout_prob(self) -> float: ...
    @property
    def attention_probs_dropout_prob(self) -> float: ...
    @property
    def initializer_range(self) -> float: ...
    @property
    def num_channels(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def image(self) -> tuple[int, int]: ...
    @property
    def patch(self) -> tuple[int, int]: ...


class Config(StemConfig, Protocol):
    """Those that the encoder reads."""

    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...


class PatchEmbeddings(nnx.Module):
    def __init__(self, config: StemConfig, *, rngs: nnx.Rngs):
        self.projection = Projection(
            config.patch,
            config.num_channels,
            config.hidden_size,
            std=config.initializer_range,
            rngs=rngs,
        )


class Embeddings(nnx.Module):
    """Tokens of their own, the patches after them, and a learned position added to each.

    Args:
        tokens: names of those of their own, in order.
    """

    def __init__(
        self, config: StemConfig, *, tokens: Sequence[str] = ("cls_token",), rngs: nnx.Rngs
    ):
        (height, breadth), (p, q) = config.image, config.patch
        count = len(tokens) + (height // p) * (breadth // q)

        def truncated_normal(*shape):
            return config.initializer_range * jax.random.truncated_normal(
                rngs.params(), -2.0, 2.0, shape
            )

        for name in tokens:
            setattr(self, name, nnx.Param(truncated_normal(1, 1, config.hidden_size)))
        self.position_embeddings = nnx.Param(truncated_normal(1, count, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config, rngs=rngs)
        self.rate = config.hidden_dropout_prob
        self.expected = (height, breadth, config.num_channels)
        self.tokens = tuple(tokens)

    def __call__(self, images: jax.Array, seed: ops.Seed) -> jax.Array:
        """[B, H, W, C] -> [B, T, D]; other sizes than the checkpoint's are refused."""
        require_shape(images, self.expected)
        patches = self.patch_embeddings.projection(images.astype(jnp.float32))
        patches = patches.reshape(len(images), -1, patches.shape[-1])
        own = [getattr(self, name)[...] for name in self.tokens]
        first = [jnp.broadcast_to(x, (len(images), *x.shape[1:])) for x in own]
        hidden = jnp.concatenate([*first, patches], axis=1) + self.position_embeddings[...]
        return ops.dropout(hidden, self.rate, seed)


class Dense(nnx.Module):
    """A linear map under the name `dense`, which HF's intermediate and output modules hold."""

    def __init__(self, inputs: int, outputs: int, config: StemConfig, *, rngs: nnx.Rngs):
        self.dense = modules.Linear(inputs, outputs, std=config.initializer_range, rngs=rngs)


class Attention(nnx.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: StemConfig, *, rngs: nnx.Rngs):
        self.attention = modules.SelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            rate=config.attention_probs_dropout_prob,
            std=config.initializer_range,
            rngs=rngs,
            use_bias=config.qkv_bias,
        )
        self.output = Dense(config.hidden_size, config.hidden_size, config, rngs=rngs)

    def __call__(self, looking: jax.Array, tokens: jax.Array, seed: ops.Seed) -> jax.Array:
        """[B, Q, D], and [B, T, D] that it looks at -> [B, Q, D]."""
        return self.output.dense(self.attention(looking, tokens, None, seed))


class Block(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, wide = config.hidden_size, config.intermediate_size
        self.layernorm_before = modules.LayerNorm(width, epsilon=config.layer_norm_eps)
        self.attention = Attention(config, rngs=rngs)
        self.layernorm_after = modules.LayerNorm(width, epsilon=config.layer_norm_eps)
        self.intermediate = Dense(width, wide, config, rngs=rngs)
        self.output = Dense(wide, width, config, rngs=rngs)
        self.activation = config.hidden_act
        self.rate = config.hidden_dropout_prob

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        hidden = carry["hidden"]
        weights_seed, attention_seed, output_seed = ops.split(context.seed, 3)
        first, second = context.branches(2)
        tokens = self.layernorm_before(hidden)
        looking = ops.take(tokens, context.reads)
        update = ops.dropout(
            self.attention(looking, tokens, weights_seed), self.rate, attention_seed
        )
        hidden = ops.take(hidden, context.reads) + first(update)
        wide = self.intermediate.dense(self.layernorm_after(hidden))
        update = self.output.dense(ops.ACTIVATIONS[self.activation](wide))
        hidden = hidden + second(ops.dropout(update, self.rate, output_seed))
        return {**carry, "hidden": hidden}, {}


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
