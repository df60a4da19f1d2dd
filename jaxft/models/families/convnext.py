"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545) with a classification head, on images of any size.

Attributes are named as in checkpoints of HF's ConvNextForImageClassification, so parameter paths are
checkpoint names. Feature maps are [B, H, W, C]; a depth is a layer, and what halves the maps before a
stage has the depth of the stage's first layer, as in timm's parameter groups.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.models import cuts
from jaxft.models.checkpoint import config_json
from jaxft.models.family import Carry, Context, Family, Head, ImageLimits, Kept, depth_rules
from jaxft.models.heads import ImageClassifier, every_token
from jaxft.models.layers import modules, ops
from jaxft.models.layers.convolution import Convolution
from jaxft.models.layers.patches import Projection, pair
from jaxft.models.layers.stochastic_depth import Branch

_EPSILON = 1e-6  # of every norm but the last
# Of HF's ConvNextBackbone; and the size of images that it was trained on, which may be another here.
_IGNORED = frozenset({"stage_names", "out_features", "out_indices", "image_size"})
_RULES = {
    "num_stages": config_json.whole(64),
    "hidden_sizes": config_json.each(config_json.whole(config_json.SIZE)),
    "depths": config_json.each(config_json.RULES["num_hidden_layers"]),
    "layer_scale_init_value": config_json.number(0, 1000, "a number from 0 to less than 1,000"),
    "drop_path_rate": config_json.RATE,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits or their initial values in HF's ConvNextConfig, with its defaults."""

    num_channels: int = 3
    patch_size: int | tuple[int, int] = 4
    num_stages: int = 4
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    layer_scale_init_value: float = 1e-6  # 0: no such parameters
    drop_path_rate: float = 0.0  # of the last layer; the first has 0

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        config = config_json.fields(cls, raw, ignored=_IGNORED, rules=_RULES, check=_stages_fit)
        sizes = {"hidden_sizes": tuple(config.hidden_sizes), "depths": tuple(config.depths)}
        return dataclasses.replace(config, patch_size=pair(config.patch_size), **sizes)

    @property
    def patch(self) -> tuple[int, int]:
        return pair(self.patch_size)

    @property
    def hidden_size(self) -> int:
        """Channels that the classifier takes."""
        return self.hidden_sizes[-1]


def _stages_fit(config: Config) -> list[str]:
    counts = {"hidden_sizes": len(config.hidden_sizes), "depths": len(config.depths)}
    return [
        f"{name} has {count} stages, num_stages is {config.num_stages}"
        for name, count in counts.items()
        if count != config.num_stages
    ]


class Embeddings(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width = config.hidden_sizes[0]
        self.patch_embeddings = Projection(
            config.patch, config.num_channels, width, std=config.initializer_range, rngs=rngs
        )
        self.layernorm = modules.LayerNorm(width, epsilon=_EPSILON)
        # Each further stage halves the maps.
        self.least = tuple(side * 2 ** (config.num_stages - 1) for side in config.patch)

    def __call__(self, images: jax.Array) -> jax.Array:
        _, height, width, channels = images.shape
        takes = self.patch_embeddings.kernel.shape[2]
        if channels != takes or height < self.least[0] or width < self.least[1]:
            raise ValueError(
                f"pixel_values are (height, width, channels) = {(height, width, channels)}, but the "
                f"checkpoint takes {takes} channels and at least {self.least[0]} x {self.least[1]}"
            )
        return self.layernorm(self.patch_embeddings(images.astype(jnp.float32)))


class Layer(nnx.Module):
    """x + scale * MLP(norm(depthwise convolution(x))), which training may leave out of an example."""

    def __init__(self, width: int, config: Config, *, rngs: nnx.Rngs):
        std = config.initializer_range
        self.dwconv = Convolution(
            width, width, size=7, use_bias=True, depthwise=True, std=std, rngs=rngs
        )
        self.layernorm = modules.LayerNorm(width, epsilon=_EPSILON)
        self.pwconv1 = modules.Linear(width, 4 * width, std=std, rngs=rngs)
        self.pwconv2 = modules.Linear(4 * width, width, std=std, rngs=rngs)
        scale = config.layer_scale_init_value
        self.layer_scale_parameter = nnx.Param(jnp.full(width, scale)) if scale > 0 else None
        self.activation = config.hidden_act

    def __call__(self, x: jax.Array, branch: Branch) -> jax.Array:
        wide = self.pwconv1(self.layernorm(self.dwconv(x)))
        update = self.pwconv2(ops.ACTIVATIONS[self.activation](wide))
        if self.layer_scale_parameter is not None:
            update = update * self.layer_scale_parameter[...].astype(x.dtype)
        return x + branch(update)


class Stage(nnx.Module):
    """Layers of one width, and a norm and a convolution before them that halve the maps."""

    def __init__(
        self,
        inputs: int,
        width: int,
        depth: int,
        config: Config,
        *,
        halve: bool,
        rngs: nnx.Rngs,
    ):
        downsampling: list[Any] = []
        if halve or inputs != width:
            norm = modules.LayerNorm(inputs, epsilon=_EPSILON)
            std = config.initializer_range
            downsampling = [norm, Projection((2, 2), inputs, width, std=std, rngs=rngs)]
        self.downsampling_layer: nnx.List[Any] = nnx.List(downsampling)
        self.layers = nnx.List([Layer(width, config, rngs=rngs) for _ in range(depth)])


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        inputs, stages = config.hidden_sizes[0], []
        for number, (width, depth) in enumerate(
            zip(config.hidden_sizes, config.depths, strict=True)
        ):
            stages.append(Stage(inputs, width, depth, config, halve=number > 0, rngs=rngs))
            inputs = width
        self.stages = nnx.List(stages)


@dataclasses.dataclass(frozen=True)
class Block:
    """A layer, and what halves the maps before it."""

    downsampling: tuple[Any, ...]
    layer: Layer

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        x = carry["hidden"]
        for module in self.downsampling:
            x = module(x)
        (branch,) = context.branches(1)
        return {**carry, "hidden": self.layer(x, branch)}, {}


class ConvNext(nnx.Module):
    """The carry holds hidden [B, H, W, C]."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.layernorm = modules.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        return {"hidden": self.embeddings(batch["pixel_values"])}

    @property
    def blocks(self) -> list[Block]:
        return [
            Block(() if number else tuple(stage.downsampling_layer), layer)
            for stage in self.encoder.stages
            for number, layer in enumerate(stage.layers)
        ]

    def finish(self, hidden: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, 1, C], the norm of the mean over the image."""
        return self.layernorm(hidden.mean((1, 2)))[:, None]


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (
        rf"convnext/encoder/stages/{stage}/({'' if number else 'downsampling_layer|'}layers/{number})/.*"
        for stage, depth in enumerate(config.depths)
        for number in range(depth)
    )
    return depth_rules(
        r"convnext/embeddings/.*", blocks, r"classifier/.*", last=r"convnext/layernorm/.*"
    )


FAMILY = Family(
    model_type="convnext",
    config=Config,
    dropouts=(),
    left_out=lambda config, blocks: np.linspace(0, config.drop_path_rate, blocks).tolist(),
    limits=lambda config: ImageLimits(None, None, config.num_channels),
    base="convnext",
    backbone=lambda config, kind, rngs: ConvNext(config, rngs=rngs),
    heads={"image": Head("ConvNextForImageClassification", ImageClassifier, every_token)},
    depth_rules=_depth_rules,
    tensor_rules=lambda config: (*cuts.columns(".*/pwconv1"), *cuts.rows(".*/pwconv2")),
)
