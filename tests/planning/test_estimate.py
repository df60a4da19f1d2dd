"""Seconds of a roofline: over which links a group of devices goes, and what XLA sums on whole slices."""

from __future__ import annotations

import pytest

from jaxft.planning.estimate import estimate
from jaxft.planning.hardware import CHIPS
from jaxft.planning.hlo import Collective
from jaxft.planning.topology import parse_topology
from jaxft.planning.whole_slice import as_compiled, is_summed

HOSTS = {"data": 4, "fsdp": 8, "context": 1, "tensor": 1}  # of h100:4x8


def seconds(mesh: dict[str, int], group: int, axes: tuple[str, ...], kind: str = "h100") -> float:
    """Of 1 GB that each device receives."""
    found = (Collective("all-gather", group, axes, 1e9, 1),)
    how = {"flops": 0.0, "dtype": "bfloat16", "held": 0.0, "hosted": CHIPS[kind].hosted}
    return estimate(CHIPS[kind], found=found, mesh=mesh, **how).traffic


def test_a_group_goes_by_the_links_of_its_host_or_by_all_its_ways_to_the_network():
    links, network = CHIPS["h100"].links, CHIPS["h100"].network
    assert seconds(HOSTS, 8, ("fsdp",)) == pytest.approx(1e9 / links)
    # One device of each host: one way out. All of each: eight, which together are nearly a link.
    assert seconds(HOSTS, 4, ("data",)) == pytest.approx(1e9 / network)
    whole = {**HOSTS, "data": 1, "fsdp": 32}
    assert seconds(whole, 32, ("fsdp",)) == pytest.approx(1e9 / (8 * network))
    split = {**HOSTS, "data": 8, "fsdp": 2, "tensor": 2}
    assert seconds(split, 8, ("data",)) == pytest.approx(1e9 / (2 * network))
    assert seconds(HOSTS, 32, ()) == pytest.approx(1e9 / (8 * network))  # axes that are not known
    assert seconds(HOSTS, 4, ("data",), "v5e") == pytest.approx(1e9 / CHIPS["v5e"].links)


@pytest.mark.parametrize(
    ("name", "fsdp", "sums"),
    [
        ("v5e:8x8", 64, 2), ("v5e:8x8", 32, 0), ("v5e:8x16", 128, 0), ("v5p:4x4x8", 128, 6),
        ("v5p:2x4x4", 32, 0), ("h100:8x8", 64, 0),
    ],
)  # fmt: skip
def test_on_a_whole_slice_what_is_not_scattered_is_sent_twice(name, fsdp, sums):
    topology = parse_topology(name)
    mesh = {"data": topology.devices // fsdp, "fsdp": fsdp, "tensor": 1}
    least = (
        Collective("all-gather", fsdp, ("fsdp",), 2.0, 0),
        Collective("reduce-scatter", fsdp, ("fsdp",), 1.0, 0),
    )
    found = as_compiled(least, topology, mesh)
    assert sum(one.bytes for one in found if one.kind == "all-reduce") == sums
    assert is_summed(topology, mesh) == bool(sums)
