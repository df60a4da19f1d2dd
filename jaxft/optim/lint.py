"""Mistakes in an optimizer for fine-tuning that raise no error and cost accuracy, memory or time.

`lint` judges behaviour, not source: it runs the transform on tiny stand-ins of the parameters (see
`probe`), changes one thing, and looks at what follows. If the updates of trainable parameters
depend on the gradients of frozen ones, something clips before the mask, whatever it is called.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import optax

from jaxft.optim import probe
from jaxft.optim.lookup import TreeOrFunction, of
from jaxft.optim.paths import Tree, align, by_path, leaf_paths, unmatched
from jaxft.optim.stages import Plan


@dataclasses.dataclass(frozen=True)
class Finding:
    """One mistake.

    Attributes:
      code: its kind, one of the keys of `FIXES`.
      path: the parameter, pattern or group it was seen at, or the first of them.
      message: what happens.
      fix: what to do.
    """

    code: str
    path: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message} Fix: {self.fix}."


FIXES = {
    "no-match": "correct the pattern or remove it",
    "clip-before-mask": "move clipping into the transform of the trainable group: "
    "freeze(chain(clip_by_norm(c), adamw(lr)), frozen), or fine_tuning_optimizer(clip=c)",
    "norm-over-frozen": "take the norm of the trainable part only, split(grads, labels)['train']",
    "decay-on-frozen": "give weight decay and frozen parameters to multi_transform (freeze), or "
    "mask the decay; zero gradients do not stop it",
    "frozen-moves": "route it to optax.set_to_zero() with freeze(tx, frozen)",
    "frozen-slots": "wrap the optimizer in freeze(tx, frozen), or split the parameters",
    "tied-split": "give all tied paths the same rule, or tie them in the model as one leaf",
    "scale-before-adam": "put the factor after the adaptive core: chain(scale_by_adam(), "
    "scale_by_path(scales), scale_by_learning_rate(lr))",
    "schedule-ends": "lengthen the schedule or unfreeze earlier",
    "never-trains": "add its group to a stage, or freeze it and save its backward work",
}


def lint(
    tx: optax.GradientTransformation,
    params: Tree,
    *,
    frozen: TreeOrFunction | None = None,
    patterns: Iterable[str] = (),
    scales: TreeOrFunction | None = None,
    tied: Iterable[Sequence[str]] = (),
    metrics: Callable[[Tree], Any] | None = None,
    plan: Plan = (),
    groups: TreeOrFunction | None = None,
    schedule: optax.Schedule | None = None,
) -> list[Finding]:
    """Everything that is wrong with `tx` for `params`, given what is meant.

    >>> import jax.numpy as jnp
    >>> from jaxft.optim import freeze
    >>> params = {'body': jnp.ones((2, 2)), 'head': jnp.ones((2, 2))}
    >>> frozen = {'body': True, 'head': False}
    >>> [finding.code for finding in lint(freeze(optax.adamw(1e-3), frozen), params, frozen=frozen)]
    []
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), freeze(optax.adamw(1e-3), frozen))
    >>> [(finding.code, finding.path) for finding in lint(tx, params, frozen=frozen)]
    [('clip-before-mask', 'body')]

    Args:
      tx: for the full tree; takes a few eager updates of tiny arrays.
      params: the full tree: arrays or `jax.ShapeDtypeStruct`. Arrays that stand in it twice are
        tied.
      frozen: True for parameters that are meant to stay.
      patterns: of all the rules in use; each must match a parameter.
      scales: the learning-rate multipliers that are meant.
      tied: groups of paths that share one weight.
      metrics: what the training step computes from gradients, such as their norm, as a function of
        the tree that the training step differentiates.
      plan, groups: gradual unfreezing, see `unfreeze`.
      schedule: of the learning rate, by updates of the run.

    Returns:
      The findings, at most one of each kind for a pattern, parameter or group; empty if all is
      well.
    """
    frozen, scales, groups = (of(values, params) for values in (frozen, scales, groups))
    paths = leaf_paths(params)
    tiny = probe.fitting_stand_in(tx, params)
    is_frozen = dict.fromkeys(paths, False) if frozen is None else by_path(align(frozen, params))
    still = {path for path in paths if is_frozen[path]}
    ties = [*tied, *_same_leaves(params)]
    return [
        *_unmatched(patterns, paths),
        *_frozen_findings(tx, tiny, still),
        *_metric_findings(metrics, tiny, still),
        *_tie_findings(tx, tiny, still, ties),
        *_scale_findings(tx, tiny, still, scales),
        *_plan_findings(plan, groups, still, schedule),
    ]


def _unmatched(patterns: Iterable[str], paths: Sequence[str]) -> Iterator[Finding]:
    for pattern, message in unmatched(patterns, paths).items():
        yield _finding("no-match", pattern, message + ".")


def _frozen_findings(
    tx: optax.GradientTransformation, tiny: Tree, still: set[str]
) -> Iterator[Finding]:
    """Frozen parameters that move, or that others feel."""
    if not still:
        return

    def calm(path: str) -> float:
        return 0.0 if path in still else 0.01

    def loud(path: str) -> float:
        return 1e3 if path in still else 0.01

    steps = [calm] * probe.STEPS
    quiet = probe.run(tx, tiny, steps, value=0.5)
    # Not at the first call: Adam's first update has lost the scale that a clip put into it.
    noisy = probe.run(tx, tiny, [calm, loud, *steps[2:]], value=0.5)
    example = min(still)
    trained = [path for path in leaf_paths(tiny) if path not in still]
    for before, after in zip(quiet.updates, noisy.updates, strict=True):
        moved = {path: before[path] for path in trained}
        if felt := probe.first_difference(moved, {path: after[path] for path in trained}):
            text = f"the update of {felt!r} depends on the gradient of the frozen {example!r}."
            yield _finding("clip-before-mask", example, text)
            break
    else:
        yield from _state_findings(quiet, noisy, leaf_paths(tiny), example)
    drifting = [path for path in sorted(still) if quiet.moved(path)]
    if drifting:
        text = f"the frozen {drifting[0]!r}{_more(drifting)} moves although its gradient is zero."
        yield _finding("decay-on-frozen", drifting[0], text)
    following = [path for path in sorted(still - set(drifting)) if noisy.moved(path)]
    if following:
        text = f"the frozen {following[0]!r}{_more(following)} follows its gradient."
        yield _finding("frozen-moves", following[0], text)
    slots = probe.slots(quiet.states[-1], leaf_paths(tiny))
    kept = {path for slot in slots.values() for path in slot if path in still}
    if kept:
        text = (
            f"the optimizer keeps state for {len(kept)} frozen parameters, such as {min(kept)!r}."
        )
        yield _finding("frozen-slots", min(kept), text)


def _state_findings(
    quiet: probe.Trace, noisy: probe.Trace, paths: Sequence[str], example: str
) -> Iterator[Finding]:
    """Statistics that read frozen gradients, after any call: some remember only the last."""
    for before, after in zip(quiet.states, noisy.states, strict=True):
        where = probe.first_difference(probe.shared(before, paths), probe.shared(after, paths))
        if where is not None:
            text = f"the optimizer state {where!r} reads the gradient of the frozen {example!r}."
            yield _finding("norm-over-frozen", example, text)
            return


def _metric_findings(
    metrics: Callable[[Tree], Any] | None, tiny: Tree, still: set[str]
) -> Iterator[Finding]:
    if metrics is None or not still:
        return
    quiet = probe.filled(tiny, lambda path: 0.0 if path in still else 0.01)
    for path in sorted(still):
        loud = probe.filled(tiny, functools.partial(_loud_at, path, still))
        if probe.first_difference(by_path(metrics(quiet)), by_path(metrics(loud))) is not None:
            text = (
                f"a metric reads the gradient of the frozen {path!r}, which must then be computed."
            )
            yield _finding("norm-over-frozen", path, text)
            return


def _tie_findings(
    tx: optax.GradientTransformation,
    tiny: Tree,
    still: set[str],
    ties: Sequence[Sequence[str]],
) -> Iterator[Finding]:
    if not ties:
        return
    trace = probe.run(tx, tiny, [lambda path: 0.01] * probe.STEPS, value=0.5)
    for first, *others in ties:
        for other in others:
            moved, with_it = trace.moved(first), trace.moved(other)
            apart = (first in still) != (other in still)
            if apart or abs(moved - with_it) > 1e-3 * max(moved, with_it):
                text = f"{first!r} and {other!r} are one weight but are optimized differently."
                yield _finding("tied-split", other, text)


def _scale_findings(
    tx: optax.GradientTransformation, tiny: Tree, still: set[str], scales: Tree | None
) -> Iterator[Finding]:
    """Multipliers that do not arrive in the updates of equal parameters with equal gradients."""
    trace = probe.run(tx, tiny, [lambda path: 0.01] * probe.STEPS, value=0.0)
    moved = {path: trace.moved(path) for path in leaf_paths(tiny) if path not in still}
    moved = {path: size for path, size in moved.items() if size > 0}
    if scales is None:
        yield from _cancelled(trace, moved)
        return
    meant = {path: scale for path, scale in by_path(scales).items() if path in moved}
    meant = {path: scale for path, scale in meant.items() if isinstance(scale, int | float)}
    if not meant:
        return
    top = max(meant, key=lambda path: meant[path])
    for path in sorted(meant, key=lambda path: meant[path]):
        share, wanted = moved[path] / moved[top], meant[path] / meant[top]
        if abs(share - wanted) > 0.02 * wanted:
            text = (
                f"{path!r} is to learn at {wanted:.4g} of the rate of {top!r} but has {share:.4g}."
            )
            yield _finding("scale-before-adam", path, text)
            return


def _cancelled(trace: probe.Trace, moved: dict[str, float]) -> Iterator[Finding]:
    """Equal gradients that reach different moments and still give equal updates."""
    for found in probe.slots(trace.states[-1], list(trace.updates[0])).values():
        slot = {path: moment for path, moment in found.items() if path in moved}
        first = next(iter(slot), "")
        for path, moment in slot.items():
            same_update = abs(moved[path] - moved[first]) <= 1e-3 * moved[first]
            if same_update and probe.differ(moment.mean(), slot[first].mean()):
                text = f"the gradient of {path!r} is scaled, but its update is that of {first!r}."
                yield _finding("scale-before-adam", path, text)
                return


def _plan_findings(
    plan: Plan, groups: Tree | None, still: set[str], schedule: optax.Schedule | None
) -> Iterator[Finding]:
    if not plan:
        return
    if schedule is not None:
        yield from _ended(plan, schedule)
    trained = frozenset().union(*(stage.groups for stage in plan))
    seen = set()
    for path, group in by_path(groups).items():
        if group not in trained and group not in seen and path not in still:
            seen.add(group)
            text = f"{path!r} is in the group {group!r}, which no stage unfreezes."
            yield _finding("never-trains", path, text)


def _ended(plan: Plan, schedule: optax.Schedule) -> Iterator[Finding]:
    """The first stage in which the rate stays below a hundredth of what it was before."""
    peak, before = 0.0, frozenset[Hashable]()
    length = plan[-1].start - plan[-2].start if len(plan) > 1 else 1  # the last stage has no end
    for stage, end in zip(
        plan, [*(s.start for s in plan[1:]), plan[-1].start + length], strict=True
    ):
        samples = {stage.start + (end - stage.start) * i // 16 for i in range(17)}
        rate = max(float(schedule(step)) for step in samples)
        if rate <= 0.01 * peak:
            started = ", ".join(map(repr, sorted(map(str, stage.groups - before))))
            text = f"the learning rate is {rate:.3g} from update {stage.start} on, where the group "
            yield _finding("schedule-ends", started, f"{text}{started} starts to train.")
            return
        peak, before = max(peak, rate), stage.groups


def _same_leaves(params: Tree) -> list[list[str]]:
    """Paths that hold the very same array."""
    by_identity: dict[int, list[str]] = {}
    for path, leaf in by_path(params).items():
        if hasattr(leaf, "shape"):
            by_identity.setdefault(id(leaf), []).append(path)
    return [paths for paths in by_identity.values() if len(paths) > 1]


def _loud_at(loud: str, still: set[str], path: str) -> float:
    return 1e3 if path == loud else 0.0 if path in still else 0.01


def _more(paths: Sequence[str]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""


def _finding(code: str, path: str, message: str) -> Finding:
    return Finding(code, path, message, FIXES[code])
