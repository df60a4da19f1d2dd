"""Vision Transformer (Dosovitskiy et al., 2021, arXiv:2010.11929) with a classification head.

Attributes are named as in checkpoints of HF's ViTForImageClassification, so parameter paths are
checkpoint names. Position embeddings are not interpolated: images must have the checkpoint's size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from jaxft.models import cuts
from jaxft.models.checkpoint import config_json
from jaxft.models.family import (
    Carry,
    Context,
    Family,
    Head,
    ImageLimits,
    depth_rules,
)
from jaxft.models.heads import ImageClassifier, first_token
from jaxft.models.layers import modules, vision
from jaxft.models.layers.patches import pair

# Of ViTModel's pooler and of the masked-image decoder, which are not used here.
_IGNORED = frozenset({"pooler_output_size", "pooler_act", "encoder_stride"})


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
        config = config_json.fields(cls, raw, ignored=_IGNORED, check=config_json.patches_fit)
        return dataclasses.replace(config, image_size=config.image, patch_size=config.patch)

    @property
    def image(self) -> tuple[int, int]:
        return pair(self.image_size)

    @property
    def patch(self) -> tuple[int, int]:
        return pair(self.patch_size)


class ViT(nnx.Module):
    """The carry holds hidden [B, N + 1, D], the class token first."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.embeddings = vision.Embeddings(config, rngs=rngs)
        self.encoder = vision.Encoder(config, rngs=rngs)
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
    tensor_rules=lambda config: cuts.encoder(config.num_attention_heads),
    # ViTModel's pooler, the mask token and decoder of masked image modelling.
    other_heads=(r"(vit\.)?pooler\..*", r"(vit\.)?embeddings\.mask_token", r"decoder\..*"),
    aliases=vision.ALIASES,
)
