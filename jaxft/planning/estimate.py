"""From work and traffic to seconds, dollars and joules: a roofline, which says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxft.planning.hardware import Chip
from jaxft.planning.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one update.

    Attributes:
      products: seconds that its matrix products take at `Chip.reached` of the peak.
      memory: seconds to read and write, once, what it holds.
      traffic: seconds that its collectives take where nothing hides them.
      least, most: seconds where work hides all of the traffic that it can, and none of it.
      seconds: half way between them.
      utilisation: share of the peak of what is computed in `seconds`.
    """

    products: float
    memory: float
    traffic: float
    least: float
    most: float
    seconds: float
    utilisation: float


def estimate(
    chip: Chip, *, flops: float, dtype: str, held: float, found: tuple[Collective, ...],
    mesh: Mapping[str, int], hosted: int,
) -> Estimate:  # fmt: skip
    """Of one device.

    Args:
      flops: of the products of a device.
      dtype: of the computation.
      held: bytes of arguments and results, which an update reads and writes.
      mesh: axis -> devices, in the order in which these are numbered.
      hosted: devices of a host, which have numbers that follow each other.
    """
    peak = chip.peak(dtype)
    products = flops / (peak * chip.reached)
    memory = held / chip.bandwidth
    traffic = sum(one.bytes / _speed(chip, one, mesh, hosted) for one in found)
    work = max(products, memory)
    least, most = max(work, traffic), work + traffic
    seconds = (least + most) / 2
    return Estimate(products, memory, traffic, least, most, seconds, flops / (peak * seconds))


def _speed(chip: Chip, one: Collective, mesh: Mapping[str, int], hosted: int) -> float:
    """Bytes/s at which a device of a group receives. Of GPUs each has a way of its own to the network, and
    what a group sends between hosts goes by those of all its devices there, as NCCL lays its rings."""
    here = _together(one, mesh, hosted)
    if not chip.network or here >= one.group:
        return chip.links
    return min(chip.links, here * chip.network)


def _together(one: Collective, mesh: Mapping[str, int], hosted: int) -> int:
    """Devices of a group in one host."""
    if not one.axes:
        return min(one.group, hosted)
    places, apart = [0], 1
    for axis in reversed(list(mesh)):
        if axis in one.axes:
            places = [place + apart * number for number in range(mesh[axis]) for place in places]
        apart *= mesh[axis]
    return min(one.group, sum(place < hosted for place in places))


def cost(seconds: float, devices: int, price: float | None) -> float | None:
    """US dollars."""
    return None if price is None else seconds / 3600 * devices * price


def energy(seconds: float, devices: int, watts: float | None) -> float | None:
    """Kilowatt-hours of the devices at their most, without hosts, network and cooling."""
    return None if watts is None else seconds / 3600 * devices * watts / 1000
