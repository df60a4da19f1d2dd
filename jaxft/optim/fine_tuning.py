"""One optimizer for fine-tuning, with its steps in the only order that does what each of them says.

    clip by global norm     trainable gradients only: frozen ones are neither counted nor computed
    adaptive core           Adam's moments; everything that rescales gradients comes before this
    decoupled weight decay  after the core, or Adam would rescale it; not on biases and norms
    scale per path          after the core, where it is a learning rate; it scales the decay too
    schedule                last, one for all; counts optimizer updates

Frozen parameters take none of these steps: they have no optimizer state, no decay and a zero
update.
"""

from __future__ import annotations

from typing import Any

import optax

from jaxft.optim.checks import Scalar
from jaxft.optim.clip import Norm, clip_by_norm
from jaxft.optim.freeze import freeze
from jaxft.optim.layerwise import scale_by_path
from jaxft.optim.lookup import TreeOrFunction, deferred, is_function, lookup, of
from jaxft.optim.masks import decay_mask
from jaxft.optim.paths import Tree
from jaxft.optim.stages import Plan
from jaxft.optim.unfreeze import unfreeze


def fine_tuning_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    core: optax.GradientTransformation | None = None,
    frozen: TreeOrFunction | None = None,
    scales: TreeOrFunction | None = None,
    weight_decay: Scalar = 0.01,
    decayed: TreeOrFunction | None = None,
    decay: optax.GradientTransformation | None = None,
    clip: Scalar | None = None,
    norm: Norm | None = None,
    plan: Plan | None = None,
    groups: TreeOrFunction | None = None,
    stage: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with frozen parameters, rates per path and clipping of the trainable gradients.

    With `core`, `frozen`, `scales` and `clip` left out the updates are those of
    `optax.adamw(learning_rate, weight_decay=weight_decay, mask=decay_mask)`, bit for bit.

    >>> import jax.numpy as jnp
    >>> from jaxft.optim import select
    >>> params = {'body': {'kernel': jnp.ones((2, 2))}, 'head': {'kernel': jnp.ones((2, 1))}}
    >>> tx = fine_tuning_optimizer(1e-3, frozen=select(params, ['body/.*']), clip=1.0)
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> round(float(updates['head']['kernel'][0, 0]), 5), float(updates['body']['kernel'][0, 0])
    (-0.00101, 0.0)

    The trees below hold one value for each parameter path, in any container, also a flat
    `{path: value}`, or functions `params -> tree`, which are called with what `init` and `update`
    are given. The transform serves the full tree and its trainable part (None elsewhere, see
    `partition.split`) alike. Differentiate the trainable part: that alone guarantees that frozen
    parameters cost no backward work.

    Every number, also in the trees, may be traced: `optax.inject_hyperparams(fine_tuning_optimizer)`
    works under jit, and a step that makes its optimizer from rates it receives works under vmap.
    Values are then not checked.

    Args:
      learning_rate: number or schedule, before the multipliers.
      core: turns gradients into directions of the update; default `optax.scale_by_adam()`.
      frozen: True for parameters that stay as they are; default none.
      scales: learning-rate multipliers (`layer_scales`, rules or both); default 1.
      weight_decay: decoupled coefficient, multiplied with the learning rate as in PyTorch and
        optax.
      decayed: True where weight decay applies; default `decay_mask`.
      decay: another decay in place of weight decay, such as `l2sp`; then the two above are not
        used.
      clip: largest global norm of the trainable gradients; None does not clip.
      norm: what `clip` measures gradients by; None: their global L2 norm.
      plan: stages of gradual unfreezing (see `unfreeze`); a held group neither moves nor counts for
        `clip`.
      groups: the group of every parameter, such as its depth (see `unfreeze`).
      stage: the only stage of the plan that this program runs (see `unfreeze`).

    Raises:
      ValueError: `plan` without `groups` or the reverse, or a plan out of order; (at init or
        update) a parameter has no value in one of the trees.
    """
    if (plan is None) != (groups is None):
        raise ValueError("a plan of unfreezing and the groups it speaks of must be given together")

    def compose(frozen: Any, scales: Any, decayed: Any, groups: Any) -> Any:
        direction = optax.chain(
            optax.scale_by_adam() if core is None else core,
            optax.add_decayed_weights(weight_decay, decayed) if decay is None else decay,
        )
        if plan is not None:
            direction = unfreeze(direction, plan, groups, clip=clip, stage=stage, norm=norm)
        elif clip is not None:
            direction = optax.chain(clip_by_norm(clip, norm), direction)
        rates = optax.identity() if scales is None else scale_by_path(scales)
        tx = optax.chain(direction, rates, optax.scale_by_learning_rate(learning_rate))
        return optax.with_extra_args_support(tx) if frozen is None else freeze(tx, frozen)

    mask = decay_mask if decayed is None else lookup(decayed)
    if not any(map(is_function, (frozen, scales, decayed, groups))):
        return compose(frozen, scales, mask, groups)

    def for_tree(params: Tree) -> optax.GradientTransformation:
        # Here, where the whole tree is seen: inside `freeze` a function would see it with holes.
        mask = decay_mask if decayed is None else lookup(of(decayed, params))
        found = of(groups, params)
        # Still as a function: in a part of the tree a group of the plan may have no parameter.
        by_group = (lambda _: found) if is_function(groups) else groups
        return compose(of(frozen, params), of(scales, params), mask, by_group)

    return deferred(for_tree)
