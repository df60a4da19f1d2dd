"""Equal blocks in order: scanned where they are stacked, and each by itself where bits must agree."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.contract import Pass
from jaxft.models.family import Carry, Context
from jaxft.models.layers import mesh, ops, seeds
from jaxft.models.stacking import STACKED, Group
from jaxft.models.tree import Params, by_path, nested


def steps_through(depths: range, stacks: Params) -> Iterator[tuple[int, Params | None]]:
    """(depth, None) of each block of a range, and once (first depth, leaves) of what is stacked of it.

    Args:
        stacks: of a stacked tree, by the name of each group.
    """
    groups = [(*map(int, name.split("-")), leaves) for name, leaves in stacks.items()]
    depth = depths.start
    while depth < depths.stop:
        found = next((group for group in groups if group[0] <= depth <= group[1]), None)
        if found is None:
            yield depth, None
            depth += 1
            continue
        first, last, leaves = found
        end = min(last + 1, depths.stop)
        if end - depth < last + 1 - first:
            cut = slice(depth - first, end - first)
            leaves = {path: leaf[cut] for path, leaf in leaves.items()}
        yield depth, leaves
        depth = end


class Repeated(mesh.Placed, Protocol):
    """Of an architecture, its equal blocks, and where its parameters are."""

    @property
    def repeats(self) -> tuple[Group, ...]: ...


def scanned(
    block: Any,
    carry: Carry,
    first: int,
    leaves: Params,
    key: jax.Array | None,
    how: Pass,
    of: Repeated,
) -> Carry:
    """After equal blocks.

    Args:
        block: one of them, whatever its parameters.
        first: depth of the first; they are all frozen or none is.
        leaves: of all of them, [L, ...] by path in a block.
        of: whose blocks they are.
    """
    graph = nnx.graphdef(block)
    (group,) = (group for group in of.repeats if first in group.depths)
    paths = {within: "/".join(map(str, keys[0])) for within, keys in group.members.items()}

    def merged(own: Params) -> Any:
        used = {w: mesh.used_one(paths[w], x, of, how.dtype) for w, x in own.items()}
        return nnx.merge(graph, nested(used))

    def body(hidden: jax.Array, of_one: tuple[jax.Array, Params]) -> tuple[jax.Array, None]:
        depth, own = of_one
        after = _after(merged, own, {**carry, "hidden": hidden}, first, depth, key, how)
        return mesh.rows(after), None

    count = len(next(iter(leaves.values())))
    depths = jnp.arange(first, first + count, dtype=jnp.uint32)
    hidden, _ = jax.lax.scan(body, carry["hidden"], (depths, leaves))
    return {**carry, "hidden": hidden}


def alone(
    block: Any, carry: Carry, at: int, depth: int | jax.Array, key: jax.Array | None, how: Pass
) -> jax.Array:
    """'hidden' after one of several equal blocks.

    Args:
        at: a depth that is frozen if this one is.
        depth: its own, which may be traced.
    """
    graph, state = nnx.split(block)
    return _after(lambda own: nnx.merge(graph, own), state, carry, at, depth, key, how)


def _after(
    merged: Callable[[Any], Any], state: Any, carry: Carry, at: int, depth: int | jax.Array,
    key: jax.Array | None, how: Pass,
) -> jax.Array:  # fmt: skip
    """The same, of the block that `merged` makes of its parameters."""
    random = key is not None and at > how.frozen_blocks
    seed = seeds.seed_of(key, depth, how.axis_name) if random and key is not None else None

    def run(hidden: jax.Array, own: Any, seed: ops.Seed) -> jax.Array:
        # Over a mesh they are gathered in here, so that a block that is rerun lets them go.
        after, kept = merged(own)({**carry, "hidden": hidden}, Context(seed))
        assert after.keys() == carry.keys() and not kept, "a block leaves more than its output"
        return after["hidden"]

    again: Callable[..., jax.Array] = run
    if how.remat and at > how.frozen_blocks:
        again = jax.checkpoint(run)
    return (isolated(again) if how.isolated else again)(carry["hidden"], state, seed)


def isolated(compute: Callable[..., jax.Array], like: int = 0) -> Callable[..., jax.Array]:
    """`compute(x, …)`, compiled by itself: as a branch that is always taken.

    XLA:CPU drops optimization barriers and inlines calls; a branch on what it does not know stays. Where `x`
    begins with NaN or minus infinity, everything is NaN.

    Args:
        compute: gives an array of the shape and dtype of its argument number `like`.
    """

    def branched(x: jax.Array, *rest: Any) -> jax.Array:
        def lost(*given: Any) -> jax.Array:
            return jnp.full_like(given[like], jnp.nan)

        return jax.lax.cond(x.reshape(-1)[0] > -jnp.inf, compute, lost, x, *rest)

    return branched


def norm_of(groups: Sequence[Group], whole: Params) -> Callable[[Any], jax.Array]:
    """The global L2 norm of gradients, fp32, the same bits whether blocks are stacked or not.

    Squares are summed leaf by leaf in the order of the tree, those of equal blocks each by itself.

    Args:
        groups: which blocks those are.
        whole: the tree, not stacked; what `norm` is given may have holes.
    """
    blocks = {
        path: (depth, members)
        for group in groups
        for depth in group.depths
        for members in [{within: "/".join(map(str, keys[depth - group.first]))
                         for within, keys in group.members.items()}]
        for path in members.values()
    }  # fmt: skip

    def added(first: jax.Array, total: jax.Array, rest: list[jax.Array]) -> jax.Array:
        for leaf in (first, *rest):
            total = total + jnp.sum(jnp.square(leaf))
        return total

    def alone_added(total: jax.Array, leaves: list[jax.Array]) -> jax.Array:
        return isolated(added, like=1)(leaves[0], total, leaves[1:]) if leaves else total

    def norm(tree: Any) -> jax.Array:
        own, total, done = by_path(tree), jnp.zeros(()), set[int]()
        for path in by_path(whole):
            if path not in blocks:
                total = total + jnp.sum(jnp.square(own[path])) if path in own else total
                continue
            depth, members = blocks[path]
            if depth in done:
                continue
            done.add(depth)
            stack = next((stack for stack in _stacks(own) if depth in stack[0]), None)
            if stack is None:
                total = alone_added(total, [own[p] for p in members.values() if p in own])
                continue
            done.update(stack[0])
            leaves = [stack[1][within] for within in members if within in stack[1]]
            total, _ = jax.lax.scan(lambda t, x: (alone_added(t, x), None), total, leaves)
        return jnp.sqrt(total)

    return norm


def _stacks(own: Mapping[str, Any]) -> list[tuple[range, dict[str, Any]]]:
    """The depths and the leaves of each group that a tree has stacked."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in own.items():
        if path.startswith(f"{STACKED}/"):
            _, name, within = path.split("/", 2)
            found.setdefault(name, {})[within] = leaf
    bounds = {name: [int(bound) for bound in name.split("-")] for name in found}
    return [(range(bounds[n][0], bounds[n][1] + 1), leaves) for n, leaves in found.items()]
