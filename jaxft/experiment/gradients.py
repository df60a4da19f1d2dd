"""What the first steps of a run would agree on, block by block: gradients of a few of its batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis import probing
from jaxft.analysis.linear_head import linear_head
from jaxft.analysis.signal import Signal, signal_to_noise
from jaxft.config import ConfigDict, override
from jaxft.data.loader import iterate
from jaxft.experiment.encoder import Slicing
from jaxft.experiment.features import Frozen
from jaxft.experiment.split import Split
from jaxft.models import Params, by_path
from jaxft.models.features import block_features
from jaxft.tasks.contract import Task

# Batches. Noise is known from their products alone, signal and all: even where all batches agree, the ratio
# is at most 2.4 of its deviations with 8 of them, 3.4 with 16 and 4.9 with 32.
FEWEST = 16
Tensors = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which rows are for what.

    Attributes:
      fitted, asked: positions of the rows that the head is fitted on, and of those of the gradients.
      batches: how many, of `batch_size` examples each; no two share an example.
    """

    fitted: np.ndarray
    asked: np.ndarray
    batches: int
    batch_size: int


def plan_gradients(strata: np.ndarray, batches: int, batch_size: int, seed: int) -> Plan:
    """Half of the rows for each. Batches are as large as the run's, or smaller where the rows would not make
    as many.

    Args:
      strata: [n] int, each of which is dealt out evenly.
    """
    fitted, asked = probing.folds(strata, 2, seed)[0]
    size = max(min(batch_size, len(asked) // max(batches, 1)), 1)
    return Plan(fitted, asked, min(batches, len(asked) // size), size)


def block_signals(
    one: Frozen, params: Params, split: Split, features: np.ndarray, columns: np.ndarray,
    config: ConfigDict, task: Task[Any], plan: Plan, *, classes: bool,
) -> tuple[Signal | None, ...]:  # fmt: skip
    """The signal of the gradient of each block, first to last; None where it is 0.

    The head is linear, as the probe's, and fitted on other rows than the gradients are of: on its own rows
    every block would have the signal of fitting them better still. Its scale and bias are of the
    rows of the gradients, see `linear_head`, so that no block is told to mend those. There is no dropout,
    and batch norms keep their statistics. One gradient and the sum of those before are in memory.

    Args:
      params: of `one.read`.
      split: the rows that `features` [n, D], of the last block, and `columns` [n, C] are of.
    """
    asked = split.take(plan.asked)
    # Each row once: of a mixture the same would come again in another batch.
    asked = dataclasses.replace(asked, source=dataclasses.replace(asked.source, mixture=None))
    weights = asked.targets.fill(np.arange(len(plan.asked)), {})["weight"].astype(np.float64)
    kernel, bias = linear_head(
        features[plan.fitted], columns[plan.fitted], features[plan.asked], columns[plan.asked],
        weights, classes=classes,
    )  # fmt: skip
    # Of one image each, since the loss is that of one target.
    plain = {"data.mixup": 0.0, "data.cutmix": 0.0}
    sizes = {"train.batch_size": plan.batch_size, "data.max_shapes": 1}
    here = override(config, sizes, plain)
    batches = one.encoder.training(asked, here, plan.batches, Slicing())
    depths, count = one.architecture.depths, one.architecture.num_blocks
    treedef, leaves = jax.tree.structure(params), by_path(params)
    tuned = {path: x for path, x in leaves.items() if 0 < depths.get(path, 0) <= count}
    rest = {path: x for path, x in leaves.items() if path not in tuned}

    def loss(tuned: Tensors, rest: Tensors, batch: Any) -> jax.Array:
        whole = jax.tree.unflatten(treedef, [{**rest, **tuned}[path] for path in leaves])
        hidden = block_features(one.architecture, whole, batch)[-1]
        total, weight = task.loss({"logits": hidden @ kernel + bias}, batch, 0.0)
        return total / jnp.maximum(weight, 1e-6)

    def step(
        running: Tensors, tuned: Tensors, rest: Tensors, batch: Any
    ) -> tuple[Tensors, jax.Array, jax.Array]:
        """(the sum of gradients; of each block the product of this one with the sum before; its square)"""
        gradient = jax.grad(loss)(tuned, rest, batch)
        products, squares = jnp.zeros((2, count))
        for path, g in gradient.items():
            products = products.at[depths[path] - 1].add(jnp.vdot(g, running[path]))
            squares = squares.at[depths[path] - 1].add(jnp.vdot(g, g))
        return jax.tree.map(jnp.add, running, gradient), products, squares

    compiled, running = jax.jit(step, donate_argnums=0), jax.tree.map(jnp.zeros_like, tuned)
    found = []
    for batch in iterate(batches, put=jax.device_put, threads=config.data.workers):
        running, *numbers = compiled(running, tuned, rest, batch)
        found.append(np.array(numbers, np.float64))
    products, squares = np.stack(found, axis=1)
    return tuple(signal_to_noise(products[:, b], squares[:, b]) for b in range(count))
