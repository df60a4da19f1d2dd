"""ResNet (He et al., 2015, arXiv:1512.03385) with a classification head, on images of any size.

Attributes are named as in checkpoints of HF's ResNetForImageClassification, so parameter paths are
checkpoint names. Feature maps are [B, H, W, C], kernels [H, W, in, out]; a depth is a residual layer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
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
    Outputs,
    depth_rules,
)
from jaxft.models.heads import every_token
from jaxft.models.layers import modules, ops
from jaxft.models.layers.batch_norm import BatchNorm, Moments, Sample
from jaxft.models.layers.convolution import Convolution, Normed, max_pool, residual

_REDUCTION = 4  # of the channels between the 1 x 1 convolutions of a bottleneck
# Of HF's ResNetBackbone, which other models stand on.
_IGNORED = frozenset({"stage_names", "out_features", "out_indices"})
_RULES = {
    "embedding_size": config_json.RULES["hidden_size"],
    "hidden_sizes": config_json.each(config_json.whole(config_json.SIZE, least=_REDUCTION)),
    "depths": config_json.each(config_json.RULES["num_hidden_layers"]),
    "layer_type": config_json.Rule(lambda x: x in ("basic", "bottleneck"), "basic or bottleneck"),
    "downsample_in_first_stage": config_json.FLAG,
    "downsample_in_bottleneck": config_json.FLAG,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What changes the logits in HF's ResNetConfig, with its defaults."""

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every key with a value that is not implemented or not possible."""
        config = config_json.fields(cls, raw, ignored=_IGNORED, rules=_RULES, check=_stages_fit)
        sizes, depths = tuple(config.hidden_sizes), tuple(config.depths)
        return dataclasses.replace(config, hidden_sizes=sizes, depths=depths)


def _stages_fit(config: Config) -> list[str]:
    if len(config.hidden_sizes) != len(config.depths):
        return [f"hidden_sizes has {len(config.hidden_sizes)} stages, depths {len(config.depths)}"]
    return []


class ConvLayer(nnx.Module):
    """A convolution and its norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        path: str,
        rngs: nnx.Rngs,
        size: int = 3,
        stride: int = 1,
    ):
        self.convolution = Convolution(inputs, outputs, size=size, stride=stride, rngs=rngs)
        self.normalization = BatchNorm(outputs, path=f"{path}/normalization")

    @property
    def normed(self) -> Normed:
        return self.convolution, self.normalization


class Embeddings(nnx.Module):
    """A convolution of 7 x 7 and a maximum of 3 x 3, each with stride 2."""

    def __init__(self, config: Config, *, path: str, rngs: nnx.Rngs):
        self.embedder = ConvLayer(
            config.num_channels,
            config.embedding_size,
            path=f"{path}/embedder",
            rngs=rngs,
            size=7,
            stride=2,
        )
        self.activation = config.hidden_act
        self.channels = config.num_channels

    def __call__(
        self, images: jax.Array, sample: Sample | None
    ) -> tuple[jax.Array, dict[str, Moments]]:
        if images.shape[-1] != self.channels:
            raise ValueError(
                f"pixel_values have {images.shape[-1]} channels, but the checkpoint takes {self.channels}"
            )
        convolution, norm = self.embedder.normed
        x, moments = norm(convolution(images.astype(jnp.float32)), sample)
        return max_pool(ops.ACTIVATIONS[self.activation](x), 3, 2, padding=1), moments


def _basic(
    inputs: int, outputs: int, config: Config, *, stride: int, path: str, rngs: nnx.Rngs
) -> list[ConvLayer]:
    return [
        ConvLayer(inputs, outputs, path=f"{path}/0", rngs=rngs, stride=stride),
        ConvLayer(outputs, outputs, path=f"{path}/1", rngs=rngs),
    ]


def _bottleneck(
    inputs: int, outputs: int, config: Config, *, stride: int, path: str, rngs: nnx.Rngs
) -> list[ConvLayer]:
    inner = outputs // _REDUCTION
    first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
    return [
        ConvLayer(inputs, inner, path=f"{path}/0", rngs=rngs, size=1, stride=first),
        ConvLayer(inner, inner, path=f"{path}/1", rngs=rngs, stride=second),
        ConvLayer(inner, outputs, path=f"{path}/2", rngs=rngs, size=1),
    ]


