"""ResNet (He et al., 2015, arXiv:1512.03385) as timm and torchvision name it, on images of any size.

Bottlenecks are those of version 1.5, which halve in the 3 x 3 convolution. The arithmetic is that of
resnet.py. Feature maps are [B, H, W, C]; a depth is a residual layer, as in timm's parameter groups.
"""

import dataclasses
import math
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
    Outputs,
    depth_rules,
)
from jaxft.models.heads import every_token
from jaxft.models.layers import modules, ops
from jaxft.models.layers.batch_norm import BatchNorm
from jaxft.models.layers.convolution import Convolution, Normed, max_pool, residual

_STAGES = 4
_STEM = 64  # channels after the first convolution
_EXPANSION = 4  # of the channels by a bottleneck's last convolution
_RULES = {
    "layers": config_json.each(config_json.RULES["num_hidden_layers"]),
    "channels": config_json.each(config_json.whole(config_json.SIZE // _EXPANSION)),
    "in_chans": config_json.RULES["num_channels"],
    "zero_init_last": config_json.FLAG,
    "drop_rate": config_json.RATE,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Arguments of timm's ResNet, with its defaults, and which of the two blocks it has."""

    layers: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    channels: tuple[int, ...] = (64, 128, 256, 512)
    in_chans: int = 3
    zero_init_last: bool = True  # a new residual layer begins as the identity
    drop_rate: float = 0.0

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every argument that is not implemented or not possible."""
        given = {name: value for name, value in raw.items() if name != "bottleneck"}
        config = config_json.fields(cls, given, rules=_RULES, check=_stages_fit)
        sizes = {"layers": tuple(config.layers), "channels": tuple(config.channels)}
        return dataclasses.replace(config, bottleneck=raw.get("bottleneck", True), **sizes)

    @property
    def width(self) -> int:
        """Values that the classifier takes."""
        return self.channels[-1] * (_EXPANSION if self.bottleneck else 1)


def _stages_fit(config: Config) -> list[str]:
    given = {"layers": len(config.layers), "channels": len(config.channels)}
    return [
        f"{name} has {count} stages, not {_STAGES}"
        for name, count in given.items()
        if count != _STAGES
    ]


class Block(nnx.Module):
    """One residual layer."""

    def __init__(
        self, inputs: int, channels: int, config: Config, *, stride: int, path: str, rngs: nnx.Rngs
    ):
        outputs = channels * (_EXPANSION if config.bottleneck else 1)

        def normed(name: str, inputs: int, outputs: int, size: int, stride: int = 1) -> Normed:
            convolution = Convolution(inputs, outputs, size=size, stride=stride, rngs=rngs)
            return convolution, BatchNorm(outputs, path=f"{path}/{name}")

        if config.bottleneck:
            self.conv1, self.bn1 = normed("bn1", inputs, channels, 1)
            self.conv2, self.bn2 = normed("bn2", channels, channels, 3, stride)
            self.conv3, self.bn3 = normed("bn3", channels, outputs, 1)
        else:
            self.conv1, self.bn1 = normed("bn1", inputs, channels, 3, stride)
            self.conv2, self.bn2 = normed("bn2", channels, outputs, 3)
        self.bottleneck = config.bottleneck
        if config.zero_init_last:
            last = self.bn3 if config.bottleneck else self.bn2
            last.scale = nnx.Param(jnp.zeros(outputs))
        changes = inputs != outputs or stride != 1
        self.downsample: nnx.List[Any] | None = (
            nnx.List(normed("downsample/1", inputs, outputs, 1, stride)) if changes else None
        )

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        layers = [(self.conv1, self.bn1), (self.conv2, self.bn2)]
        if self.bottleneck:
            layers.append((self.conv3, self.bn3))
        shortcut = None if self.downsample is None else (self.downsample[0], self.downsample[1])
        (branch,), hidden, sample = context.branches(1), carry["hidden"], context.sample
        x, moments = residual(hidden, layers, shortcut, jax.nn.relu, sample, branch)
        return {**carry, "hidden": x}, {"moments": moments}


class ResNet(nnx.Module):
    """The carry holds hidden [B, H, W, C]. Its stages are `layer1`, `layer2`, …"""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.conv1 = Convolution(config.in_chans, _STEM, size=7, stride=2, rngs=rngs)
        self.bn1 = BatchNorm(_STEM, path="bn1")
        self.channels = config.in_chans
        inputs, expansion = _STEM, _EXPANSION if config.bottleneck else 1
        for stage, (count, width) in enumerate(zip(config.layers, config.channels, strict=True)):
            layers = []
            for number in range(count):
                stride, path = 2 if stage and not number else 1, f"layer{stage + 1}/{number}"
                layers.append(Block(inputs, width, config, stride=stride, path=path, rngs=rngs))
                inputs = width * expansion
            setattr(self, f"layer{stage + 1}", nnx.List(layers))

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        images = batch["pixel_values"]
        if images.shape[-1] != self.channels:
            raise ValueError(
                f"pixel_values have {images.shape[-1]} channels, but the checkpoint takes {self.channels}"
            )
        x, moments = self.bn1(self.conv1(images.astype(jnp.float32)), context.sample)
        return {"hidden": max_pool(jax.nn.relu(x), 3, 2, padding=1), "moments": moments}

    @property
    def blocks(self) -> list[Block]:
        stages = (getattr(self, f"layer{stage + 1}") for stage in range(_STAGES))
        return [block for stage in stages for block in stage]

    def finish(self, hidden: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, 1, C], the mean over the image."""
        return hidden.mean((1, 2))[:, None]


class Classifier(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        # The spread of torch's linear layers.
        std = 1 / math.sqrt(3 * config.width)
        self.fc = modules.Linear(config.width, num_labels, std=std, rngs=rngs)
        self.rate = config.drop_rate

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, 1, C] -> logits [B, labels]."""
        return {"logits": self.fc(ops.dropout(hidden[:, 0], self.rate, seed))}


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    blocks = (
        rf"layer{stage}/{number}/.*"
        for stage, count in enumerate(config.layers, start=1)
        for number in range(count)
    )
    return depth_rules(r"(conv1|bn1)/.*", blocks, r"fc/.*")


_LAYERS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet26": ((2, 2, 2, 2), True),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}

FAMILY = Family(
    model_type="timm's resnet",
    config=Config,
    dropouts=("drop_rate",),
    limits=lambda config: ImageLimits(None, None, config.in_chans),
    base="",
    backbone=lambda config, kind, rngs: ResNet(config, rngs=rngs),
    heads={"image": Head("ResNet", Classifier, every_token, classifier="fc")},
    depth_rules=_depth_rules,
    tensor_rules=lambda config: (),
    timm={
        name: {"layers": layers, "bottleneck": bottleneck}
        for name, (layers, bottleneck) in _LAYERS.items()
    },
)
