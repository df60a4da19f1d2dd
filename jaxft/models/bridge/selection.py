"""The token that a classifier of an encoder and decoder reads: the last end of a text in its row.

transformers selects all that are marked, by a mask, and takes the last of each row: an array whose size
depends on values, which no compiler has. Where each row has as many, this is the same.
"""

from typing import Any

import jax.numpy as jnp
import torch
import torchax
from torch.overrides import TorchFunctionMode


class LastMarked(TorchFunctionMode):
    """`x[mask, :]` for x [B, L, D] and a mask [B, L] is the last marked row of each, [B, D]; of an example
    without one the last row. What asks whether all have as many is not computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.unique_consecutive:
            return args[0]
        if func is torch.Tensor.__getitem__ and _is_selection(*args):
            x, (mask, _) = args
            env = torchax.default_env()
            values, marked = env.t2j_iso(x), env.t2j_iso(mask)
            last = marked.shape[1] - 1 - jnp.argmax(marked[:, ::-1], axis=1)
            return env.j2t_iso(values[jnp.arange(len(values)), last])
        return func(*args, **(kwargs or {}))


def _is_selection(x: torch.Tensor, index: Any) -> bool:
    """Whether this is a mask over the first two of three axes."""
    if not (isinstance(index, tuple) and len(index) == 2 and index[1] == slice(None)):
        return False
    mask = index[0]
    return (
        isinstance(mask, torch.Tensor)
        and mask.dtype == torch.bool
        and x.ndim == 3
        and tuple(mask.shape) == tuple(x.shape[:2])
    )
