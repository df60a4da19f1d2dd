"""What a field of an experiment is: its default, its bounds, what it asks of others."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

# Steps are counted in 32 bits on the device.
MOST_STEPS = 2**31 - 1
MANY = 1_000_000


class Need(NamedTuple):
    """What one field asks of another.

    Attributes:
      other: its name.
      values: those that it may have; none given: any that is neither empty nor 0.
      when: values of the field itself that ask for it; none given: all but its default.
    """

    other: str
    values: tuple[Any, ...] = ()
    when: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
      name: with its section: 'optim.lr'.
      default: None means: decided from the data or the checkpoint, or not used.
      help: one line.
      low, high: inclusive bounds of a number; what a wrong unit or a slipped digit breaks.
      kind: type of the values; of fields whose default is None it has to be given.
      optional: may be None.
      choices: the only texts allowed.
      also: values allowed besides those of `kind` between the bounds.
      compiled: another value needs another compiled training step; where not, it is an input.
      needs: what other fields have to be beside it.
      form: what a text or the entries of a list are: 'duration', 'path' (of this machine), 'place'
        (a path, a hub id or another data set name), 'column', 'pattern', 'pairs' (checked one by one).
    """

    name: str
    default: Any
    help: str
    low: float = -math.inf
    high: float = math.inf
    _: dataclasses.KW_ONLY
    kind: type = type(None)
    optional: bool = False
    choices: tuple[str, ...] = ()
    also: tuple[Any, ...] = ()
    compiled: bool = False
    needs: tuple[Need, ...] = ()
    form: str = ""

    def __post_init__(self) -> None:
        if self.default is None:
            object.__setattr__(self, "optional", True)
        if self.kind is type(None):
            object.__setattr__(self, "kind", type(self.default))

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]

    def allowed(self) -> str:
        """What it may be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.form == "duration":
            words = "'100 steps', '2 epochs', or '10%' of the run"
        elif MANY <= self.high < math.inf:
            words = f"at least {self.low:g}"
        elif math.isfinite(self.high):
            words = f"between {self.low:g} and {self.high:.7g}"
        else:
            words = _KINDS[self.kind]
        also = [f"{value!r}" for value in self.also] + ["none"] * self.optional
        return ", or ".join([words, *also])


_KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"
}  # fmt: skip
