"""The update as one pure function of (state, batch). No files, no config, no devices.

`jit`, `jit` over a mesh and `pmap` are three ways to compile it (see `parallel`). Under pmap the
gradient and the evaluation are given the mapped axis; nothing else differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.optim import Norm, merge
from jaxft.training.gradient import Arrays, GradientFn, MeanGradient, Objective

# (whole tree, batch, dropout key or None) -> outputs
Forward = Callable[[Any, Arrays, jax.Array | None], Arrays]
# (outputs, batch) -> (sum, weight)
Loss = Callable[[Arrays, Arrays], tuple[jax.Array, jax.Array]]
# (outputs of one pass, of another, batch) -> how far they are apart: a weighted sum
Disagreement = Callable[[Arrays, Arrays, Arrays], jax.Array]
# (outputs, batch) -> what an evaluation brings back of a batch
Predictions = Callable[[Arrays, Arrays], Arrays]
# (TrainState.stats, 'moments' of the outputs) -> the next stats
Moved = Callable[[Any, Any], Any]
# (outputs, batch) -> [n, 2]: n sums of losses and of their weights
Tally = Callable[[Arrays, Arrays], jax.Array]
# hyperparameters -> the transform that has them; called while the step is traced
Optimizer = Callable[[Any], optax.GradientTransformation]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that an update reads and writes.

    `params`, `frozen` and `stats` are the model's tree with None where the leaf belongs to another:
    what is not in `params` has no gradient, no optimizer slot and no backward work.

    Attributes:
      step: int32 scalar, optimizer updates done; schedules, logs and checkpoints count the same.
      params: trainable parameters, float32.
      frozen: all other parameters, and batch statistics that do not move.
      opt_state: of the optax transform, for `params` alone.
      hparams: what `hyperparameters` gives; read by every update and never changed. Inputs of the
        program and not constants in it, so one program serves every seed and every rate. Not in
        checkpoints: they follow from the config.
      stats: batch statistics that move; None: none does.
    """

    step: jax.Array
    params: Any
    frozen: Any
    opt_state: Any
    hparams: Any
    stats: Any = None

    @property
    def whole(self) -> Any:
        """The model's tree."""
        return _whole(self.params, self.frozen, self.stats)


def hyperparameters(key: jax.Array, optimizer: Any = None) -> dict[str, Any]:
    """`TrainState.hparams`: the root key of the run (as data, uint32), and what its optimizer takes."""
    return {"key": jax.random.key_data(key), "optimizer": optimizer}


def init_state(
    params: Any, frozen: Any, hparams: Any, stats: Any = None, *, optimizer: Optimizer
) -> TrainState:
    """State before the first update."""
    slots = optimizer(hparams["optimizer"]).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, frozen, slots, hparams, stats)


