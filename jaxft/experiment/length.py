"""How long a run is, and what its durations are in optimizer updates."""

from __future__ import annotations

from typing import NamedTuple

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, duration_steps
from jaxft.data.sampler import steps_per_epoch


class Length(NamedTuple):
    """Of a run, in optimizer updates.

    Attributes:
      steps: of the whole run.
      epoch: of one pass over the training rows.
    """

    steps: int
    epoch: int

    def of(self, config: ConfigDict, field: str) -> int:
        """A duration of the config in updates.

        Raises:
          ValueError: it is no duration.
        """
        value = flatten(config)[field]
        return duration_steps(field, value, steps_per_epoch=self.epoch, total_steps=self.steps)

    def within(self, config: ConfigDict, field: str) -> int:
        """The same for one that must end before the run does.

        Raises:
          ValueError: also where it does not.
        """
        steps = self.of(config, field)
        if steps > self.steps:
            value = flatten(config)[field]
            raise ValueError(f"config.{field}={value!r} is {steps} steps, the run has {self.steps}")
        return steps


def run_length(config: ConfigDict, examples: int) -> Length:
    """Of a run over so many training rows. Of a stream, which nobody has counted, an epoch is the run."""
    if config.data.stream:
        return Length(config.train.steps, config.train.steps)
    epoch = steps_per_epoch(examples, config.train.batch_size)
    return Length(config.train.steps or max(1, round(config.train.epochs * epoch)), epoch)
