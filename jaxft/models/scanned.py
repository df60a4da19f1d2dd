"""Equal blocks in order: scanned where they are stacked, and each by itself where bits must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.models.contract import Pass
from jaxft.models.family import Carry, Context
from jaxft.models.layers import mesh, seeds
from jaxft.models.layers.stochastic_depth import Odds, odds
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
    """Of an architecture, its equal blocks, what they share, and where its parameters are."""

    @property
    def repeats(self) -> tuple[Group, ...]: ...
    @property
    def shares(self) -> tuple[str, ...]: ...
    @property
    def left_out(self) -> tuple[float, ...]: ...


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
    graph, group = nnx.graphdef(block), _group(first, of)
    paths = {within: "/".join(map(str, keys[0])) for within, keys in group.members.items()}

    def merged(own: Params) -> Any:
        used = {w: mesh.used_one(paths[w], x, of, how.dtype) for w, x in own.items()}
        return nnx.merge(graph, nested(used))

    def body(state: tuple[jax.Array, Links], of_one: Any) -> tuple[Any, None]:
        depth, own, odds = of_one
        hidden, links = _after(merged, own, given, *state, _At(first, depth, odds), key, how)
        return (mesh.rows(hidden), links), None

    depths = range(first, first + len(next(iter(leaves.values()))))
    numbers = jnp.arange(depths.start, depths.stop, dtype=jnp.uint32)
    given, links = _shared(carry, of)
    of_each = (numbers, leaves, _odds(group, depths, of))
    (hidden, links), _ = jax.lax.scan(body, (carry["hidden"], links), of_each)
    return _left(given, hidden, links)


def alone(
    block: Any, carry: Carry, depth: int, key: jax.Array | None, how: Pass, of: Repeated
) -> Carry:
    """After one of several equal blocks, compiled by itself."""
    graph, state = nnx.split(block)
    odds = _odds(_group(depth, of), range(depth, depth + 1), of)
    # As the scan has them: a constant would be merged with those of dropout.
    odds = jax.lax.optimization_barrier(jax.tree.map(lambda x: jnp.asarray(x[0]), odds))
    at = _At(depth, depth, odds)
    given, links = _shared(carry, of)
    hidden, links = _after(
        lambda own: nnx.merge(graph, own), state, given, carry["hidden"], links, at, key, how
    )
    return _left(given, hidden, links)


class _At(NamedTuple):
    """A block.

    Attributes:
        as_frozen_as: a depth that is frozen if it is.
        depth: its own, which may be traced.
        odds: of its branches; None: none is left out.
    """

    as_frozen_as: int
    depth: int | jax.Array
    odds: Odds | None


def _after(
    merged: Callable[[Any], Any], state: Any, carry: Carry, hidden: jax.Array, links: Links, at: _At,
    key: jax.Array | None, how: Pass,
) -> tuple[jax.Array, Links]:  # fmt: skip
    """'hidden', and the links, of the block that `merged` makes of its parameters."""
    seed, branches = None, None
    if key is not None and at.as_frozen_as > how.frozen_blocks:
        seed = seeds.seed_of(key, at.depth, how.axis_name)
        branches = None if at.odds is None else how.branches(key, at.depth, at.odds)

    def run(hidden: jax.Array, links: Links, shared: Links, own: Any, *random: Any) -> Any:
        # Over a mesh they are gathered in here, so that a block that is rerun lets them go.
        used, links = _used(shared, links) if links else (shared, links)
        seed, branches = random
        given = {**carry, **used, "hidden": hidden}
        after, kept = merged(own)(given, Context(seed, depth=branches))
        assert after.keys() == carry.keys() and not kept, "a block leaves more than its output"
        return after["hidden"], links

    again: Callable[..., Any] = run
    if how.remat and at.as_frozen_as > how.frozen_blocks:
        again = jax.checkpoint(run)
    if how.isolated:
        again = isolated(again, lambda hidden, links, *_: (hidden, links))
    return again(hidden, links, {name: carry[name] for name in links}, state, seed, branches)


# What blocks share is a constant of the scan, and its gradient, a sum over blocks, would be summed apart from
# that of later blocks and then added: in another order than where they are not scanned. So it goes by a link,
# which a block hands on: its gradient is that of the blocks above and this one's. Nothing reads its value.
Links = dict[str, jax.Array]


def _shared(carry: Carry, of: Repeated) -> tuple[Carry, Links]:
    """(the carry with a gradient of 'hidden' alone, the links of the rest)."""
    links = {name: carry[name] for name in of.shares if name in carry}
    return {**carry, **jax.lax.stop_gradient(links)}, links


def _left(carry: Carry, hidden: jax.Array, links: Links) -> Carry:
    """The carry after blocks, with its gradients again."""
    shared = {name: carry[name] for name in links}
    return {**carry, **(_linked(shared, links) if links else {}), "hidden": hidden}


@jax.custom_vjp
def _linked(shared: Links, links: Links) -> Links:
    return shared


_linked.defvjp(lambda shared, links: (shared, None), lambda _, gradient: (None, gradient))


@jax.custom_vjp
def _used(shared: Links, links: Links) -> tuple[Links, Links]:
    return shared, links


_used.defvjp(
    lambda shared, links: ((shared, links), None),
    lambda _, gradients: (None, jax.tree.map(jnp.add, gradients[1], gradients[0])),
)


def _group(depth: int, of: Repeated) -> Group:
    return next(group for group in of.repeats if depth in group.depths)


def _odds(group: Group, depths: range, of: Repeated) -> Odds | None:
    """Of some blocks of a group, arrays [L]; None where no block of the group leaves a branch out."""
    rates = {depth: of.left_out[depth - 1] for depth in group.depths}
    if not any(rates.values()):
        return None
    of_each = [odds(rates[depth]) for depth in depths]
    return Odds(*(np.array(part) for part in zip(*of_each, strict=True)))


def isolated(compute: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """`compute(x, …)`, compiled by itself: as a branch that is always taken.

    XLA:CPU drops optimization barriers and inlines calls; a branch on what it does not know stays. Where `x`
    begins with NaN or minus infinity, everything is NaN.

    Args:
        like: gives arrays of the shapes and dtypes of its result, of the same arguments.
    """

    def branched(x: jax.Array, *rest: Any) -> Any:
        def lost(*given: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), like(*given))

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
        alone = isolated(added, lambda first, total, rest: total)
        return alone(leaves[0], total, leaves[1:]) if leaves else total

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
