"""Discriminative fine-tuning: a rate, decay, schedule and optimizer for each group of parameters.

What PyTorch calls parameter groups and fastai discriminative rates; Howard and Ruder, "Universal
language model fine-tuning for text classification", 2018 (https://arxiv.org/abs/1801.06146). Where
groups differ in the rate alone, `fine_tuning_optimizer(scales=…)` needs less state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import optax

from jaxft.optim.checks import Scalar, known
from jaxft.optim.clip import Norm, clip_by_norm
from jaxft.optim.lookup import TreeOrFunction, is_function, lookup
from jaxft.optim.masks import decay_mask
from jaxft.optim.paths import Tree, by_path, nearest


@dataclasses.dataclass(frozen=True)
class Group:
    """How one group trains.

    Attributes:
      learning_rate: number or schedule (of updates).
      weight_decay: decoupled, on matrices and embeddings (see `decay_mask`).
      core: turns gradients into directions; None is `optax.scale_by_adam()`.
    """

    learning_rate: optax.ScalarOrSchedule
    weight_decay: Scalar = 0.0
    core: optax.GradientTransformation | None = None


def parameter_groups(
    groups: Mapping[str, Group | None],
    labels: TreeOrFunction,
    *,
    clip: Scalar | None = None,
    decayed: TreeOrFunction = decay_mask,
    norm: Norm | None = None,
) -> optax.GradientTransformationExtraArgs:
    """One optimizer a group; None in place of a group freezes it.

    >>> import jax.numpy as jnp
    >>> from jaxft.optim import match_rules
    >>> params = {'body': jnp.ones(1), 'head': jnp.ones(1)}
    >>> labels = match_rules([('head', 'fast')], params, default='slow')
    >>> tx = parameter_groups({'fast': Group(1e-1), 'slow': Group(1e-3)}, labels)
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> [round(float(updates[name][0]), 4) for name in ('body', 'head')]
    [-0.001, -0.1]

    Args:
      groups: by label.
      labels: the label of every parameter, from `match_rules` or by hand; in any container, or
        a function that gives them for the parameters.
      clip: largest global norm of the gradients of all groups that train, taken together.
      decayed: where weight decay applies.
      norm: see `clip_by_norm`.

    Raises:
      ValueError: a label has no group or a group no parameter; (at init) a parameter has no label.
    """
    if not is_function(labels):
        _check_labels(labels, groups)
        used = set(by_path(labels).values())
        for name in groups:
            if name not in used:
                raise ValueError(f"no parameter is in the group {name!r}{_near(name, used)}")
    label_of = lookup(labels)

    def labelled(tree: Tree) -> Tree:
        found = label_of(tree)
        _check_labels(found, groups)
        return found

    transforms = {
        name: optax.set_to_zero() if group is None else _transform(group, lookup(decayed))
        for name, group in groups.items()
    }
    by_group = optax.multi_transform(transforms, labelled)
    if clip is None:
        return by_group

    def trains(tree: Tree) -> Tree:
        return jax.tree.map(lambda label: groups[label] is not None, labelled(tree))

    # Masked: the gradients of frozen groups must neither count nor be computed for the norm.
    clipped = optax.masked(clip_by_norm(clip, norm), trains)
    return optax.chain(clipped, by_group)


def spread(low: Scalar, high: Scalar, count: int) -> tuple[Scalar, ...]:
    """`count` rates from `low` (stem) to `high` (head), each the same factor above the one before.

    >>> spread(1e-5, 1e-3, 3)
    (1e-05, 0.0001, 0.001)
    """
    if count < 2 or (known(low, high) and not 0 < low <= high):
        raise ValueError(f"need 0 < low <= high and two or more rates, got {low}, {high}, {count}")
    ratio = (high / low) ** (1 / (count - 1))
    below = [low * ratio**i for i in range(count - 1)]
    if isinstance(low, int | float) and isinstance(high, int | float):
        below = [float(f"{rate:.12g}") for rate in below]  # 1e-04, not 9.999999999999999e-05
    return (*below, high)


def _transform(group: Group, decayed: Callable[[Tree], Tree]) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam() if group.core is None else group.core,
        optax.add_decayed_weights(group.weight_decay, decayed),
        optax.scale_by_learning_rate(group.learning_rate),
    )


def _check_labels(labels: Tree, groups: Mapping[str, Group | None]) -> None:
    for path, label in by_path(labels).items():
        if label not in groups:
            raise ValueError(
                f"{path!r} is in the group {label!r}, which is not given{_near(label, groups)}"
            )


def _near(name: str, names: Mapping[str, Group | None] | set[str]) -> str:
    return (
        nearest(str(name), map(str, names)) or f"; there are {', '.join(sorted(map(str, names)))}"
    )
