"""The vision tower of SigLIP (Zhai et al., 2023, arXiv:2303.15343) with a classification head.

Attributes are named as in checkpoints of HF's SiglipForImageClassification, so parameter paths are
checkpoint names. The head reads the mean of the patches: the text tower and the attention that pools
patches for it are left out, and an export's config.json has `vision_use_head` false. Position
embeddings are not interpolated: images must have the checkpoint's size. Initial values have the
variances of HF's, and are normal where those are uniform.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.base.json_file import brief
from jaxft.models import cuts
from jaxft.models.checkpoint import config_json
from jaxft.models.family import (
    Carry,
    Context,
    Family,
    Head,
    ImageLimits,
    Kept,
    Outputs,
    defaults,
    depth_rules,
)
from jaxft.models.heads import every_token
from jaxft.models.layers import modules, ops
from jaxft.models.layers.patches import Projection, require_shape

_VISION = "vision_config"  # the object in config.json with all fields but one
_FACTOR = "initializer_factor"
_IGNORED = frozenset({"text_config", "vision_use_head"})
_SIDE = config_json.whole(2**16)  # HF's class takes no pair
_RULES = {
    "image_size": _SIDE,
    "patch_size": _SIDE,
    "attention_dropout": config_json.RATE,
    _FACTOR: config_json.RULES["initializer_range"],
}
_MOST_ROWS = 2**10  # of patches, several times those of the largest images


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's SiglipConfig, with its defaults."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    initializer_factor: float = 1.0  # of the classifier

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        vision = raw.get(_VISION)
        if not isinstance(vision, Mapping | None):
            raise ValueError(f"config.json: {_VISION} {brief(vision)} must be an object")
        own = {key: value for key, value in raw.items() if key != _VISION and value is not None}
        # transformers reads past them there.
        inside = {field.name for field in dataclasses.fields(cls)} - {_FACTOR}
        if astray := sorted(inside & own.keys()):
            wrong = (f"{name} {brief(own[name])} must be in {_VISION}" for name in astray)
            raise ValueError(f"config.json: {'; '.join(wrong)}")
        return config_json.fields(
            cls, {**(vision or {}), **own}, ignored=_IGNORED, rules=_RULES, check=_sizes_fit
        )

    @property
    def rows(self) -> int:
        """Of patches, and as many columns; a rest of the image is cut off."""
        return self.image_size // self.patch_size


def _sizes_fit(config: Config) -> list[str]:
    wrong = config_json.heads_fit(config)
    if not 1 <= config.rows <= _MOST_ROWS:
        wrong.append(
            f"image_size {config.image_size} has {config.rows:,} rows of patches of patch_size "
            f"{config.patch_size}; 1 to {_MOST_ROWS:,} can be"
        )
    return wrong


def _completed(config_type: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a model without the pooling head, as an export is one."""
    fields = defaults(config_type)
    top = {_FACTOR: fields.pop(_FACTOR)}
    vision = {"model_type": "siglip_vision_model", **fields, **(raw.get(_VISION) or {})}
    return {**top, **raw, _VISION: {**vision, "vision_use_head": False}}


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> modules.Linear:
    """With the variance of Glorot and Bengio's initial values."""
    return modules.Linear(inputs, outputs, std=math.sqrt(2 / (inputs + outputs)), rngs=rngs)


class Embeddings(nnx.Module):
    """The patches, and a learned position added to each."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, channels, side = config.hidden_size, config.num_channels, config.patch_size
        self.patch_embedding = Projection(
            (side, side), channels, width, std=(channels * side**2) ** -0.5, rngs=rngs
        )
        self.position_embedding = modules.Embedding(
            config.rows**2, width, std=width**-0.5, rngs=rngs
        )
        self.expected = (config.image_size, config.image_size, channels)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, N, D]; other sizes than the checkpoint's are refused."""
        require_shape(images, self.expected)
        patches = self.patch_embedding(images.astype(jnp.float32))
        patches = patches.reshape(len(images), -1, patches.shape[-1])
        return patches + self.position_embedding.embedding[...]


class Attention(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.q_proj = _linear(width, width, rngs)
        self.k_proj = _linear(width, width, rngs)
        self.v_proj = _linear(width, width, rngs)
        self.out_proj = _linear(width, width, rngs)
        self.heads, self.rate = config.num_attention_heads, config.attention_dropout

    def __call__(self, tokens: jax.Array, seed: ops.Seed) -> jax.Array:
        """[B, N, D] -> [B, N, D]."""
        query, key, value = (
            project(tokens).reshape(*tokens.shape[:2], self.heads, -1)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = ops.attention(query, key, value, None, rate=self.rate, seed=seed)
        return self.out_proj(attended.reshape(tokens.shape))


class MLP(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.fc1 = _linear(config.hidden_size, config.intermediate_size, rngs)
        self.fc2 = _linear(config.intermediate_size, config.hidden_size, rngs)
        self.activation = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(ops.ACTIVATIONS[self.activation](self.fc1(x)))


class Block(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = modules.LayerNorm(width, epsilon=epsilon)
        self.self_attn = Attention(config, rngs=rngs)
        self.layer_norm2 = modules.LayerNorm(width, epsilon=epsilon)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        hidden = carry["hidden"]
        first, second = context.branches(2)
        hidden = hidden + first(self.self_attn(self.layer_norm1(hidden), context.seed))
        hidden = hidden + second(self.mlp(self.layer_norm2(hidden)))
        return {**carry, "hidden": hidden}, {}


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layers = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)])


class VisionModel(nnx.Module):
    """The carry holds hidden [B, N, D] of the patches; there is no class token."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.post_layernorm = modules.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        return {"hidden": self.embeddings(batch["pixel_values"])}

    @property
    def blocks(self) -> nnx.List:
        return self.encoder.layers

    def finish(self, hidden: jax.Array) -> jax.Array:
        return self.post_layernorm(hidden)


class Classifier(nnx.Module):
    """One linear map of the mean of the patches."""

    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        width = config.hidden_size
        std = config.initializer_factor * width**-0.5
        self.classifier = modules.Linear(width, num_labels, std=std, rngs=rngs)

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, N, D] -> logits [B, C]."""
        return {"logits": self.classifier(hidden.mean(1))}


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"vision_model/encoder/layers/{n}/.*" for n in range(config.num_hidden_layers))
    return depth_rules(
        r"vision_model/embeddings/.*",
        blocks,
        r"classifier/.*",
        last=r"vision_model/post_layernorm/.*",
    )


FAMILY = Family(
    model_type="siglip",
    config=Config,
    completed=_completed,
    dropouts=("attention_dropout",),
    limits=lambda config: ImageLimits(config.image_size, config.image_size, config.num_channels),
    base="vision_model",
    backbone=lambda config, kind, rngs: VisionModel(config, rngs=rngs),
    heads={"image": Head("SiglipForImageClassification", Classifier, every_token)},
    depth_rules=_depth_rules,
    tensor_rules=lambda config: (
        *cuts.columns(r".*/layers/\d+/.*[qkv]_proj", config.num_attention_heads),
        *cuts.rows(r".*/layers/\d+/.*out_proj", config.num_attention_heads),
        *cuts.columns(r".*/layers/\d+/.*fc1"),
        *cuts.rows(r".*/layers/\d+/.*fc2"),
    ),
    # Of SiglipModel: the text tower, the scale of similarities, and the pooling head.
    other_heads=(r"text_model\..*", r"logit_(scale|bias)", r"vision_model\.head\..*"),
)