_LAYERS: dict[str, Callable[..., list[ConvLayer]]] = {"basic": _basic, "bottleneck": _bottleneck}


class Residual(nnx.Module):
    """activation(layers(x) + x), with x projected where its shape changes."""

    def __init__(
        self, inputs: int, outputs: int, config: Config, *, stride: int, path: str, rngs: nnx.Rngs
    ):
        shortcut = functools.partial(
            ConvLayer, path=f"{path}/shortcut", rngs=rngs, size=1, stride=stride
        )
        changes = inputs != outputs or stride != 1
        self.shortcut = shortcut(inputs, outputs) if changes else None
        layers = _LAYERS[config.layer_type]
        self.layer = nnx.List(
            layers(inputs, outputs, config, stride=stride, path=f"{path}/layer", rngs=rngs)
        )
        self.activation = config.hidden_act

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        layers = [layer.normed for layer in self.layer]
        shortcut = None if self.shortcut is None else self.shortcut.normed
        activation = ops.ACTIVATIONS[self.activation]
        (branch,), hidden, sample = context.branches(1), carry["hidden"], context.sample
        x, moments = residual(hidden, layers, shortcut, activation, sample, branch)
        return {**carry, "hidden": x}, {"moments": moments}


class Stage(nnx.Module):
    """Residual layers of one width, of which the first may halve height and width."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        depth: int,
        config: Config,
        *,
        stride: int,
        path: str,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(
            [
                Residual(
                    outputs if number else inputs,
                    outputs,
                    config,
                    stride=1 if number else stride,
                    path=f"{path}/layers/{number}",
                    rngs=rngs,
                )
                for number in range(depth)
            ]
        )


class Encoder(nnx.Module):
    def __init__(self, config: Config, *, path: str, rngs: nnx.Rngs):
        widths = (config.embedding_size, *config.hidden_sizes)
        first = 2 if config.downsample_in_first_stage else 1
        self.stages = nnx.List(
            [
                Stage(
                    widths[number],
                    widths[number + 1],
                    depth,
                    config,
                    stride=2 if number else first,
                    path=f"{path}/stages/{number}",
                    rngs=rngs,
                )
                for number, depth in enumerate(config.depths)
            ]
        )


class ResNet(nnx.Module):
    """The carry holds hidden [B, H, W, C]."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.embedder = Embeddings(config, path="resnet/embedder", rngs=rngs)
        self.encoder = Encoder(config, path="resnet/encoder", rngs=rngs)

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        hidden, moments = self.embedder(batch["pixel_values"], context.sample)
        return {"hidden": hidden, "moments": moments}

    @property
    def blocks(self) -> list[Residual]:
        return [layer for stage in self.encoder.stages for layer in stage.layers]

    def finish(self, hidden: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, 1, C], the mean over the image."""
        return hidden.mean((1, 2))[:, None]


class ImageClassifier(nnx.Module):
    """HF's `classifier` is a list, whose first entry flattens and has no parameters."""

    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        width = config.hidden_sizes[-1]
        # The spread of torch's linear layers.
        linear = modules.Linear(width, num_labels, std=1 / math.sqrt(3 * width), rngs=rngs)
        self.classifier: nnx.List[Any] = nnx.List([None, linear])

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, 1, C] -> logits [B, labels]."""
        return {"logits": self.classifier[1](hidden[:, 0])}


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (
        rf"resnet/encoder/stages/{stage}/layers/{n}/.*"
        for stage, depth in enumerate(config.depths)
        for n in range(depth)
    )
    return depth_rules(r"resnet/embedder/.*", blocks, r"classifier/.*")


FAMILY = Family(
    model_type="resnet",
    config=Config,
    dropouts=(),
    limits=lambda config: ImageLimits(None, None, config.num_channels),
    base="resnet",
    backbone=lambda config, kind, rngs: ResNet(config, rngs=rngs),
    heads={
        "image": Head(
            "ResNetForImageClassification", ImageClassifier, every_token, classifier="classifier/1"
        )
    },
    depth_rules=_depth_rules,
    tensor_rules=lambda config: (),
)
