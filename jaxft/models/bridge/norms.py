"""Batch norms of a bridged module, in place of torch's own: with kept statistics, or over a batch.

torch would take padding for examples, see one device's share under pmap, and write into its buffers. Here
the statistics are those of the native families' norms: over all examples of all devices, and their moments
are left for `move_statistics`. As there, norms compute in fp32 and return the dtype of their input.
"""

from typing import Any

import jax
import jax.numpy as jnp
import torch
import torchax
from torch.overrides import TorchFunctionMode

from jaxft.models.layers.batch_norm import Moments, Sample, taken

# The share by which PyTorch's norms move what is kept; another one is refused.
MOMENTUM = 0.1


class BatchNorms(TorchFunctionMode):
    """Answers torch's batch_norm.

    Args:
        sample: the examples that count; None: all norms keep the statistics that they have.
        paths: name of a running mean of the module -> path of its norm in the model's tree. Norms that
            are not in it keep theirs.

    Attributes:
        tensors: what the module's buffers are during this trace, by name; set by `trace.run`.
        moments: what the norms found, by path, once the module has run.
    """

    def __init__(self, sample: Sample | None, paths: dict[str, str]):
        super().__init__()
        self.sample, self.paths = sample, paths
        self.tensors: dict[str, Any] = {}
        self.moments: dict[str, Moments] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.batch_norm:
            return func(*args, **(kwargs or {}))
        return self._batch_norm(*args, **(kwargs or {}))

    def _batch_norm(
        self, x: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
        training: bool = False, momentum: float = MOMENTUM, eps: float = 1e-5,
    ) -> Any:  # fmt: skip
        if running_mean is None:  # a norm that keeps no statistics
            return torch.nn.functional.batch_norm(
                x, None, None, weight, bias, training, momentum, eps
            )
        env = torchax.default_env()
        scale, shift = (None if y is None else env.t2j_iso(y) for y in (weight, bias))
        values, mean, variance = (env.t2j_iso(y) for y in (x, running_mean, running_var))
        last = jnp.moveaxis(values, 1, -1).astype(jnp.float32)  # channels, wherever the others are
        name = next((n for n in self.paths if self.tensors.get(n) is running_mean), None)
        if name is not None and self.sample is not None:
            if momentum != MOMENTUM:
                raise ValueError(f"a batch norm has momentum {momentum}; implemented is {MOMENTUM}")
            flat = last.reshape(last.shape[0], -1, 1, last.shape[-1])
            mean, variance, self.moments[self.paths[name]] = taken(flat, mean, self.sample)
        factor = jax.lax.rsqrt(variance + eps) * (1 if scale is None else scale)
        out = (last - mean) * factor + (0 if shift is None else shift)
        return env.j2t_iso(jnp.moveaxis(out, -1, 1).astype(values.dtype))
