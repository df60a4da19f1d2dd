"""Vision Transformer (Dosovitskiy et al., 2021, arXiv:2010.11929) with a classification head.

Attributes are named as in checkpoints of HF's ViTForImageClassification, so parameter paths are
checkpoint names. Position embeddings are not interpolated: images must have the checkpoint's size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.checkpoint import config_json
from jaxft.models.family import (
    Carry,
    Context,
    Family,
    Head,
    ImageLimits,
    Kept,
    depth_rules,
)
from jaxft.models.heads import ImageClassifier, first_token
from jaxft.models.layers import modules, ops
from jaxft.models.layers.patches import Projection, pair, require_shape

# Of ViTModel's pooler and of the masked-image decoder, which are not used here.
_IGNORED = frozenset({"pooler_output_size", "pooler_act", "encoder_stride"})
_MOST_PATCHES = 2**20  # ten times those of the largest images; each is a row of a parameter


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's ViTConfig, with its defaults."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | tuple[int, int] = 224  # side, or (height, width)
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        config = config_json.fields(cls, raw, ignored=_IGNORED, check=_sizes_fit)
        return dataclasses.replace(config, image_size=config.image, patch_size=config.patch)

    @property
    def image(self) -> tuple[int, int]:
        return pair(self.image_size)

    @property
    def patch(self) -> tuple[int, int]:
        return pair(self.patch_size)


def _sizes_fit(config: Config) -> list[str]:
    wrong = config_json.heads_fit(config)
    (height, breadth), (p, q) = config.image, config.patch
    if height % p or breadth % q:
        wrong.append(f"image_size {config.image} is no multiple of patch_size {config.patch}")
    elif height // p * (breadth // q) > _MOST_PATCHES:
        wrong.append(
            f"image_size {config.image} has {height // p * (breadth // q):,} patches; "
            f"at most {_MOST_PATCHES:,} can be"
        )
    return wrong


class PatchEmbeddings(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.projection = Projection(
            config.patch,
            config.num_channels,
            config.hidden_size,
            std=config.initializer_range,
            rngs=rngs,
        )


class Embeddings(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        (height, breadth), (p, q) = config.image, config.patch
        tokens = 1 + (height // p) * (breadth // q)

        def truncated_normal(*shape):
            return config.initializer_range * jax.random.truncated_normal(
                rngs.params(), -2.0, 2.0, shape
            )

        self.cls_token = nnx.Param(truncated_normal(1, 1, config.hidden_size))
        self.position_embeddings = nnx.Param(truncated_normal(1, tokens, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config, rngs=rngs)
        self.rate = config.hidden_dropout_prob
        self.expected = (height, breadth, config.num_channels)

    def __call__(self, images: jax.Array, seed: ops.Seed) -> jax.Array:
        require_shape(images, self.expected)
        patches = self.patch_embeddings.projection(images.astype(jnp.float32))
        patches = patches.reshape(len(images), -1, patches.shape[-1])
        cls = jnp.broadcast_to(self.cls_token[...], (len(images), 1, patches.shape[-1]))
        hidden = jnp.concatenate([cls, patches], axis=1) + self.position_embeddings[...]
        return ops.dropout(hidden, self.rate, seed)


class Dense(nnx.Module):
    """A linear map under the name `dense`, which HF's intermediate and output modules hold."""

    def __init__(self, inputs: int, outputs: int, config: Config, *, rngs: nnx.Rngs):
        self.dense = modules.Linear(inputs, outputs, std=config.initializer_range, rngs=rngs)


class Attention(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.attention = modules.SelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            rate=config.attention_probs_dropout_prob,
            std=config.initializer_range,
            rngs=rngs,
            use_bias=config.qkv_bias,
        )
        self.output = Dense(config.hidden_size, config.hidden_size, config, rngs=rngs)


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
        tokens = self.layernorm_before(hidden)
        looking = ops.take(tokens, context.reads)
        attended = self.attention.attention(looking, tokens, None, weights_seed)
        update = self.attention.output.dense(attended)
        hidden = ops.take(hidden, context.reads) + ops.dropout(update, self.rate, attention_seed)
        wide = self.intermediate.dense(self.layernorm_after(hidden))
        update = self.output.dense(ops.ACTIVATIONS[self.activation](wide))
        hidden = hidden + ops.dropout(update, self.rate, output_seed)
        return {**carry, "hidden": hidden}, {}


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)])


class ViT(nnx.Module):
    """The carry holds hidden [B, N + 1, D], the class token first."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.layernorm = modules.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        return {"hidden": self.embeddings(batch["pixel_values"], context.seed)}

    @property
    def blocks(self) -> nnx.List:
        return self.encoder.layer

    def finish(self, hidden: jax.Array) -> jax.Array:
        return self.layernorm(hidden)


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"vit/encoder/layer/{n}/.*" for n in range(config.num_hidden_layers))
    return depth_rules(r"vit/embeddings/.*", blocks, r"classifier/.*", last=r"vit/layernorm/.*")


def _limits(config: Config) -> ImageLimits:
    return ImageLimits(*config.image, config.num_channels)


FAMILY = Family(
    model_type="vit",
    config=Config,
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    limits=_limits,
    base="vit",
    backbone=lambda config, kind, rngs: ViT(config, rngs=rngs),
    heads={"image": Head("ViTForImageClassification", ImageClassifier, first_token)},
    depth_rules=_depth_rules,
    tensor_rules=lambda config: modules.ENCODER_TENSOR_RULES,
    # ViTModel's pooler, the mask token and decoder of masked image modelling.
    other_heads=(r"(vit\.)?pooler\..*", r"(vit\.)?embeddings\.mask_token", r"decoder\..*"),
    # transformers 5 names the modules of a live model otherwise than its files do; a state dict
    # that was saved as it is has the live model's names.
    aliases=(
        (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
        (r"attention\.q_proj\.", "attention.attention.query."),
        (r"attention\.k_proj\.", "attention.attention.key."),
        (r"attention\.v_proj\.", "attention.attention.value."),
        (r"attention\.o_proj\.", "attention.output.dense."),
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
    ),
)
