"""Which configs a sweep may try: for each field a domain or a value, some only where another has a value."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxft.base.nearest import nearest
from jaxft.base.nested import as_tuples, flatten
from jaxft.config import ConfigDict, override
from jaxft.config_check import check_field, shown, validate
from jaxft.config_fields import BY_NAME
from jaxft.config_names import field_named
from jaxft.search.sweeps.domains import Choice, Domain, Float, Integer, When

# Fields that say what is measured: trials with other values could not be compared.
_MEASURES = ("task", "eval.metric")
# Fields by which a trial is evaluated on other rows, which may be wanted.
EVALUATED = (
    "data.eval", "data.eval_fraction", "data.split_seed", "data.folds", "data.fold", "data.group",
)  # fmt: skip
_MOST_COMBINATIONS = 512  # that are looked at; of more, so many are drawn
_MOST_POINTS = 100_000  # of a grid

Condition = tuple[str, Any]  # (field, its value)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field is where its conditions hold.

    Attributes:
      field: of the config.
      what: a domain, or the value itself.
      conditions: all of which must hold.
    """

    field: str
    what: Any
    conditions: tuple[Condition, ...] = ()

    @property
    def name(self) -> str:
        """Of the parameter of a study: the field, and under which conditions, as the domains differ."""
        under = ", ".join(f"{field}={value}" for field, value in self.conditions)
        return f"{self.field} ({under})" if under else self.field

    @property
    def is_searched(self) -> bool:
        return isinstance(self.what, Domain)

    def can_be(self, value: Any) -> bool:
        """Whether it can give this value."""
        if isinstance(self.what, Float | Integer):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and self.what.has(value)
        possible = self.what.values if self.is_searched else (self.what,)
        return any(_same(value, x) for x in possible)


@dataclasses.dataclass(frozen=True)
class Space:
    """Settings by field, a field behind those that its conditions name."""

    settings: tuple[Setting, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.field for one in self.settings))

    @property
    def searched(self) -> tuple[Setting, ...]:
        return tuple(one for one in self.settings if one.is_searched)

    def changes(self, ask: Callable[[Setting], Any]) -> dict[str, Any]:
        """The fields of one trial; `ask` gives a value of a domain."""
        found: dict[str, Any] = {}
        for one in self.settings:
            if _holds(one, found):
                found[one.field] = ask(one) if one.is_searched else one.what
        return found

    def grid(self) -> list[dict[str, Any]]:
        """Of each point the values by `Setting.name`, the last setting changing fastest.

        Raises:
          ValueError: a range does not say of how many points it is, or there are more than 100,000.
        """
        grids = {one.name: one.what.grid() for one in self.searched}
        points = list(itertools.islice(_product(self.settings, grids), _MOST_POINTS + 1))
        if len(points) > _MOST_POINTS:
            raise ValueError(f"the grid of the space has more than {_MOST_POINTS} points")
        return points

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values that are equal for equal spaces."""
        return [
            {"field": one.field, "is": _json_of(one.what), "when": [list(c) for c in one.conditions]}
            for one in self.settings
        ]  # fmt: skip

    def combinations(self) -> list[dict[str, Any]]:
        """Changes with each value of a choice and both ends of a range, in all combinations, or in 512."""
        ends = {one.name: one.what.ends() for one in self.searched}
        found = list(itertools.islice(_product(self.settings, ends), _MOST_COMBINATIONS + 1))
        if len(found) > _MOST_COMBINATIONS:
            rng = random.Random(0)
            draws = range(_MOST_COMBINATIONS)
            return [self.changes(lambda one: rng.choice(ends[one.name])) for _ in draws]
        return [self.changes(lambda one, point=point: point[one.name]) for point in found]  # type: ignore[misc]

    def single(self) -> list[dict[str, Any]]:
        """Changes in which each value of a choice, both ends of a range and each fixed value occur at least
        once; all other fields are as they come first."""
        found = []
        for one in self.settings:
            for value in one.what.ends() if one.is_searched else (one.what,):
                given = _given(self.settings, one.conditions)
                assert given is not None, one
                wanted = {**given, one.field: value}
                found.append(self.changes(lambda s, w=wanted: _wanted(s, w)))  # type: ignore[misc]
        return [one for n, one in enumerate(found) if one not in found[:n]]


def _wanted(one: Setting, wanted: Mapping[str, Any]) -> Any:
    """The value of a setting that leads to what is wanted, where it can."""
    value = wanted.get(one.field)
    return value if one.field in wanted and one.can_be(value) else one.what.ends()[0]


def make_space(given: Any, config: ConfigDict) -> Space:
    """A space from what a space file gives, held against the config that it changes.

    Raises:
      ValueError: no space, a field that does not exist, values that a field cannot have, a condition that
        can never hold, or fields that do not go together; one line.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{shown(given)} is not a dict of fields; see `docs/sweep.md`")
    settings = [
        setting for field, what in flatten(given).items() for setting in _settings(field, what, ())
    ]
    if not any(one.is_searched for one in settings):
        raise ValueError(
            "nothing is searched: give at least one field a Float, an Integer or a Choice"
        )
    for one in settings:
        _check_setting(one)
    space = Space(tuple(_sorted(settings)))
    for one in space.settings:
        _check_conditions(one, space)
    for changes in space.combinations():
        try:
            validate(override(config, changes))
        except ValueError as error:
            raise ValueError(
                f"a trial with {said(changes)} cannot be: {error}; where fields do not go together, make "
                "one depend on the other by When"
            ) from None
    return space


