"""How often something is left out at random while training: dropout, and stochastic depth."""

import dataclasses
from typing import Any, NamedTuple

from jaxft.models.family import Family
from jaxft.models.layers.stochastic_depth import rising


class Rates(NamedTuple):
    """What replaces the rates of a checkpoint; None keeps them.

    Attributes:
        dropout: every dropout rate.
        stochastic_depth: how often residual branches of the last block are left out of an example, of
            the first never, of those between by equal steps.
    """

    dropout: float | None = None
    stochastic_depth: float | None = None


KEPT = Rates()


def with_dropout(family: Family[Any], config: Any, rate: float | None) -> Any:
    """The config of a family with this rate.

    Raises:
        ValueError: its models have no dropout.
    """
    if rate and not family.dropouts:
        raise ValueError(
            f"config.model.dropout={rate} is not for {family.model_type!r}, which has no dropout; leave it "
            "at none, or leave out residual branches by config.model.stochastic_depth"
        )
    changed = {} if rate is None else dict.fromkeys(family.dropouts, rate)
    return dataclasses.replace(config, **changed)


def left_out(
    family: Family[Any], config: Any, blocks: int, rate: float | None
) -> tuple[float, ...]:
    """How often the residual branches of each block are left out of an example.

    Args:
        rate: `Rates.stochastic_depth`.

    Raises:
        ValueError: the family's models have no such branches.
    """
    if rate is None:
        return (
            (0.0,) * blocks if family.left_out is None else tuple(family.left_out(config, blocks))
        )
    if rate and family.left_out is None:
        raise ValueError(
            f"config.model.stochastic_depth={rate} leaves out residual branches, and {family.model_type!r} "
            "has none; leave it at none"
        )
    return rising(rate, blocks)
