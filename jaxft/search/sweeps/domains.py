"""What a field may be in a sweep: a range of numbers, some values, either where another has a value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxft.config_check import shown

_MOST_POINTS = 1000  # of one range in a grid


@dataclasses.dataclass(frozen=True)
class Float:
    """A number between `low` and `high`, both inclusive.

    Attributes:
      log: uniform in its logarithm.
      step: only `low`, `low + step`, …; None: any.
      points: of a grid, evenly spaced from `low` to `high` (in the logarithm where `log`).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    points: int | None = None

    def __str__(self) -> str:
        return _written(self)

    def check(self) -> None:
        """Raises ValueError: no such range can be."""
        _check_range(self)
        for name in ("low", "high", "step"):
            _check_finite(self, name, getattr(self, name))
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError(
                f"{self} has a step, which is more than 0 and stands without log; leave it out"
            )

    def grid(self) -> tuple[float, ...]:
        """Its points. Raises ValueError: it does not say how many."""
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            _check_few(self, count)
            return tuple(self.low + i * self.step for i in range(count))
        if self.points is None:
            raise ValueError(
                f"{self} has any number of values; say of how many a grid is made: Float(…, points=4)"
            )
        places = [i / (self.points - 1) for i in range(1, self.points - 1)]
        if self.log:
            inner = [self.low * (self.high / self.low) ** place for place in places]
        else:
            inner = [self.low + (self.high - self.low) * place for place in places]
        return (self.low, *inner, self.high)

    def ends(self) -> tuple[Any, ...]:
        """What its bounds are tried with."""
        return self.low, self.high

    def has(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Integer:
    """A whole number between `low` and `high`, both inclusive; `log`, `step` and `points` as of `Float`."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    points: int | None = None

    def __str__(self) -> str:
        return _written(self)

    def check(self) -> None:
        """Raises ValueError: no such range can be."""
        for value in (self.low, self.high, self.step):
            if type(value) is not int:
                raise ValueError(f"{self}: {shown(value)} is not a whole number; Float has others")
        _check_range(self)
        if self.step < 1 or (self.log and self.step != 1):
            raise ValueError(f"{self}: a step is at least 1, and 1 with log")

    def grid(self) -> tuple[int, ...]:
        """Its values, or `points` of them."""
        if self.points is None:
            _check_few(self, (self.high - self.low) // self.step + 1)
            return tuple(range(self.low, self.high + 1, self.step))
        floats = Float(self.low, self.high, self.log, points=self.points).grid()
        steps = (round((x - self.low) / self.step) for x in floats)
        return tuple(sorted({min(self.low + n * self.step, self.high) for n in steps}))

    def ends(self) -> tuple[Any, ...]:
        """What its bounds are tried with."""
        return self.low, self.high - (self.high - self.low) % self.step

    def has(self, value: float) -> bool:
        return self.low <= value <= self.high and (value - self.low) % self.step == 0


@dataclasses.dataclass(frozen=True, init=False)
class Choice:
    """One of some values, of any kind that the field has: `Choice("adamw", "sgd")`."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any):
        object.__setattr__(self, "values", values)

    def __str__(self) -> str:
        return f"Choice({', '.join(map(shown, self.values))})"

    def check(self) -> None:
        """Raises ValueError: none, or one of them twice."""
        if not self.values:
            raise ValueError("Choice() has no values")
        for number, value in enumerate(self.values):
            if isinstance(value, Domain | When):
                raise ValueError(f"{self}: a value is one of the field's own, not {shown(value)}")
            if value in self.values[:number]:
                raise ValueError(f"{self} has {shown(value)} twice")

    def grid(self) -> tuple[Any, ...]:
        return self.values

    def ends(self) -> tuple[Any, ...]:
        return self.values

    def labels(self) -> tuple[Any, ...]:
        """The values as a storage can hold them: texts of those that are neither numbers nor texts."""
        plain = all(x is None or isinstance(x, bool | int | float | str) for x in self.values)
        return self.values if plain else tuple(map(repr, self.values))


Domain = Float | Integer | Choice


@dataclasses.dataclass(frozen=True)
class When:
    """A domain, or a value, for some values of another field of the space.

    `When("optim.optimizer", {"sgd": Float(0.8, 0.99), "adamw": 0.9})`; where the other field has a value
    that is not listed, or has none in the space, the field is as in the config.

    Attributes:
      field: the other.
      cases: its value -> domain, value, or another `When`.
    """

    field: str
    cases: Mapping[Any, Any]

    def __str__(self) -> str:
        return f"When({self.field!r}, …)"


def _written(domain: Float | Integer) -> str:
    """As in a space file: what is left at its default is left out."""
    named = [
        f"{field.name}={getattr(domain, field.name)}"
        for field in dataclasses.fields(domain)[2:]
        if getattr(domain, field.name) != field.default
    ]
    return f"{type(domain).__name__}({', '.join([shown(domain.low), shown(domain.high), *named])})"


def _check_range(domain: Float | Integer) -> None:
    for name in ("low", "high"):
        _check_finite(domain, name, getattr(domain, name))
    if not domain.low < domain.high:
        raise ValueError(
            f"{domain}: low is not below high; a field that has one value is given it as it is"
        )
    if domain.log and domain.low <= 0:
        raise ValueError(f"{domain} has log, for which low must be more than 0")
    points = domain.points
    if points is not None and (type(points) is not int or not 2 <= points <= _MOST_POINTS):
        raise ValueError(f"{domain}: points are a whole number from 2 to {_MOST_POINTS}")


def _check_finite(domain: Any, name: str, value: Any) -> None:
    if value is None and name == "step":
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value)):
        raise ValueError(f"{type(domain).__name__}(…): {name}={shown(value)} is not a number")


def _check_few(domain: Any, count: int) -> None:
    if count > _MOST_POINTS:
        raise ValueError(
            f"{domain} has {count} values, too many for a grid; give it points=4, or more"
        )
