"""VGG (Simonyan and Zisserman, 2015, arXiv:1409.1556), with and without batch norms, on images of any size.

Attributes are named as in timm's checkpoints or, in the family TORCHVISION, as in torchvision's; the
two differ in the head: convolutions there, linear layers here. Feature maps are [B, H, W, C].

As in timm's parameter groups, a depth is one module of `features` that has parameters, so a batch norm
is one of its own, and the two layers before the classifier belong to the head.
"""

import dataclasses
import itertools
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
from jaxft.models.layers.convolution import Convolution, adaptive_mean, max_pool

_WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages, a maximum of 2 x 2 after each
_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_SIZE = 7  # height and width of the maps that the head takes
_HIDDEN = 4096
_RULES = {
    "in_chans": config_json.RULES["num_channels"],
    "mlp_ratio": config_json.number(1 / _HIDDEN, 16, "a number from 1/4096 to less than 16"),
    "drop_rate": config_json.RATE,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Arguments of timm's VGG, with its defaults, and which of the models it is."""

    depths: tuple[int, ...] = _DEPTHS[16]  # convolutions of each stage
    norm: bool = False
    in_chans: int = 3
    mlp_ratio: float = 1.0  # hidden values of the head, over those that the classifier takes
    drop_rate: float = 0.0

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Config":
        """Raises ValueError for every argument that is not implemented or not possible."""
        sizes = {name: raw[name] for name in ("depths", "norm") if name in raw}
        given = {name: value for name, value in raw.items() if name not in sizes}
        return dataclasses.replace(config_json.fields(cls, given, rules=_RULES), **sizes)

    @property
    def hidden(self) -> int:
        return int(_HIDDEN * self.mlp_ratio)

    @property
    def layout(self) -> list["Layer"]:
        """The modules of `features` that have parameters, in order."""
        layers, index, width = [], 0, self.in_chans
        for stage, (count, outputs) in enumerate(zip(self.depths, _WIDTHS, strict=True)):
            for number in range(count):
                pool = stage > 0 and number == 0
                layers.append(Layer(index, width, outputs, pool=pool, relu=not self.norm))
                if self.norm:
                    layers.append(Layer(index + 1, None, outputs, pool=False, relu=True))
                index, width = index + 2 + self.norm, outputs
            index += 1
        return layers


@dataclasses.dataclass(frozen=True)
class Layer:
    """One module of `features`.

    Attributes:
        index: its number there, where the modules without parameters count.
        inputs: channels; None: it is a batch norm.
        pool: a maximum of 2 x 2 comes before it.
        relu: a ReLU comes after it.
    """

    index: int
    inputs: int | None
    outputs: int
    pool: bool
    relu: bool

    def module(self, rngs: nnx.Rngs) -> Convolution | BatchNorm:
        if self.inputs is None:
            return BatchNorm(self.outputs, path=f"features/{self.index}")
        return Convolution(self.inputs, self.outputs, size=3, use_bias=True, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Block:
    """A layer and its module."""

    layer: Layer
    module: Convolution | BatchNorm

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]:
        x, kept = carry["hidden"], Kept()
        if self.layer.pool:
            x = max_pool(x, 2, 2)
        if isinstance(self.module, BatchNorm):
            x, kept["moments"] = self.module(x, context.sample)
        else:
            x = self.module(x)
        return {**carry, "hidden": jax.nn.relu(x) if self.layer.relu else x}, kept


class VGG(nnx.Module):
    """The carry holds hidden [B, H, W, C]."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.layers = tuple(config.layout)
        modules = {layer.index: layer.module(rngs) for layer in self.layers}
        self.features: nnx.List[Any] = nnx.List([modules.get(i) for i in range(max(modules) + 1)])
        self.channels = config.in_chans

    def stem(self, batch: Mapping[str, jax.Array], context: Context) -> Carry:
        images = batch["pixel_values"]
        _, height, width, channels = images.shape
        if channels != self.channels or min(height, width) < (least := 2 ** len(_WIDTHS)):
            raise ValueError(
                f"pixel_values are (height, width, channels) = {(height, width, channels)}, but the "
                f"checkpoint takes {self.channels} channels and at least {least} x {least}"
            )
        carry, _ = self._blocks[0]({"hidden": images.astype(jnp.float32)}, context)
        return carry

    @property
    def _blocks(self) -> list[Block]:
        return [Block(layer, self.features[layer.index]) for layer in self.layers]

    @property
    def blocks(self) -> list[Block]:
        return self._blocks[1:]

    def finish(self, hidden: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H / 2, W / 2, C], the maximum after the last stage."""
        return max_pool(hidden, 2, 2)


class Hidden(nnx.Module):
    """The layers before the classifier, as convolutions of which the first takes 7 x 7."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.fc1 = Convolution(
            _WIDTHS[-1], config.hidden, size=_SIZE, padding=0, use_bias=True, rngs=rngs
        )
        self.fc2 = Convolution(config.hidden, _HIDDEN, size=1, use_bias=True, rngs=rngs)
        self.rate = config.drop_rate

    def __call__(self, x: jax.Array, seed: ops.Seed) -> jax.Array:
        """[B, H, W, C] -> [B, H - 6, W - 6, D]; smaller maps than 7 x 7 are widened to that."""
        x = adaptive_mean(x, max(_SIZE, x.shape[1]), max(_SIZE, x.shape[2]))
        return jax.nn.relu(self.fc2(ops.dropout(jax.nn.relu(self.fc1(x)), self.rate, seed)))


class FullyConnected(nnx.Module):
    def __init__(self, num_labels: int, *, rngs: nnx.Rngs):
        self.fc = modules.Linear(_HIDDEN, num_labels, std=0.01, rngs=rngs)


class TimmClassifier(nnx.Module):
    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        self.pre_logits = Hidden(config, rngs=rngs)
        self.head = FullyConnected(num_labels, rngs=rngs)
        self.rate = config.drop_rate

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, H, W, C] -> logits [B, labels]."""
        first, second = ops.split(seed, 2)
        pooled = self.pre_logits(hidden, first).mean((1, 2))
        return {"logits": self.head.fc(ops.dropout(pooled, self.rate, second))}


class TorchvisionClassifier(nnx.Module):
    """Three linear layers in a list, among layers without parameters."""

    def __init__(self, config: Config, num_labels: int, rngs: nnx.Rngs):
        widths = (_SIZE * _SIZE * _WIDTHS[-1], config.hidden, _HIDDEN, num_labels)
        # The spread that torchvision gives linear layers.
        first, second, last = (
            modules.Linear(inputs, outputs, std=0.01, rngs=rngs)
            for inputs, outputs in itertools.pairwise(widths)
        )
        self.classifier: nnx.List[Any] = nnx.List([first, None, None, second, None, None, last])
        self.rate = config.drop_rate

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """[B, H, W, C] -> logits [B, labels]; the maps become 7 x 7 by means."""
        x = adaptive_mean(hidden, _SIZE, _SIZE).transpose(0, 3, 1, 2)  # the order of its weights
        x = x.reshape(len(x), math.prod(x.shape[1:]))
        for index, own in zip((0, 3), ops.split(seed, 2), strict=True):
            x = ops.dropout(jax.nn.relu(self.classifier[index](x)), self.rate, own)
        return {"logits": self.classifier[6](x)}


def _depth_rules(config: Config) -> tuple[tuple[str, int], ...]:
    first, *rest = (rf"features/{layer.index}/.*" for layer in config.layout)
    return depth_rules(first, rest, r"(pre_logits|head|classifier)/.*")


_SIZES: dict[str, dict[str, Any]] = {
    f"vgg{count}{'_bn' if norm else ''}": {"depths": depths, "norm": norm}
    for count, depths in _DEPTHS.items()
    for norm in (False, True)
}

FAMILY = Family(
    model_type="vgg",
    config=Config,
    dropouts=("drop_rate",),
    left_out=None,
    limits=lambda config: ImageLimits(None, None, config.in_chans),
    base="",
    backbone=lambda config, kind, rngs: VGG(config, rngs=rngs),
    heads={"image": Head("VGG", TimmClassifier, every_token, classifier="head/fc")},
    depth_rules=_depth_rules,
    tensor_rules=lambda config: (),
    timm=_SIZES,
)
TORCHVISION = dataclasses.replace(
    FAMILY,
    heads={"image": Head("VGG", TorchvisionClassifier, every_token, classifier="classifier/6")},
    timm={name: {**sizes, "drop_rate": 0.5} for name, sizes in _SIZES.items()},
)
