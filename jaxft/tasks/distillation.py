"""Learning from a teacher: how far a model's outputs are from those of another.

As Hinton et al. 2015 (arXiv:1503.02531) have it, both models' logits are divided by a temperature, and the
distance is multiplied by its square, so that its gradient keeps its size as the temperature changes. The
divergence and not the cross-entropy is taken: it has the same gradient, and is 0 where the outputs are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxft.tasks.contract import Arrays, Distils

# What the log calls the task's own loss, and the distance from the teacher.
PARTS = ("hard_loss", "soft_loss")
# (outputs, batch) -> (sum, weight)
Loss = Callable[[Arrays, Arrays], tuple[jax.Array, jax.Array]]


def class_distance(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """[...]: T^2 KL(teacher | student) of the softmax of logits [..., C] over T, float32."""
    q, p = (
        jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
        for logits in (student, teacher)
    )
    return temperature**2 * jnp.sum(jnp.exp(p) * (p - q), -1)


def label_distance(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """[...]: the same of labels that each apply or not, the mean over labels [..., C]."""
    q, p = (logits.astype(jnp.float32) / temperature for logits in (student, teacher))
    yes = jax.nn.log_sigmoid(p) - jax.nn.log_sigmoid(q)
    no = jax.nn.log_sigmoid(-p) - jax.nn.log_sigmoid(-q)
    share = jax.nn.sigmoid(p)
    return temperature**2 * jnp.mean(share * yes + (1 - share) * no, -1)


def number_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """[...]: the squared difference of numbers [..., 1], float32."""
    difference = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.sum(difference**2, -1)


@dataclasses.dataclass(frozen=True)
class DistillationLoss:
    """The loss of a task whose model also learns from a teacher, as (sum, weight).

    The mean over a batch is (1 - weight) x that of the task's own loss, which label smoothing, class weights
    and the focal factor shape, + weight x that of the distance. Both are sums over predictions, so that
    accumulation equals the big batch.

    Attributes:
      hard: the task's own.
      weight: what the distance counts.
      temperature: see `class_distance`.
    """

    task: Distils
    hard: Loss
    weight: float
    temperature: float

    def __call__(self, outputs: Arrays, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """batch: 'teacher' [..., C] float32 and 'teacher_weight' [...] float32, 0 where nothing is known."""
        total, weight = self.hard(outputs, batch)
        return (1 - self.weight) * total + self.weight * self._soft(outputs, batch), weight

    def parts(self, outputs: Arrays, batch: Arrays, axis_name: str | None = None) -> jax.Array:
        """[2, 2] float32, see `PARTS`: of each the sum and the sum of the weights, over all devices.

        Without a gradient: this is for the log. axis_name: the mapped axis under pmap; None under jit.
        """
        outputs = jax.lax.stop_gradient(outputs)
        soft = self._soft(outputs, batch), jnp.sum(batch["teacher_weight"])
        found = jnp.stack([jnp.stack(self.hard(outputs, batch)), jnp.stack(soft)])
        return found if axis_name is None else jax.lax.psum(found, axis_name)

    def _soft(self, outputs: Arrays, batch: Arrays) -> jax.Array:
        apart = self.task.distance(outputs, batch, self.temperature)
        return jnp.sum(apart * batch["teacher_weight"])
