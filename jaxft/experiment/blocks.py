"""The training rows of a stream, block by block: opened, renamed, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxft.config import ConfigDict
from jaxft.data.sources import Source
from jaxft.data.stream import Position
from jaxft.experiment.opening import Given, named_anew, open_streamed
from jaxft.experiment.split import Split
from jaxft.tasks.contract import Referring, Task

# Makes a split of the rows of one block: (rows with targets, what was noticed).
Settle = Callable[[Source], tuple[Split, tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A stream as a run reads it.

    Attributes:
      read: position -> the rows there, where the next ones are, and what was noticed.
      after: where the block that follows the first begins.
    """

    read: Callable[[Position], tuple[Split, Position, tuple[str, ...]]]
    after: Position


class Streamed:
    """The training data of a config as a stream. first: its first block, whose rows decide what labels are.

    Raises:
      ValueError: it cannot be read as one, or something is asked for that needs all rows.
    """

    def __init__(self, config: ConfigDict, task: Task[Any], given: Given):
        if config.train.class_weights == "balanced":
            raise ValueError(
                "config.train.class_weights='balanced' needs all rows, and config.data.stream reads a block "
                "of them at a time; give ((label, weight), …)"
            )
        if isinstance(task, Referring):
            raise ValueError(
                f"config.task={config.task!r} compares with what the model says of every row before the "
                "first step, and config.data.stream reads a block of rows at a time; leave it None"
            )
        self._config = config.data
        self._stream = open_streamed(config.data, given)
        first, self._after = self._stream.read(Position())
        self.first = named_anew(first, config.data)

    @property
    def said(self) -> str:
        """How the stream is read, one line."""
        whole = ", which are all of its rows" * (self._after.row == 0)
        return (
            f"{self._stream.name} is read as a stream: {len(self.first):,} rows at a time, in random order "
            f"among themselves{whole}"
        )

    def blocks(self, settle: Settle) -> Blocks:
        """All of it; each block is settled as the first one was."""

        def read(position: Position) -> tuple[Split, Position, tuple[str, ...]]:
            source, after = self._stream.read(position)
            split, notes = settle(named_anew(source, self._config))
            return split, after, notes

        return Blocks(read, self._after)
