"""What a page shows of one kind of task: the contract between the report and the task that fills it in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from jaxft.analysis.page import Html
from jaxft.analysis.record import Record


@dataclasses.dataclass(frozen=True)
class View:
    """What the report of a task shows besides what every run has.

    Attributes:
      tiles: metric -> the words under which its number stands at the top, the foremost first.
      result: (record, metrics of the split that is reported) -> a sentence that says how good it is.
      drawn: metrics in one picture over steps; (): those of `tiles`.
      eval_loss: what the loss of an evaluation is, where it is another quantity than that of training.
      sections: heading -> (record, the module of plots) -> what stands under it.
    """

    tiles: Mapping[str, str]
    result: Callable[[Record, Mapping[str, Any]], str]
    sections: Mapping[str, Callable[[Record, ModuleType], Html]]
    drawn: tuple[str, ...] = ()
    eval_loss: str = ""

    @property
    def curves(self) -> tuple[str, ...]:
        """The metrics that are drawn over steps; the loss has a picture of its own."""
        return self.drawn or tuple(name for name in self.tiles if name != "loss")
