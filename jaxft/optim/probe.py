"""Find out what a transform does by running it on tiny stand-ins of the parameters.

An optax transform is a pair of closures: its structure cannot be read, but its behaviour can be
measured. Each leaf is replaced by one of the same rank and type with at most two elements per axis,
all of the same value, and `update` is called a few times with chosen gradients. A transform that
does not take these (it has a vector of per-layer rates) gets the first axis at full length. What a
transform does only after many updates, or only for other values, is not seen.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.optim.paths import Tree, by_path, path_map

STEPS = (
    4  # more than one: a linear warm-up has rate 0 at the first update, Adam forgets scale at it
)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What came out of each call: updates by path, and the state."""

    updates: list[dict[str, jax.Array]]
    states: list[Any]

    def moved(self, path: str) -> float:
        """Mean absolute update of a parameter over the calls after the first."""
        return float(sum(jnp.abs(u[path]).mean() for u in self.updates[1:]))


def stand_in(params: Tree, *, full_axes: int = 0) -> Tree:
    """Zeros of the rank and type of every parameter; the first axes may keep their length."""

    def leaf(x: Any) -> jax.Array:
        rest = (min(n, 2) for n in x.shape[full_axes:])
        return jnp.zeros((*x.shape[:full_axes], *rest), x.dtype)

    return jax.tree.map(leaf, params)


def run(
    tx: optax.GradientTransformation,
    params: Tree,
    gradients: Sequence[Callable[[str], float]],
    *,
    value: float,
) -> Trace:
    """Call `tx` once for each of `gradients` (path to gradient); all parameters are `value`."""
    params = jax.tree.map(lambda x: jnp.full_like(x, value), params)
    tx = optax.with_extra_args_support(tx)
    state = tx.init(params)
    trace = Trace([], [])
    for gradient in gradients:
        grads = filled(params, gradient)
        update, state = tx.update(grads, state, params, grad_fn=functools.partial(_same, grads))
        trace.updates.append(by_path(update))
        trace.states.append(state)
    return trace


def filled(tree: Tree, value: Callable[[str], float]) -> Tree:
    """Each leaf with its path's value throughout."""
    return path_map(lambda path, x: jnp.full_like(x, value(path)), tree)


def fitting_stand_in(tx: optax.GradientTransformation, params: Tree) -> Tree:
    """Stand-ins that `tx` accepts."""
    tiny = stand_in(params)
    try:
        run(tx, tiny, [lambda path: 0.0], value=0.0)
    except (TypeError, ValueError):
        return stand_in(params, full_axes=1)
    return tiny


def slots(state: Any, paths: Sequence[str]) -> dict[str, dict[str, jax.Array]]:
    """The arrays a state holds for parameters: kind of slot (`1/mu`) to path to array.

    Args:
      paths: of all parameters, also of those that are not asked about: `aux/head/kernel` and
        `head/kernel` are told apart by both being known.
    """
    leaves = _state_leaves(state)
    found: dict[str, dict[str, jax.Array]] = {}
    for where, path in _owners(leaves, paths).items():
        found.setdefault(where[: -len(path) - 1], {})[path] = leaves[where]
    return found


def shared(state: Any, paths: Sequence[str]) -> dict[str, jax.Array]:
    """The rest of a state: counts, norms and whatever else belongs to no single parameter."""
    leaves = _state_leaves(state)
    owned = _owners(leaves, paths)
    return {where: leaf for where, leaf in leaves.items() if where not in owned}


def differ(a: jax.Array, b: jax.Array, tolerance: float = 1e-3) -> bool:
    """Whether two arrays differ by more than a share of the larger one."""
    size = jnp.maximum(jnp.abs(a).max(), jnp.abs(b).max())
    return bool(jnp.abs(a - b).max() > tolerance * size)


def first_difference(a: Mapping[str, jax.Array], b: Mapping[str, jax.Array]) -> str | None:
    """The first key at which two dicts of arrays differ."""
    return next((key for key in a if differ(a[key], b[key])), None)


def _same(grads: Tree, params: Tree) -> Tree:
    del params
    return grads


def _owners(state_paths: Iterable[str], paths: Sequence[str]) -> dict[str, str]:
    """The parameter of each leaf of a state whose path ends with that of a parameter.

    Several may end alike. A slot (Adam's mu) repeats the tree of parameters below one prefix: the
    prefix that fits most leaves is the slot's, and of equals the shortest.
    """
    known = set(paths)
    ends: dict[str, list[str]] = {}
    for where in state_paths:
        keys = where.split("/")
        tails = ("/".join(keys[i:]) for i in range(len(keys)))
        if found := [tail for tail in tails if tail in known]:
            ends[where] = found
    fits = collections.Counter(
        where[: -len(tail)] for where, found in ends.items() for tail in found
    )

    def likeliest(where: str) -> str:
        return max(ends[where], key=lambda tail: (fits[where[: -len(tail)]], len(tail)))

    return {where: likeliest(where) for where in ends}


def _state_leaves(state: Any) -> dict[str, jax.Array]:
    leaves = {where: leaf for where, leaf in by_path(state).items() if isinstance(leaf, jax.Array)}
    return {where: leaf for where, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.number)}
