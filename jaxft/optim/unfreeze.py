"""Run a plan of gradual unfreezing inside one compiled program.

A group that has not started yet is held: its gradient does not count for clipping, its parameters
get a zero update, its moments and its Adam count stay as they were initialised. When its turn comes
it starts like any fresh parameter, with its own bias correction.

Gating by step needs no recompilation, but the program has the backward work of all groups, and the
update moves 18 arrays a parameter instead of 11 (measured on CPU: 5 times the time of the update
alone). To save both, compile one program per stage: give its number as `stage`, differentiate what
trains (`frozen_in`, `split`) and carry the state over with `grow`. Both ways have the same state and
give the same numbers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.optim.checks import Scalar, known
from jaxft.optim.clip import Norm, clip_by_norm
from jaxft.optim.lookup import TreeOrFunction, deferred, is_function
from jaxft.optim.paths import Tree, align, by_path, path_map
from jaxft.optim.stages import Plan, check_order, check_plan, windows

# When a group trains: intervals [start, end) of updates, or a constant (or traced) for all of them.
Gate = tuple[tuple[int, int | None], ...] | bool | jax.Array


class GateState(NamedTuple):
    """`step`: updates done, int32 scalar; the step that the plan speaks of."""

    step: jax.Array


class GatedState(NamedTuple):
    """`step` as in `GateState`; `inner`: of the gated transform, untouched outside its windows."""

    step: jax.Array
    inner: Any


def unfreeze(
    tx: optax.GradientTransformation,
    plan: Plan,
    groups: TreeOrFunction,
    *,
    clip: Scalar | None = None,
    stage: int | None = None,
    norm: Norm | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`tx` for each group on its own, from the update at which the plan unfreezes it.

    A schedule inside `tx` counts from the group's own start; one chained after `unfreeze` counts
    the updates of the run. Weight decay belongs inside `tx`: outside, it would move held
    parameters.

    >>> from jaxft.optim import lp_ft
    >>> params = {'body': jnp.ones(1), 'head': jnp.ones(1)}
    >>> tx = unfreeze(optax.adam(0.5), lp_ft([0, 1], head_steps=1), {'body': 0, 'head': 1})
    >>> state, moved = tx.init(params), []
    >>> for _ in range(2):
    ...     updates, state = tx.update(params, state, params)
    ...     moved.append([round(float(updates[name][0]), 3) for name in ('body', 'head')])
    >>> moved
    [[0.0, -0.5], [-0.5, -0.5]]

    Args:
      tx: initialised once a group; sees only that group.
      plan: from `top_down`, `bottom_up`, `explicit`, `chain_thaw`, `lp_ft`, or written by hand.
      groups: the group of every parameter, such as its depth; in any container. A group that is
        in no stage has no state and never moves. Or a function that gives them for the parameters.
      clip: largest global norm of the gradients of all groups that train at that step.
      stage: index of the only stage that this program runs: the gates are constants and cost
        nothing. None: any step of the plan.
      norm: what `clip` measures gradients by; None: their global L2 norm.

    Raises:
      ValueError: the plan is not in order or names a group without parameters; (at init) a
        parameter has no group.
    """
    if is_function(groups):
        check_order(plan)
        return deferred(lambda tree: _by_group(tx, plan, by_path(groups(tree)), clip, stage, norm))
    check_plan(plan, groups)
    return _by_group(tx, plan, by_path(groups), clip, stage, norm)


def _by_group(
    tx: optax.GradientTransformation,
    plan: Plan,
    group_at: Mapping[str, Hashable],
    clip: Scalar | None,
    stage: int | None,
    norm: Norm | None,
) -> optax.GradientTransformationExtraArgs:
    named = dict.fromkeys(group_at.values())
    gates = _gates(plan, set(named), stage)
    transforms: dict[Hashable, optax.GradientTransformation] = {
        group: gated(tx, gates[group]) if windows(plan, group) else optax.set_to_zero()
        for group in named
    }
    by_group = optax.multi_transform(transforms, lambda tree: align(group_at, tree))
    if clip is None:
        return by_group
    gradients = gate({path: gates[group] for path, group in group_at.items()})
    return optax.chain(gradients, clip_by_norm(clip, norm), by_group)


