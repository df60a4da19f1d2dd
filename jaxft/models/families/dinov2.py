"""DINOv2 (Oquab et al., 2023, arXiv:2304.07193) with a classification head.

Attributes are named as in checkpoints of HF's Dinov2ForImageClassification, so parameter paths are
checkpoint names. Position embeddings are not interpolated: images must be of `image_size`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

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
    depth_rules,
)
from jaxft.models.heads import every_token
from jaxft.models.layers import modules, ops, vision
from jaxft.models.layers.patches import pair

# Of Dinov2Backbone, and the token of masked patches, which are not used here.
_IGNORED = frozenset(
    {"stage_names", "out_features", "out_indices", "apply_layernorm", "reshape_hidden_states"}
    | {"use_mask_token"}
)
_RULES = {
    "mlp_ratio": config_json.whole(1000),
    "layerscale_value": config_json.number(-1000, 1000, "a number between -1,000 and 1,000"),
    "drop_path_rate": config_json.RATE,
    "use_swiglu_ffn": config_json.FLAG,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's Dinov2Config, with its defaults."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0  # of the embeddings
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 14
    num_channels: int = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0  # of every layer
    use_swiglu_ffn: bool = False

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        config = config_json.fields(cls, raw, ignored=_IGNORED, rules=_RULES, check=_sizes_fit)
        return dataclasses.replace(config, image_size=config.image, patch_size=config.patch)

    @property
    def image(self) -> tuple[int, int]:
        return pair(self.image_size)

    @property
    def patch(self) -> tuple[int, int]:
        return pair(self.patch_size)

    @property
    def wide(self) -> int:
        """Values between the maps of the feed-forward part; of each of the two maps of SwiGLU."""
        width = self.hidden_size * self.mlp_ratio
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width


def _sizes_fit(config: Config) -> list[str]:
    wrong = config_json.patches_fit(config)
    if config.image[0] != config.image[1]:  # HF interpolates the positions of all others
        wrong.append(f"image_size {config.image} is not square")
    return wrong


class LayerScale(nnx.Module):
    def __init__(self, config: Config):
        self.lambda1 = nnx.Param(jnp.full(config.hidden_size, float(config.layerscale_value)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.lambda1[...].astype(x.dtype)


class MLP(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range
        self.fc1 = modules.Linear(width, config.wide, std=std, rngs=rngs)
        self.fc2 = modules.Linear(config.wide, width, std=std, rngs=rngs)
        self.activation = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(ops.ACTIVATIONS[self.activation](self.fc1(x)))


class SwiGLU(nnx.Module):
    """Shazeer, 2020, arXiv:2002.05202; gate and value in one map, as in the files."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range
        self.weights_in = modules.Linear(width, 2 * config.wide, std=std, rngs=rngs)
        self.weights_out = modules.Linear(config.wide, width, std=std, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(self.weights_in(x), 2, axis=-1)
        return self.weights_out(jax.nn.silu(gate) * value)


class Block(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.norm1 = modules.LayerNorm(width, epsilon=epsilon)
        self.attention = vision.Attention(config, rngs=rngs)
        self.layer_scale1 = LayerScale(config)
        self.norm2 = modules.LayerNorm(width, epsilon=epsilon)
        self.mlp = SwiGLU(config, rngs=rngs) if config.use_swiglu_ffn else MLP(config, rngs=rngs)
        self.layer_scale2 = LayerScale(config)

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        hidden = carry["hidden"]
        first, second = context.branches(2)
        tokens = self.norm1(hidden)
        hidden = hidden + first(self.layer_scale1(self.attention(tokens, tokens, context.seed)))
        hidden = hidden + second(self.layer_scale2(self.mlp(self.norm2(hidden))))
        return {**carry, "hidden": hidden}, {}


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layer = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)])


class Dinov2(nnx.Module):
    """The carry holds hidden [B, N + 1, D], the class token first."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.embeddings = vision.Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.layernorm = modules.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        return {"hidden": self.embeddings(batch["pixel_values"], context.seed)}

    @property
    def blocks(self) -> nnx.List:
        return self.encoder.layer

    def finish(self, hidden: jax.Array) -> jax.Array:
        return self.layernorm(hidden)


class Classifier(nnx.Module):
    """One linear map of the class token and the mean of the patches."""

    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        std = config.initializer_range
        self.classifier = modules.Linear(2 * config.hidden_size, num_labels, std=std, rngs=rngs)

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, N + 1, D] -> logits [B, C]."""
        both = jnp.concatenate([hidden[:, 0], hidden[:, 1:].mean(1)], axis=-1)
        return {"logits": self.classifier(both)}


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (rf"dinov2/encoder/layer/{n}/.*" for n in range(config.num_hidden_layers))
    return depth_rules(
        r"dinov2/embeddings/.*", blocks, r"classifier/.*", last=r"dinov2/layernorm/.*"
    )


def _limits(config: Config) -> ImageLimits:
    return ImageLimits(*config.image, config.num_channels)


FAMILY = Family(
    model_type="dinov2",
    config=Config,
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    left_out=lambda config, blocks: (config.drop_path_rate,) * blocks,
    limits=_limits,
    base="dinov2",
    backbone=lambda config, kind, rngs: Dinov2(config, rngs=rngs),
    heads={"image": Head("Dinov2ForImageClassification", Classifier, every_token)},
    depth_rules=_depth_rules,
    tensor_rules=lambda config: (
        *cuts.encoder(config.num_attention_heads),
        *cuts.columns(".*/mlp/fc1"),
        *cuts.rows(".*/mlp/(fc2|weights_out)"),
    ),
    other_heads=(r"(dinov2\.)?embeddings\.mask_token",),
    # As vision.ALIASES, for the state dict of a live model; its SwiGLU has other tensors.
    aliases=vision.ATTENTION_ALIASES,
)
