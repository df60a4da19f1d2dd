"""Batch normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167), whose statistics no gradient moves.

Numbers are those of torch.nn.BatchNorm2d: the biased variance normalises, the unbiased one is stored, and
the stored statistics move by a tenth at each update.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

_EPSILON = 1e-5
_MOMENTUM = 0.1


class Statistic(nnx.Variable):
    """State of a module that is no parameter: no gradient, no optimizer slot, no decision."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """The examples over which norms take their statistics, in place of those that are kept.

    Attributes:
        present: bool [B], False for padding; None: all are examples.
        axis_name: the mapped axis under pmap, whose devices hold one sample together; None under
            jit, where a batch cut over a mesh is one array and so one sample.
    """

    present: jax.Array | None = None
    axis_name: str | None = dataclasses.field(default=None, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over a sample of values x [..., C] of one norm, of all devices. They can be added.

    About the kept mean m, and not about 0, since a variance is lost in the difference of two large
    numbers where the mean is far from 0.

    Attributes:
        count: values a channel, float32 scalar.
        first: sum of x - m, float32 [C].
        second: sum of (x - m)^2, float32 [C].
    """

    count: jax.Array
    first: jax.Array
    second: jax.Array


def sample_of(batch: Mapping[str, jax.Array], axis_name: str | None) -> Sample:
    """All examples of a batch whose 'weight' [B], if it has one, is not 0."""
    return Sample(batch["weight"] > 0 if "weight" in batch else None, axis_name)


class BatchNorm(nnx.Module):
    """Normalises each channel, the last axis of [B, H, W, C], in fp32; returns the input's dtype.

    Args:
        width: channels.
        path: of this module in the model's tree; names its moments.
    """

    def __init__(self, width: int, *, path: str):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.running_mean = Statistic(jnp.zeros(width))
        self.running_var = Statistic(jnp.ones(width))
        self.num_batches_tracked = Statistic(jnp.zeros((), jnp.int32))
        self.path = path

    def __call__(self, x: jax.Array, sample: Sample | None) -> tuple[jax.Array, dict[str, Moments]]:
        """The normalised `x`, and the moments of the sample by path; {} without a sample."""
        x32, kept = x.astype(jnp.float32), self.running_mean[...]
        if sample is None:
            mean, variance, moments = kept, self.running_var[...], {}
        else:
            mean, variance, found = taken(x32, kept, sample)
            moments = {self.path: found}
        factor = self.scale[...] * lax.rsqrt(variance + _EPSILON)
        return ((x32 - mean) * factor + self.bias[...]).astype(x.dtype), moments


def taken(x: jax.Array, kept: jax.Array, sample: Sample) -> tuple[jax.Array, jax.Array, Moments]:
    """Mean [C] and biased variance [C] of values [B, H, W, C] over a sample, and their moments.

    Args:
        kept: the mean [C] that is kept, about which the moments are.
    """
    count, mean, variance = _statistics(x, sample)
    shift = mean - kept
    second = count * (variance + jnp.square(shift))
    return mean, variance, Moments(count, count * shift, second)


def move_statistics(statistics: Any, moments: Mapping[str, Moments]) -> Any:
    """The kept statistics after an update whose forward passes saw these moments.

    Args:
        statistics: a tree of `BatchNorm`'s statistics at their paths, perhaps with holes.
        moments: by the path of the norm, over all microbatches; a norm that is not in it keeps its
            statistics, as does one that saw no example.
    """

    def moved(where: Any, old: jax.Array) -> jax.Array:
        path, _, name = jax.tree_util.keystr(where, simple=True, separator="/").rpartition("/")
        if path not in moments:
            return old
        count, first = moments[path].count, moments[path].first
        shift = first / jnp.maximum(count, 1)
        unbiased = (moments[path].second - first * shift) / jnp.maximum(count - 1, 1)
        if name == "num_batches_tracked":  # int32
            after = old + 1
        else:
            after = old + _MOMENTUM * (shift if name == "running_mean" else unbiased - old)
        return jnp.where(count > 0, after, old)

    return jax.tree_util.tree_map_with_path(moved, statistics)


def _statistics(x: jax.Array, sample: Sample) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values a channel, their mean [C] and biased variance [C]."""
    rows = jnp.ones(len(x)) if sample.present is None else sample.present.astype(jnp.float32)

    def total(values: jax.Array) -> jax.Array:
        return values if sample.axis_name is None else lax.psum(values, sample.axis_name)

    def mean_of(values: jax.Array) -> jax.Array:
        summed = jnp.einsum("bhwc,b->c", values, rows, precision=lax.Precision.HIGHEST)
        return total(summed) / jnp.maximum(count, 1)

    count = total(rows.sum()) * x.shape[1] * x.shape[2]
    mean = mean_of(x)
    return count, mean, mean_of(jnp.square(x - mean))
