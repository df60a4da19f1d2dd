"""What one idea has to say. All functions take `config.optim` as `c` and the optimizer's numbers as `h`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import optax

from jaxft.config import ConfigDict
from jaxft.experiment.length import Length
from jaxft.training.parallel import Parallel
from jaxft.training.step import TrainState

Numbers = dict[str, Any]


class Weighed(Protocol):
    """A state whose weights are wanted."""

    @property
    def state(self) -> TrainState: ...
    @property
    def parallel(self) -> Parallel: ...
    @property
    def initialised(self) -> tuple[str, ...]:
        """Paths that the source checkpoint does not have."""
        ...

    def source(self) -> Any:
        """The whole tree that the run began with, placed, not replicated."""
        ...


@dataclasses.dataclass(frozen=True)
class Idea:
    """One idea.

    Attributes:
      asked: whether the config wants it.
      numbers: (config, length) -> what it adds to the numbers of the optimizer.
      wrap: (transform, h, schedule of the run, norm of gradients) -> transform; None leaves it as it is.
      weights: (c, what is weighed, whole tree) -> the tree that counts in its place, placed alike;
        None: the same.
      slots: whether `weights` reads the optimizer's slots.
      says: (c, what its weights are made of) -> its words on the weights that count; '' for none.
    """

    asked: Callable[[ConfigDict], bool]
    numbers: Callable[[ConfigDict, Length], Numbers] = lambda config, length: {}
    wrap: Callable[..., optax.GradientTransformationExtraArgs] | None = None
    weights: Callable[[ConfigDict, Weighed, Any], Any] | None = None
    slots: bool = False
    says: Callable[[ConfigDict, str], str] = lambda c, before: ""
