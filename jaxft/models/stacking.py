"""Equal blocks side by side: their parameters stacked on a leading axis, the blocks run by one `lax.scan`.

A `Layout` says which blocks. It stands between two forms of a tree: the one that everything speaks of in
paths (rules, decisions, checkpoints, exports), and the one that a program takes, in which the leaves of a
group of blocks are None where they were and lie below `STACKED`, as `stacked/1-11/attention/self/key/kernel`
[11, in, out]. A stacked tree says itself how it is stacked.

A block's arithmetic is the same in both. Its bits are on a CPU only if it is compiled by itself: LLVM
vectorises the same reduction otherwise in another surrounding, and sums in another order (BERT of width 32,
two rows: 40 of 42 gradients differ in the last bit). So where bits are to be equal, blocks are `isolated`
(scanned.py), be they scanned or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from jaxft.models.tree import Params, by_path

STACKED = "stacked"
Keys = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Equal blocks that follow each other.

    Attributes:
        first, last: their depths.
        members: path in a block -> the keys of its leaf in the tree, of each block.
    """

    first: int
    last: int
    members: Mapping[str, tuple[Keys, ...]]

    @property
    def depths(self) -> range:
        """Of its blocks."""
        return range(self.first, self.last + 1)

    @property
    def name(self) -> str:
        """Of the group in a stacked tree."""
        return f"{self.first}-{self.last}"

    def part(self, first: int, last: int) -> Group:
        """Of these depths alone."""
        cut = slice(first - self.first, last + 1 - self.first)
        return Group(first, last, {path: keys[cut] for path, keys in self.members.items()})

    def path(self, within: str) -> str:
        """Of a stacked leaf."""
        return f"{STACKED}/{self.name}/{within}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which blocks of a tree are stacked; without groups none is.

    Attributes:
        groups: in the order of their depths.
        top: the keys at the root of the tree, by which a tree of parameters is known inside another one,
            such as the moments of an optimizer's state.
    """

    groups: tuple[Group, ...] = ()
    top: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.groups)

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """Path of each stacked leaf -> those of its members, first to last."""
        return {
            group.path(within): tuple("/".join(map(str, one)) for one in keys)
            for group in self.groups
            for within, keys in group.members.items()
        }

    def stack(self, tree: Any, join: Callable[[list[Any]], Any]) -> Any:
        """A tree, or one that holds such trees, with `join` of the leaves of each group's blocks.

        Where the blocks have none (None, or another empty node, the same in all), the stack has none.

        Raises:
            ValueError: some of the blocks have a leaf that others lack.
        """
        if not self:
            return tree
        return jax.tree.map(
            lambda x: self._stacked(x, join) if self._is_plain(x) else x,
            tree,
            is_leaf=self._is_plain,
        )

    def unstack(self, tree: Any, parts: Callable[[Any, int], Sequence[Any]]) -> Any:
        """The inverse: `parts(leaf, count)` gives the leaves of the blocks."""
        if not self:
            return tree
        return jax.tree.map(
            lambda x: self._unstacked(x, parts) if self._is_stacked(x) else x,
            tree,
            is_leaf=self._is_stacked,
        )

    def common(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by path, and for each stack that of its members, where they have one and the same."""
        found = dict(values)
        for path, members in self.members.items():
            of_each = {values[member] for member in members}
            if len(of_each) == 1:
                found[path] = of_each.pop()
        return found

    def _is_plain(self, x: Any) -> bool:
        return isinstance(x, dict) and x.keys() == self.top

    def _is_stacked(self, x: Any) -> bool:
        return isinstance(x, dict) and x.keys() == self.top | {STACKED}

    def _stacked(self, tree: Params, join: Callable[[list[Any]], Any]) -> Params:
        rest, stacks = _copied(tree), dict[str, Any]()
        for group in self.groups:
            own = stacks[group.name] = {}
            for within, members in group.members.items():
                leaves = [_taken(rest, keys) for keys in members]
                empty = [not jax.tree.leaves(leaf) for leaf in leaves]
                if any(empty) and not all(empty):
                    raise ValueError(f"not every block of {group.name} has {within}")
                own[within] = leaves[0] if all(empty) else join(leaves)
                for keys, leaf in zip(members, leaves, strict=True):
                    _put(rest, keys, leaf if all(empty) else None)
        return {**rest, STACKED: stacks}

    def _unstacked(self, tree: Params, parts: Callable[[Any, int], Sequence[Any]]) -> Params:
        rest = _copied({name: part for name, part in tree.items() if name != STACKED})
        for group in self.groups:
            for within, members in group.members.items():
                leaf = tree[STACKED][group.name][within]
                if jax.tree.leaves(leaf):
                    leaves = parts(leaf, len(members))
                    for keys, one in zip(members, leaves, strict=True):
                        _put(rest, keys, one)
        return rest


NOTHING = Layout()


def repeated(
    blocks: Sequence[Any], depths: Mapping[str, int], whole: Params, last: int
) -> tuple[Group, ...]:
    """The longest stretches of two or more equal blocks: one structure, one configuration, the same shapes.

    Args:
        blocks: modules, first to last.
        depths: of what may be stacked, by path; a block with anything else is like no other.
        whole: the tree in which they are.
        last: no block after this depth counts.
    """
    keys_of = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(key.key for key in keys)
        for keys, _ in jax.tree_util.tree_leaves_with_path(whole)
    }
    found: list[Group] = []
    before: Any = None
    for depth, block in enumerate(blocks[:last], start=1):
        own = {path: keys_of[path] for path, at in depths.items() if at == depth}
        kind, members = _kind(block, own)
        if kind is not None and kind == before:
            group = found.pop()
            joined = {path: (*group.members[path], keys) for path, keys in members.items()}
            found.append(Group(group.first, depth, joined))
        elif kind is not None:
            found.append(Group(depth, depth, {path: (keys,) for path, keys in members.items()}))
        before = kind
    return tuple(group for group in found if group.last > group.first)


def _kind(block: Any, keys_of: Mapping[str, Keys]) -> tuple[Any, dict[str, Keys]]:
    """(what equal blocks have in common, or None, and where the leaves are that it has).

    keys_of: of the leaves at its depth, by path.
    """
    if not isinstance(block, nnx.Module):
        return None, {}
    graph, state = nnx.split(block)
    own = by_path(nnx.to_pure_dict(state))
    first = next(iter(own), None)
    if first is None:
        return None, {}
    # The block's own path: what stands before the names of all of its leaves.
    for path in keys_of:
        place = path.removesuffix(first)
        if place != path and all(f"{place}{name}" in keys_of for name in own):
            break
    else:
        return None, {}
    shapes = tuple((name, leaf.shape, leaf.dtype) for name, leaf in own.items())
    return (graph, shapes), {name: keys_of[f"{place}{name}"] for name in own}


def _copied(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {name: _copied(part) for name, part in tree.items()}


def _taken(tree: Any, keys: Keys) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _put(tree: Any, keys: Keys, leaf: Any) -> None:
    _taken(tree, keys[:-1])[keys[-1]] = leaf