def said(changes: Mapping[str, Any]) -> str:
    """Fields and values on one line."""
    return ", ".join(
        f"{field}={value:.4g}" if type(value) is float else f"{field}={shown(value)}"
        for field, value in changes.items()
    )


def _settings(field: Any, what: Any, conditions: tuple[Condition, ...]) -> Iterator[Setting]:
    """One of `what`, or one for each case of a `When`."""
    field_named(str(field))  # refuses what is no field, naming the nearest
    if not isinstance(what, When):
        yield Setting(field, what if isinstance(what, Domain) else as_tuples(what), conditions)
        return
    if not isinstance(what.cases, Mapping) or not what.cases:
        raise ValueError(f"config.{field}: When has cases, as {{'sgd': Float(0.8, 0.99)}}")
    field_named(str(what.field))
    for value, case in what.cases.items():
        yield from _settings(field, case, (*conditions, (what.field, value)))


def _check_setting(one: Setting) -> None:
    """By itself: the domain, the type of the field, its bounds."""
    if one.field in _MEASURES:
        raise ValueError(
            f"config.{one.field} says what is measured, so trials with different ones cannot be compared; "
            "set it in the config"
        )
    field, what = BY_NAME[one.field], one.what
    try:
        if one.is_searched:
            what.check()
        numeric = field.kind in (int, float) or field.form == "duration"
        if isinstance(what, Float | Integer) and not numeric:
            raise ValueError(f"{what} is a range of numbers, and the field is {field.allowed()}")
        if isinstance(what, Float) and field.kind is int:
            raise ValueError(f"{what}: the field is a whole number; use Integer")
        for value in what.ends() if one.is_searched else (what,):
            check_field(field, value)
    except ValueError as error:
        own = str(error).startswith(f"config.{one.field}")
        raise ValueError(str(error) if own else f"config.{one.field}: {error}") from None


def _sorted(settings: Sequence[Setting]) -> list[Setting]:
    """Fields behind those that their conditions name, else in the order given."""
    fields = list(dict.fromkeys(one.field for one in settings))
    needs = {
        f: {c[0] for one in settings if one.field == f for c in one.conditions} for f in fields
    }
    for field in fields:
        for other in needs[field]:
            if other not in needs:
                raise ValueError(
                    f"config.{other}, on which config.{field} depends, is not in the space"
                    f"{nearest(other, [f for f in fields if f != field])}"
                )
    done: list[str] = []
    while len(done) < len(fields):
        ready = [f for f in fields if f not in done and needs[f] <= set(done)]
        if not ready:
            circle = [f for f in fields if f not in done]
            raise ValueError(f"the fields {', '.join(circle)} depend on each other in a circle")
        done.append(ready[0])
    return [one for field in done for one in settings if one.field == field]


def _check_conditions(one: Setting, space: Space) -> None:
    """Raises ValueError for a condition that can never hold."""
    for field, value in one.conditions:
        others = [other for other in space.settings if other.field == field]
        if any(isinstance(other.what, Float) for other in others):
            raise ValueError(
                f"config.{one.field} depends on config.{field}, which is any number of a range: only a "
                "Choice or an Integer has values that can be listed"
            )
        if not any(other.can_be(value) for other in others):
            choices = [x for o in others if isinstance(o.what, Choice) for x in o.what.values]
            raise ValueError(
                f"config.{one.field} depends on config.{field}={shown(value)}, which it never is: it is "
                f"{', or '.join(str(other.what) for other in others)}"
                f"{nearest(str(value), map(str, choices))}"
            )
    if _given(space.settings, one.conditions) is None:
        under = " and ".join(f"config.{f}={shown(v)}" for f, v in one.conditions)
        raise ValueError(f"config.{one.field} is for {under}, which can never be together")


def _given(
    settings: Sequence[Setting],
    conditions: Sequence[Condition],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Values of fields with which all conditions hold, and those that they rest on; None: there are none."""
    given = dict(given or {})
    if not conditions:
        return given
    (field, value), *rest = conditions
    if field in given:
        return _given(settings, rest, given) if _same(given[field], value) else None
    for one in settings:
        if one.field == field and one.can_be(value):
            found = _given(settings, [*one.conditions, *rest], {**given, field: value})
            if found is not None:
                return found
    return None


def _same(one: Any, other: Any) -> bool:
    """Equal, and not 1 for True."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _holds(one: Setting, found: Mapping[str, Any]) -> bool:
    return one.field not in found and all(
        field in found and _same(found[field], value) for field, value in one.conditions
    )


def _product(
    settings: Sequence[Setting], values: Mapping[str, Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """Values by name of every combination, of the settings whose conditions hold in it."""

    def go(place: int, found: dict[str, Any], named: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if place == len(settings):
            yield named
            return
        one = settings[place]
        if not _holds(one, found):
            yield from go(place + 1, found, named)
        elif one.is_searched:
            for value in values[one.name]:
                yield from go(place + 1, {**found, one.field: value}, {**named, one.name: value})
        else:
            yield from go(place + 1, {**found, one.field: one.what}, named)

    return go(0, {}, {})


def _json_of(what: Any) -> Any:
    if not isinstance(what, Domain):
        return {"value": what}
    values = {k: v for k, v in dataclasses.asdict(what).items() if v is not None}
    return {"domain": type(what).__name__, **values}