def train_step(
    state: TrainState,
    batch: Arrays,
    *,
    forward: Forward,
    loss: Loss,
    optimizer: Optimizer,
    gradient: GradientFn = MeanGradient(),  # noqa: B008 frozen
    held: Any = None,
    moved: Moved | None = None,
    tallies: Mapping[str, Tally] = MappingProxyType({}),
    disagreement: Disagreement | None = None,
    nonfinite: str = "stop",
    norm: Norm = optax.tree.norm,
    broken: Callable[[Any], jax.Array] | None = None,
) -> tuple[TrainState, Arrays]:
    """One optimizer update.

    Args:
      state: see `TrainState`; may be donated.
      batch: arrays with a common leading axis; 'weight' 0 marks padding.
      forward, loss: the model and the task.
      optimizer: gives the transform for `state.hparams['optimizer']`.
      gradient: of the loss sum of this batch, such as `MeanGradient`.
      held: bools at the paths of `params`: True for what keeps its slots but does not train now (a
        stage of gradual unfreezing that froze it again); None if there is none.
      moved: how `state.stats` follow what the forward passes saw; None: there are none.
      tallies: losses that the log tells apart, by name: those of a mixture's sources (see
        `losses_by_source`), the parts of a loss.
      disagreement: the loss is then the mean of two passes with different dropout, and this of both
        (R-Drop, Liang et al. 2021); None: one pass.
      nonfinite: 'stop': such an update is made like any other, for the caller to notice by 'loss' and
        'grad_norm'; 'rollback': so it is, and the metrics say it; 'skip': and the next state is this one,
        bit for bit, but for the step number. No value is looked at outside the program.
      norm: of 'grad_norm'.
      broken: gives the metric 'leaves' of the gradients; None: `broken_leaves`.

    Returns:
      The next state, and metrics: 'loss' (weighted mean), 'weight' (examples), 'grad_norm' (global
      L2 norm of the trainable gradients before clipping), float32 scalars equal on all devices; and
      what each of `tallies` gives, by its name. Unless `nonfinite` is 'stop' also 'nonfinite' (1.0 where
      the loss, the gradient, the update or the moved statistics are not finite, else 0.0) and 'leaves'
      [P] (bool: of each trainable parameter, in the order of its tree, whether its gradient is not finite).
    """
    # The update's own key follows from the run's and the step: nothing random is stored.
    key = jax.random.fold_in(jax.random.wrap_key_data(state.hparams["key"]), state.step)

    def forwarded(params: Any, part: Arrays, key: jax.Array) -> Arrays:
        # Frozen values enter as constants, so differentiation stops where they alone are involved.
        if held is not None:
            params = jax.tree.map(lambda p, h: jax.lax.stop_gradient(p) if h else p, params, held)
        return forward(_whole(params, state.frozen, state.stats), part, key)

    def loss_sum(params: Any, part: Arrays, key: jax.Array) -> tuple[jax.Array, Any]:
        first = key if disagreement is None else jax.random.fold_in(key, 1)
        outputs = forwarded(params, part, first)
        total, weight = loss(outputs, part)
        kept: dict[str, Any] = {"moments": outputs.get("moments", {})}
        kept["tallies"] = {name: tally(outputs, part) for name, tally in tallies.items()}
        if disagreement is not None:
            others = forwarded(params, part, jax.random.fold_in(key, 2))
            total = 0.5 * (total + loss(others, part)[0]) + disagreement(outputs, others, part)
        return total, (weight, kept)

    objective = Objective(forwarded, loss_sum)
    found = gradient(objective, state.params, batch, key)
    # grad_fn is for transforms that look elsewhere on the same batch (SAM); untouched, it costs nothing.
    tx = optax.with_extra_args_support(optimizer(state.hparams["optimizer"]))
    updates, opt_state = tx.update(
        found.grads, state.opt_state, state.params,
        grad_fn=lambda params: gradient(objective, params, batch, key).grads,
    )  # fmt: skip
    params = optax.apply_updates(state.params, updates)
    length = norm(found.grads)
    metrics = {"loss": found.loss, "weight": found.weight, "grad_norm": length}
    metrics |= found.kept.get("tallies", {})  # none of a gradient that is taken by embeddings
    stats = state.stats if moved is None else moved(state.stats, found.kept["moments"])
    after = dataclasses.replace(
        state, step=state.step + 1, params=params, opt_state=opt_state, stats=stats
    )
    if nonfinite != "stop":
        # The update too: a transform may take a second gradient elsewhere (SAM).
        marks = broken_leaves(found.grads) if broken is None else broken(found.grads)
        finite = _is_finite((found.loss, length, updates, stats))
        metrics |= {"nonfinite": 1.0 - finite.astype(jnp.float32), "leaves": marks}
        if nonfinite == "skip":
            after = _where(finite, after, state)
    return after, metrics


def broken_leaves(grads: Any) -> jax.Array:
    """Of each leaf, in the order of the tree, whether it is not finite: [P] bool."""
    return jnp.stack([~_is_finite(leaf) for leaf in jax.tree.leaves(grads)])


def _is_finite(tree: Any) -> jax.Array:
    """Whether every number of the tree is, bool scalar."""
    finite = jnp.bool_(True)
    for leaf in jax.tree.leaves(tree):
        finite &= jnp.all(jnp.isfinite(leaf))
    return finite


def _where(finite: jax.Array, after: TrainState, before: TrainState) -> TrainState:
    """`after` where it is finite, else `before`, which has had one more batch."""

    def chosen(name: str) -> Any:
        pair = getattr(after, name), getattr(before, name)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), *pair)

    moves = {name: chosen(name) for name in ("params", "opt_state", "stats")}
    return dataclasses.replace(after, **moves)


def eval_step(
    params: Any,
    batch: Arrays,
    *,
    forward: Forward,
    predictions: Predictions,
    axis_name: str | None = None,
) -> Arrays:
    """The task's predictions of a batch, without dropout.

    Args:
      params: the whole tree, so that one program serves every stage of unfreezing.
      batch, forward: as in `train_step`.
      predictions: of the task; its arrays begin with the batch's first axis.
      axis_name: the mapped axis under pmap; None under jit.

    Returns:
      What `predictions` gives, of all devices when `axis_name` is given.
    """
    result = predictions(forward(params, batch, None), batch)
    if axis_name is not None:
        result = jax.lax.all_gather(result, axis_name, tiled=True)
    return result


def _whole(params: Any, frozen: Any, stats: Any) -> Any:
    return merge(params, frozen) if stats is None else merge(params, frozen, stats)
