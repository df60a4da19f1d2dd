"""What is learned from a batch: the loss, and how outputs become predictions. One file a task kind.

A task knows batches and outputs. It knows nothing of models, files or devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from jaxft.tasks import classification

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of task.

    Attributes:
      inputs: 'text' or 'image': the data pipeline and the model families it works with.
      loss: `(outputs, batch, label_smoothing=0.0) -> (sum, weight)`, two float32 scalars.
    """

    inputs: str
    loss: Callable[..., tuple[jax.Array, jax.Array]]


TASKS = {
    "text_classification": Task("text", classification.loss),
    "image_classification": Task("image", classification.loss),
}
