"""`model.stack`: which blocks a run keeps stacked, and the way between that and the tree of paths.

What trains and how is decided by path, and so are checkpoints, averages and exports made. Only the state that
the step takes is stacked: a stage of the run (stages.py) holds its `Layout`, and nothing else knows of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.config import ConfigDict
from jaxft.experiment.decisions import Decisions
from jaxft.models import Architecture
from jaxft.models.architecture import Architecture as NativeArchitecture
from jaxft.models.stacking import NOTHING, STACKED, Group, Layout
from jaxft.optim import path_map
from jaxft.tasks.contract import HeadFitting, Task

# Blocks from which on `auto` stacks. See BUILD_NOTES.md for what was measured.
LEAST = 16


@dataclasses.dataclass(frozen=True)
class Stacking:
    """What was settled for a run.

    Attributes:
      layouts: one a stage.
      evaluation: of the tree that is evaluated.
      said: one line for the terminal; '' where nothing was asked for.
    """

    layouts: tuple[Layout, ...]
    evaluation: Layout = NOTHING
    said: str = ""


def settle(
    config: ConfigDict, architecture: Architecture, task: Task[Any], decisions: Decisions
) -> Stacking:
    """By `model.stack`.

    Raises:
      ValueError: it is 'on', and nothing can be stacked.
    """
    mode, stages = config.model.stack, range(len(decisions.starts))
    off = tuple(NOTHING for _ in stages)
    if mode == "off":
        return Stacking(off)
    why = _obstacle(config, architecture, task)
    layouts = off if why else tuple(_layout(architecture, decisions, stage) for stage in stages)
    if not why and not any(layouts):
        why = "no two blocks beside each other train alike"
    if why and mode == "on":
        raise ValueError(
            f"config.model.stack='on' is not possible: {why}; leave it 'auto' or 'off'"
        )
    counts = [sum(len(group.depths) for group in layout.groups) for layout in layouts]
    if not why and mode == "auto" and max(counts) < LEAST:
        why = f"{max(counts)} equal blocks compile soon (from {LEAST} on they are stacked)"
    if why:
        return Stacking(off, said=f"not stacked: {why}")
    assert isinstance(architecture, NativeArchitecture)
    evaluation = layouts[0] if len(stages) == 1 else _every(architecture)
    groups = "; then ".join(dict.fromkeys(map(_told, layouts)))
    return Stacking(layouts, evaluation, f"stacked and scanned: {groups}")


def _told(layout: Layout) -> str:
    names = [f"blocks {group.first} to {group.last}" for group in layout.groups]
    return " and ".join(names) or "none"


def _obstacle(config: ConfigDict, architecture: Architecture, task: Task[Any]) -> str:
    """Why nothing can be stacked; '' where something may."""
    if not isinstance(architecture, NativeArchitecture):
        return "a bridged model is one traced module"
    if not architecture.repeats:
        return f"this {architecture.model_type!r} has no two equal blocks beside each other"
    if isinstance(task, HeadFitting):
        return "what reads the weights between two steps takes them one by one"
    return ""


def _every(architecture: NativeArchitecture) -> Layout:
    return Layout(architecture.repeats, frozenset(architecture.whole))


def _layout(architecture: Architecture, decisions: Decisions, stage: int) -> Layout:
    """Equal blocks beside each other of which the same is frozen in a stage, and the rest trains alike."""
    assert isinstance(architecture, NativeArchitecture)
    rows = {row.path: row for row in decisions}
    frozen = decisions.frozen_in(stage)

    def treatment(group: Group, depth: int) -> Any:
        paths = ["/".join(map(str, k[depth - group.first])) for k in group.members.values()]
        still = tuple(path in frozen for path in paths)
        # Under a plan each depth that trains has a count of updates of its own.
        alone = depth if decisions.plan and not all(still) else 0
        return (
            still,
            tuple(
                (rows[p].decays, rows[p].stages, rows[p].group) for p in paths if p not in frozen
            ),
            alone,
        )

    groups = [
        group.part(first, last)
        for group in architecture.repeats
        for first, last in _stretches([treatment(group, d) for d in group.depths], group.first)
        if last > first
    ]
    return Layout(tuple(groups), frozenset(architecture.whole)) if groups else NOTHING


def _stretches(kinds: Sequence[Any], first: int) -> Iterator[tuple[int, int]]:
    """First and last number of each stretch of equal ones; the first has the number `first`."""
    begin = 0
    for end in range(1, len(kinds) + 1):
        if end == len(kinds) or kinds[end] != kinds[begin]:
            yield first + begin, first + end - 1
            begin = end


def stacked(layout: Layout, tree: Any, axis: int = 0, *, taken: bool = False) -> Any:
    """A tree of arrays, or of their shapes with places, or one that holds such trees.

    Args:
      axis: of the blocks; 1 under pmap, whose copies lie along the first.
      taken: the arrays are nobody else's; those that are copied are freed one stack after the other.
    """

    def join(leaves: list[Any]) -> Any:
        first = leaves[0]
        place = _place(first.sharding, lambda spec: (*spec[:axis], None, *spec[axis:]), first.ndim)
        if isinstance(first, jax.ShapeDtypeStruct):
            shape = (*first.shape[:axis], len(leaves), *first.shape[axis:])
            return jax.ShapeDtypeStruct(shape, first.dtype, sharding=place)
        joined = _joined(axis, place)(leaves)
        for leaf in leaves if taken else ():
            leaf.delete()
        return joined

    return layout.stack(tree, join)


def unstacked(layout: Layout, tree: Any, axis: int = 0) -> Any:
    """The inverse."""

    def parts(leaf: Any, count: int) -> Sequence[Any]:
        place = _place(leaf.sharding, lambda spec: (*spec[:axis], *spec[axis + 1 :]), leaf.ndim)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape = (*leaf.shape[:axis], *leaf.shape[axis + 1 :])
            return [jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=place)] * count
        return _cut(axis, count, place)(leaf)

    return layout.unstack(tree, parts)


def broken_blocks(layout: Layout, grads: Any) -> jax.Array:
    """`step.broken_leaves` of gradients that are stacked: [P] in the order of the paths."""

    def broken(path: str, leaf: jax.Array) -> jax.Array:
        of_blocks = path.startswith(f"{STACKED}/")
        return ~jnp.isfinite(leaf).all(tuple(range(of_blocks, leaf.ndim)))

    marks = layout.unstack(path_map(broken, grads), lambda leaf, count: list(leaf))
    return jnp.stack(jax.tree.leaves(marks))


def _place(sharding: Any, change: Callable[[tuple[Any, ...]], tuple[Any, ...]], ndim: int) -> Any:
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = (*sharding.spec, *[None] * (ndim - len(sharding.spec)))
    return NamedSharding(sharding.mesh, PartitionSpec(*change(spec)))


# Made once for each place: jit finds a program again by its function, and blocks have a few shapes.
@functools.cache
def _joined(axis: int, place: Any) -> Callable[[list[jax.Array]], jax.Array]:
    return jax.jit(lambda leaves: jnp.stack(leaves, axis), out_shardings=place)


@functools.cache
def _cut(axis: int, count: int, place: Any) -> Callable[[jax.Array], list[jax.Array]]:
    def cut(leaf: jax.Array) -> list[jax.Array]:
        return [jax.lax.index_in_dim(leaf, i, axis, keepdims=False) for i in range(count)]

    return jax.jit(cut, out_shardings=[place] * count)
