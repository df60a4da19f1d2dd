"""The least traffic, by hand, and how it grows with the devices."""

from __future__ import annotations

import pytest

from jaxft.planning import least as counting
from jaxft.planning.hlo import by_kind
from jaxft.planning.least import Leaf

HOW = {"lowest": 0, "tokens": 4096, "width": 4, "compute": 2}


def least(*given, **how):
    return by_kind(counting.least(*given, **how))


def kernel(depth: int = 1, trains: bool = True, placement=("fsdp", None), shape=(64, 128)):
    return Leaf(shape, placement, trains, depth)


def test_data_parallel_sums_gradients_alone():
    found = least([kernel(placement=(None, None))], {"data": 8, "fsdp": 1, "tensor": 1}, **HOW)
    assert found == {"all-reduce": 2 * 64 * 128 * 4 * 7 / 8}


def test_fsdp_gathers_twice_and_scatters_once():
    size = 64 * 128
    found = least([kernel()], {"data": 1, "fsdp": 4, "tensor": 1}, **HOW)
    assert found == {"all-gather": 2 * size * 2 * 3 / 4, "reduce-scatter": size * 4 * 3 / 4}
    both = least([kernel()], {"data": 2, "fsdp": 4, "tensor": 1}, **HOW)
    assert both["all-reduce"] == size * 4 / 4  # of a quarter, over two
    in_parts = least([kernel()], {"data": 1, "fsdp": 4, "tensor": 1}, **HOW, accumulate=3)
    assert in_parts["all-gather"] == 3 * found["all-gather"]
    assert in_parts["reduce-scatter"] == found["reduce-scatter"]


def test_what_is_frozen_is_gathered_and_no_more():
    mesh = {"data": 2, "fsdp": 4, "tensor": 1}
    below = least([kernel(depth=1, trains=False)], mesh, **{**HOW, "lowest": 5})
    above = least([kernel(depth=7, trains=False)], mesh, **{**HOW, "lowest": 5})
    assert set(below) == set(above) == {"all-gather"}
    assert above["all-gather"] == 2 * below["all-gather"]


def test_of_a_table_that_is_looked_up_no_more_is_read_than_there_are_tokens():
    mesh = {"data": 2, "fsdp": 4, "tensor": 1}
    table = Leaf((10_000, 128), (None, "fsdp"), True, 0, is_table=True, is_looked_up=True)
    found = least([table], mesh, **HOW)
    read = 4096 / 8 * 128
    assert found["all-gather"] == read * 2 * 3 / 4 and found["reduce-scatter"] == read * 4 * 3 / 4
    assert found["all-reduce"] == 10_000 * 128 * 4 / 4  # of a quarter, over two
    assert least([table], mesh, **HOW, accumulate=2) == found
    small = Leaf((16, 128), (None, "fsdp"), False, 0, is_table=True, is_looked_up=True)
    assert least([small], mesh, **HOW) == {"all-gather": 16 * 128 * 2 * 3 / 4}
    assert least([small], mesh, **HOW, accumulate=2) == {"all-gather": 2 * 16 * 128 * 2 * 3 / 4}


def test_a_tensor_axis_sums_what_follows_a_cut_input():
    mesh = {"data": 2, "fsdp": 1, "tensor": 2}
    columns, rows = kernel(placement=(None, "tensor")), kernel(placement=("tensor", None))
    found = least([columns, rows], mesh, **HOW)
    gradients = 2 * 2 * (64 * 128 / 2) * 4 / 2
    hidden = 2 * 2 * (4096 / 2) * 128 * 2 / 2  # forward and backward
    assert found["all-reduce"] == gradients + hidden
    frozen = least([kernel(trains=False, placement=("tensor", None))], mesh, **{**HOW, "lowest": 9})
    assert frozen["all-reduce"] == hidden / 2


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_weak_scaling_is_flat(axis):
    """Bytes a device do not grow with the devices where each has as many tokens: they near a limit."""
    placement = ("fsdp", None) if axis == "fsdp" else (None, None)
    sums = []
    for devices in (8, 32, 256):
        mesh = {"data": 1, "fsdp": 1, "tensor": 1, axis: devices}
        sums.append(sum(least([kernel(placement=placement)], mesh, **HOW).values()))
    limit = sums[0] * 8 / 7
    assert sums[0] < sums[1] < sums[2] < limit and sums[2] < 1.15 * sums[0]


def test_the_largest_block_is_gathered_twice():
    leaves = [kernel(), kernel(), kernel(depth=2, placement=("fsdp", "tensor"))]
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    assert counting.gathered(leaves, mesh, compute=2) == 2 * 2 * (2 * 64 * 128)
    assert counting.gathered(leaves[2:], mesh, compute=2) == 2 * 2 * (64 * 128 / 2)
    assert counting.gathered(leaves, {"data": 4, "fsdp": 1}, compute=2) == 0.0
