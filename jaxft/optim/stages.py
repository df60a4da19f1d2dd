"""Gradual unfreezing as data: which groups of parameters train from which step on.

A plan is a tuple of stages in order of their start; groups are any hashable labels, usually depths
from stem (0) to head (L + 1). Nothing here touches arrays: `unfreeze` runs a plan inside one
compiled program, and a trainer may compile one program per stage, which also saves the frozen
part's backward.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax

from jaxft.optim.checks import known
from jaxft.optim.paths import Tree, align, by_path, nearest


class Stage(NamedTuple):
    """From optimizer update `start` on (0 is the first; may be traced), exactly `groups` train."""

    start: int
    groups: frozenset[Hashable]


Plan = tuple[Stage, ...]


def top_down(groups: Sequence[Hashable], every: int, *, first: int = 1) -> Plan:
    """The head first, then one more group below every `every` updates.

    Howard and Ruder, "Universal language model fine-tuning for text classification" (ULMFiT), 2018
    (https://arxiv.org/abs/1801.06146).

    >>> [(stage.start, sorted(stage.groups)) for stage in top_down([0, 1, 2], every=10)]
    [(0, [2]), (10, [1, 2]), (20, [0, 1, 2])]

    Args:
      groups: from stem to head.
      every: updates between two stages.
      first: number of groups that train from the start.
    """
    _check(groups, every=every)
    if not 1 <= first <= len(groups):
        raise ValueError(f"first={first} of {len(groups)} groups: give 1 to {len(groups)}")
    sizes = range(first, len(groups) + 1)
    return tuple(Stage(i * every, frozenset(groups[-size:])) for i, size in enumerate(sizes))


def bottom_up(groups: Sequence[Hashable], every: int) -> Plan:
    """The head first, then the stem, then one group above every `every` updates.

    For inputs far from those of pretraining: the first layers adapt before the last ones do. Lee et
    al., "Surgical fine-tuning improves adaptation to distribution shifts", 2023
    (https://arxiv.org/abs/2210.11466).

    >>> [(stage.start, sorted(stage.groups)) for stage in bottom_up([0, 1, 2], every=10)]
    [(0, [2]), (10, [0, 2]), (20, [0, 1, 2])]
    """
    _check(groups, every=every)
    head = groups[-1]
    return tuple(Stage(i * every, frozenset({*groups[:i], head})) for i in range(len(groups)))


def explicit(unfrozen_at: Mapping[int, Iterable[Hashable]]) -> Plan:
    """Groups by the update from which they train; they train until the end.

    >>> [(stage.start, sorted(stage.groups)) for stage in explicit({0: ['head'], 100: ['body']})]
    [(0, ['head']), (100, ['body', 'head'])]

    Raises:
      ValueError: nothing trains at update 0.
    """
    if 0 not in unfrozen_at or min(unfrozen_at) < 0:
        raise ValueError(f"a plan starts with update 0, this one with {sorted(unfrozen_at)[:1]}")
    plan, groups = [], frozenset[Hashable]()
    for start in sorted(unfrozen_at):
        groups |= frozenset(unfrozen_at[start])
        plan.append(Stage(start, groups))
    return tuple(plan)


def chain_thaw(groups: Sequence[Hashable], every: int) -> Plan:
    """The head alone, then each other group alone from the stem up, then all together.

    Felbo et al., "Using millions of emoji occurrences to learn any-domain representations"
    (DeepMoji), 2017 (https://arxiv.org/abs/1708.00524). Groups freeze again after their turn:
    their moments wait.

    >>> [(stage.start, sorted(stage.groups)) for stage in chain_thaw([0, 1, 2], every=10)]
    [(0, [2]), (10, [0]), (20, [1]), (30, [0, 1, 2])]
    """
    _check(groups, every=every)
    turns = [{groups[-1]}, *({group} for group in groups[:-1]), set(groups)]
    return tuple(Stage(i * every, frozenset(turn)) for i, turn in enumerate(turns))


def lp_ft(groups: Sequence[Hashable], head_steps: int) -> Plan:
    """Linear probing, then fine-tuning: the head alone for `head_steps` updates, then everything.

    A head that fits first does not distort the pretrained features while it learns. Kumar et al.,
    "Fine-tuning can distort pretrained features and underperform out-of-distribution", 2022
    (https://arxiv.org/abs/2202.10054).

    >>> [(stage.start, sorted(stage.groups)) for stage in lp_ft([0, 1, 2], head_steps=50)]
    [(0, [2]), (50, [0, 1, 2])]
    """
    _check(groups, every=head_steps)
    return (Stage(0, frozenset(groups[-1:])), Stage(head_steps, frozenset(groups)))


def windows(plan: Plan, group: Hashable) -> tuple[tuple[int, int | None], ...]:
    """The intervals [start, end) of updates in which `group` trains; None is no end.

    >>> windows(chain_thaw([0, 1, 2], every=10), 0)
    ((10, 20), (30, None))
    """
    found: list[tuple[int, int | None]] = []
    ends = [*(stage.start for stage in plan[1:]), None]
    goes_on = False
    for stage, end in zip(plan, ends, strict=True):
        if group not in stage.groups:
            goes_on = False
            continue
        if goes_on:
            found[-1] = (found[-1][0], end)
        else:
            found.append((stage.start, end))
        goes_on = True
    return tuple(found)


def stage_index(plan: Plan, step: int) -> int:
    """Number of the stage that update `step` (0 is the first) belongs to.

    >>> stage_index(lp_ft([0, 1, 2], head_steps=50), 49), stage_index(lp_ft([0, 1, 2], 50), 50)
    (0, 1)
    """
    return sum(stage.start <= step for stage in plan) - 1


def trainable_groups(groups: Tree, frozen: Tree) -> frozenset[Hashable]:
    """The groups that have a parameter which is not frozen for good.

    Make a plan over these: a group that cannot train would take a stage in which nothing changes.

    >>> depths = {'stem': 0, 'block': {'bias': 1, 'kernel': 1}, 'head': 2}
    >>> frozen = {'stem': True, 'block': {'bias': False, 'kernel': True}, 'head': False}
    >>> sorted(trainable_groups(depths, frozen))
    [1, 2]

    Args:
      groups: the group of every parameter, such as its depth.
      frozen: True for parameters that never train; both in any container.

    Raises:
      ValueError: a parameter has no entry in `frozen`.
    """
    still = by_path(align(frozen, groups))
    return frozenset(group for path, group in by_path(groups).items() if not still[path])


def prune_plan(plan: Plan, groups: Tree, frozen: Tree) -> Plan:
    """The plan without groups that are frozen for good, and without stages that then change nothing.

    The stages that remain start when they did. For a plan by spacing (`top_down`, `bottom_up`,
    `chain_thaw`) rather make it over `trainable_groups`, so that the spacing stays.

    >>> depths, frozen = {'stem': 0, 'block': 1, 'head': 2}, {'stem': True, 'block': 0, 'head': 0}
    >>> pruned = prune_plan(explicit({0: [2], 10: [0], 20: [1]}), depths, frozen)
    >>> [(stage.start, sorted(stage.groups)) for stage in pruned]
    [(0, [2]), (20, [1, 2])]

    Args:
      plan: any plan.
      groups, frozen: as for `trainable_groups`.

    Raises:
      ValueError: the first stage trains nothing, or `trainable_groups` does.
    """
    free = trainable_groups(groups, frozen)
    kept: list[Stage] = []
    for stage in plan:
        training = stage.groups & free
        if not training and not kept:
            names = ", ".join(repr(group) for group in sorted(stage.groups, key=str))
            raise ValueError(f"nothing trains at first: the groups {names} are frozen for good")
        if training and (not kept or training != kept[-1].groups):
            kept.append(Stage(stage.start, training))
    return tuple(kept)


def frozen_in(plan: Plan, groups: Tree, index: int) -> Tree:
    """True where a parameter trains in no stage up to `index`, in the structure of `groups`.

    Parameters that froze again (chain-thaw) are not among them: they are gated, and keep their
    state.
    """
    seen = frozenset().union(*(stage.groups for stage in plan[: index + 1]))
    return jax.tree.map(lambda group: group not in seen, groups)


def check_plan(plan: Plan, groups: Tree) -> None:
    """Raise ValueError unless starts increase from 0 and every group has a parameter."""
    check_order(plan)
    given = set(by_path(groups).values())
    for group in frozenset().union(*(stage.groups for stage in plan)) - given:
        names = [str(name) for name in given]
        raise ValueError(f"no parameter is in the group {group!r}{nearest(str(group), names)}")


def check_order(plan: Plan) -> None:
    """Raise ValueError unless starts increase from 0, as far as they are known."""
    starts = [stage.start for stage in plan]
    pairs = zip(starts, starts[1:], strict=False)
    if (
        not starts
        or (known(starts[0]) and starts[0] != 0)
        or any(b <= a for a, b in pairs if known(a, b))
    ):
        raise ValueError(
            f"stages must start at 0 and then later and later, these start at {starts}"
        )


def _check(groups: Sequence[Hashable], *, every: int) -> None:
    if len(set(groups)) < max(len(groups), 2):
        raise ValueError(f"a plan needs two or more different groups, got {list(groups)}")
    if known(every) and every < 1:
        raise ValueError(f"a stage needs at least 1 update, got {every}")
