"""DeiT (Touvron et al., 2021, arXiv:2012.12877): a ViT with a distillation token beside the class token.

Attributes are named as in checkpoints of HF's DeiTForImageClassification, which classifies by the class
token alone; the two heads of a model with a teacher are not used.
"""

from collections.abc import Mapping

import jax
from flax import nnx

from jaxft.models import cuts
from jaxft.models.families.vit import Config
from jaxft.models.family import Carry, Context, Family, Head, ImageLimits, depth_rules
from jaxft.models.heads import ImageClassifier, first_token
from jaxft.models.layers import modules, vision


class DeiT(nnx.Module):
    """The carry holds hidden [B, N + 2, D], the class token first and the distillation token after it."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        tokens = ("cls_token", "distillation_token")
        self.embeddings = vision.Embeddings(config, tokens=tokens, rngs=rngs)
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
    blocks = (rf"deit/encoder/layer/{n}/.*" for n in range(config.num_hidden_layers))
    return depth_rules(r"deit/embeddings/.*", blocks, r"classifier/.*", last=r"deit/layernorm/.*")


def _limits(config: Config) -> ImageLimits:
    return ImageLimits(*config.image, config.num_channels)


FAMILY = Family(
    model_type="deit",
    config=Config,
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    limits=_limits,
    base="deit",
    backbone=lambda config, kind, rngs: DeiT(config, rngs=rngs),
    heads={"image": Head("DeiTForImageClassification", ImageClassifier, first_token)},
    depth_rules=_depth_rules,
    tensor_rules=lambda config: cuts.encoder(config.num_attention_heads),
    # DeiTModel's pooler, of masked image modelling, and the heads that are trained with a teacher.
    other_heads=(
        r"(deit\.)?pooler\..*",
        r"(deit\.)?embeddings\.mask_token",
        r"decoder\..*",
        r"(cls|distillation)_classifier\..*",
    ),
    aliases=vision.ALIASES,
)