def gate(gates: Mapping[str, Gate]) -> optax.GradientTransformation:
    """Zero while the gate of a path is shut, the gradient itself while it is open."""

    def init(params: Tree) -> GateState:
        del params
        return GateState(jnp.zeros((), jnp.int32))

    def update(updates: Tree, state: GateState, params: Tree | None = None):
        del params
        # By identity: gates of traced steps have no hash, and those of a group are one object.
        is_open = {id(gate): _is_open(gate, state.step) for gate in gates.values()}
        held = path_map(
            lambda path, leaf: _choose(is_open[id(gates[path])], leaf, jnp.zeros_like(leaf)),
            updates,
        )
        return held, GateState(optax.safe_increment(state.step))

    return optax.GradientTransformation(init, update)


def gated(tx: optax.GradientTransformation, gate: Gate) -> optax.GradientTransformationExtraArgs:
    """`tx` while the gate is open; while it is shut, no update and no new state.

    >>> tx = gated(optax.sgd(1.0), ((1, 2),))
    >>> state, moved = tx.init(jnp.ones(())), []
    >>> for _ in range(3):
    ...     update, state = tx.update(jnp.ones(()), state)
    ...     moved.append(float(update))
    >>> moved
    [0.0, -1.0, 0.0]
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: Tree) -> GatedState:
        return GatedState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Tree, state: GatedState, params: Tree | None = None, **extra_args: Any):
        is_open = _is_open(gate, state.step)
        updates, after = inner.update(updates, state.inner, params, **extra_args)
        # A select, not `lax.cond`: it fuses into the kernels of the update.
        updates = jax.tree.map(lambda u: _choose(is_open, u, jnp.zeros_like(u)), updates)
        after = jax.tree.map(lambda new, old: _choose(is_open, new, old), after, state.inner)
        return updates, GatedState(optax.safe_increment(state.step), after)

    return optax.GradientTransformationExtraArgs(init, update)


def grow(old: Tree, new: Tree) -> Tree:
    """`new`, with every leaf that `old` has at the same path taken from `old`, bit for bit.

    At a change of stage: `grow(state, tx.init(trainable of the next stage))` keeps counts and
    moments of what trained already, and starts those of what begins to.

    >>> grow({'mu': {'head': 3.0, 'body': None}}, {'mu': {'head': 0.0, 'body': 0.0}})
    {'mu': {'body': 0.0, 'head': 3.0}}

    Raises:
      ValueError: a leaf has another shape in `old` than in `new`.
    """
    kept = by_path(old)

    def older(path: str, leaf: Any) -> Any:
        was = kept.get(path, leaf)
        if jnp.shape(was) != jnp.shape(leaf):
            raise ValueError(
                f"the optimizer state has {path!r} with the shape {jnp.shape(was)}, where "
                f"{jnp.shape(leaf)} is needed: it belongs to parameters of other shapes"
            )
        return was

    return path_map(older, new)


def _gates(plan: Plan, groups: set[Hashable], stage: int | None) -> dict[Hashable, Gate]:
    if stage is None:
        return {group: windows(plan, group) for group in groups}
    if not known(stage):
        return {group: jnp.array([group in s.groups for s in plan])[stage] for group in groups}
    if not 0 <= stage < len(plan):
        raise ValueError(f"stage {stage} of a plan of {len(plan)}: give 0 to {len(plan) - 1}")
    return {group: group in plan[int(stage)].groups for group in groups}


def _is_open(gate: Gate, step: jax.Array) -> jax.Array | bool:
    if isinstance(gate, bool | jax.Array):
        return gate
    inside = [
        (step >= start) if end is None else (step >= start) & (step < end) for start, end in gate
    ]
    return functools.reduce(operator.or_, inside, False)


def _choose(is_open: jax.Array | bool, new: jax.Array, old: jax.Array) -> jax.Array:
    if isinstance(is_open, bool):
        return new if is_open else old
    return jnp.where(is_open, new, old)
