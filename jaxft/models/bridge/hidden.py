"""What comes out of the blocks of a module: the states between stem and head, which its logits do not show.

Modules of any library give them in many forms: a tensor, the first of several, a ModelOutput; as [B, T, D] or
[T, B, D], as maps [B, C, H, W] or [B, H, W, C]. Which module is a block follows from the depths alone.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torchax

_UNCALLED = (torch.nn.ModuleList, torch.nn.ModuleDict)  # they hold modules, and are none


def block_modules(module: torch.nn.Module, depths: Mapping[str, int]) -> dict[int, list[str]]:
    """Depth of each block, and of stem and head, -> names of modules whose output is the state after it.

    Of the modules all of whose tensors have that depth, the outermost. Members of a list come before
    others, where they hold half of the depth's tensors: so a norm after the last block is not part of
    it, nor what brings one stage to the size of the next.

    Args:
        depths: of every parameter and buffer, by name.
    """
    below: dict[str, list[int]] = {}
    for name, depth in depths.items():
        while "." in name:
            name = name.rpartition(".")[0]
            below.setdefault(name, []).append(depth)
    whole = {
        name: below[name][0]
        for name, part in module.named_modules()
        if name in below and len(set(below[name])) == 1 and not isinstance(part, _UNCALLED)
    }
    found = {}
    for depth in sorted(set(depths.values())):
        total = sum(one == depth for one in depths.values())
        inside = [name for name in whole if whole[name] == depth]
        parents = [
            name for name in inside if any(True for _ in module.get_submodule(name).children())
        ]
        members = _outermost([name for name in parents if name.rpartition(".")[2].isdecimal()])
        if 2 * sum(len(below[name]) for name in members) >= total:
            found[depth] = members
        else:
            found[depth] = _outermost(parents) or _outermost(inside)
    return found


def _outermost(names: Sequence[str]) -> list[str]:
    return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]


@dataclasses.dataclass
class States:
    """The states that a forward pass left behind.

    Attributes:
        by_depth: depth -> (what gave it, the state), the last one of each depth.
    """

    by_depth: dict[int, tuple["Output", jax.Array]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Output:
    """What a module returns when it is called for the `call`-th time: the blocks of ALBERT are one module."""

    name: str
    call: int


@contextmanager
def watched(
    module: torch.nn.Module,
    names: Mapping[int, Sequence[str]],
    added: tuple[Output, jax.Array] | None = None,
) -> Iterator[States]:
    """Keeps the outputs of these modules while the block runs.

    Args:
        names: depth -> modules.
        added: (an output, what is added to its state before the others go on with it).
    """
    env, states, calls = torchax.default_env(), States(), collections.Counter[str]()

    def hook(depth: int, name: str) -> Any:
        def after(part: Any, args: Any, output: Any) -> Any:
            state = _tensor(output)
            if state is None:
                return None
            calls[name] += 1
            this = Output(name, calls[name])
            states.by_depth[depth] = (this, env.t2j_iso(state))
            if added is None or added[0] != this:
                return None
            return _with_tensor(output, state + env.j2t_iso(added[1]))

        return after

    handles = [
        module.get_submodule(name).register_forward_hook(hook(depth, name))
        for depth, some in names.items()
        for name in some
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> torch.Tensor | None:
    """The first tensor of what a module returns."""
    if isinstance(output, torch.Tensor):
        return output if output.ndim > 1 else None
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | tuple | list):
        return None
    return next((x for x in map(_tensor, values) if x is not None), None)


def _with_tensor(output: Any, new: torch.Tensor) -> Any:
    """The same with `new` in its place."""
    if isinstance(output, torch.Tensor):
        return new
    if isinstance(output, Mapping):
        key = next(key for key, value in output.items() if _tensor(value) is not None)
        output[key] = _with_tensor(output[key], new)  # type: ignore[index]
        return output
    place = next(i for i, value in enumerate(output) if _tensor(value) is not None)
    changed = [*output[:place], _with_tensor(output[place], new), *output[place + 1 :]]
    return type(output)(changed) if type(output) in (tuple, list) else type(output)(*changed)


def batch_first(state: jax.Array, rows: int, name: str) -> jax.Array:
    """[B, ...] of it, also of [T, B, D], as XLNet's.

    Raises:
        ValueError: neither axis is the batch's.
    """
    if state.shape[0] == rows:
        return state
    if state.ndim == 3 and state.shape[1] == rows:
        return state.swapaxes(0, 1)
    raise ValueError(
        f"{name} gives a state of shape {list(state.shape)} for {rows} rows: no hidden state to probe"
    )


def averaged(state: jax.Array, weights: jax.Array | None, widths: set[int]) -> jax.Array:
    """[B, D] fp32 of tokens [B, T, D] by weights [B, T], if there are such, or of a map by its pixels.

    Args:
        widths: lengths of the block's vectors, as its biases: one of them is D.
    """
    state = state.astype(jnp.float32)
    if state.ndim == 3:
        if weights is None or weights.shape[1] != state.shape[1]:
            return state.mean(1)
        total = jnp.maximum(weights.sum(1, keepdims=True), 1)
        return jnp.einsum("bt,btd->bd", weights / total, state)
    if state.ndim > 3:
        state = jnp.moveaxis(state, _channels(state.shape, widths), -1)
        return state.mean(tuple(range(1, state.ndim - 1)))
    return state


def _channels(shape: tuple[int, ...], widths: set[int]) -> int:
    """The axis of the channels: 1, as torch has them, or the last."""
    if len(shape) == 4 and (shape[1] == shape[2]) != (shape[2] == shape[3]):
        return 3 if shape[1] == shape[2] else 1  # maps are square as a rule
    return len(shape) - 1 if shape[-1] in widths and shape[1] not in widths else 1
