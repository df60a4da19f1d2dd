"""Collectives read from HLO text: their bytes, groups and axes, and how often loops run them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft.planning.hlo import by_kind, collectives, on_the_wire

MESH = {"data": 2, "fsdp": 4}


def entry(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\n{before}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def only(text: str, **how):
    (found,) = collectives(text, MESH, **how)
    return found


def test_a_gather_and_the_axis_that_it_is_along():
    line = "%g = f32[64,8]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}"
    found = only(entry(line))
    assert (found.kind, found.group, found.axes, found.count) == ("all-gather", 4, ("fsdp",), 1)
    assert found.bytes == 64 * 8 * 4 * 3 / 4


@pytest.mark.parametrize(
    ("groups", "group", "axes"),
    [
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2, ("data",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", 2, ("data",)),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4, ("fsdp",)),
        ("replica_groups={}", 8, ("data", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", 2, ("data",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", 2, ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 2, ("data",)),
    ],
)
def test_groups_in_every_notation(groups, group, axes):
    found = only(entry(f"%r = bf16[16]{{0}} all-reduce(%p), {groups}, to_apply=%add"))
    assert (found.group, found.axes) == (group, axes)
    assert found.bytes == on_the_wire("all-reduce", 32, group) == 2 * 32 * (group - 1) / group


def test_forms_of_accelerators():
    # A GPU's pair of start and done; several arrays in one.
    started = entry(
        "%s = ((f32[2,8]{1,0}, f32[4]{0}), (f32[8,8]{1,0}, f32[16]{0})) all-gather-start(%a, %b), "
        "channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}",
        "%d = (f32[8,8]{1,0}, f32[16]{0}) all-gather-done(%s)",
    )
    assert only(started).bytes == (64 + 16) * 4 * 3 / 4
    scattered = entry(
        "%s = ((f32[32]{0}), f32[8]{0}) reduce-scatter-start(%a), channel_id=2, replica_groups=[2,4]<=[8]"
    )
    assert only(scattered).bytes == 32 * 4 * 3 / 4
    # A TPU's reduce-scatter is an all-reduce in a fusion of this name.
    hidden = (
        "%all-reduce-scatter.3 (x: f32[32]) -> f32[8] {\n"
        "  %r = f32[32]{0} all-reduce(%x), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}\n}\n"
    )
    call = "%f = f32[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3"
    found = only(entry(call, before=hidden))
    assert (found.kind, found.bytes) == ("reduce-scatter", 32 * 4 * 3 / 4)


def test_a_gather_in_the_course_of_several_fusions_is_one():
    parts = "".join(
        f"%fused.{i} (x: f32[8]) -> f32[32] {{\n  %g.{i} = f32[32]{{0}} all-gather(%x), channel_id=7, "
        'replica_groups=[2,4]<=[8], backend_config={"async_collective_fusion_config":{}}\n}\n'
        for i in range(3)
    )
    calls = [f"%f.{i} = f32[32]{{0}} fusion(%p), kind=kLoop, calls=%fused.{i}" for i in range(3)]
    assert only(entry(*calls, before=parts)).count == 1


def test_reduce_scatters_that_share_a_channel_are_several():
    parts = "".join(
        f"%all-reduce-scatter.{i} (x: f32[32]) -> f32[8] {{\n  %r.{i} = f32[32]{{0}} all-reduce(%x), "
        "channel_id=1, replica_groups=[2,4]<=[8]\n}\n"
        for i in range(2)
    )
    calls = [
        f"%f.{i} = f32[8]{{0}} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.{i}"
        for i in range(2)
    ]
    found = only(entry(*calls, before=parts))
    assert (found.kind, found.count, found.bytes) == ("reduce-scatter", 2, 2 * 32 * 4 * 3 / 4)


@pytest.mark.parametrize(
    ("said", "condition", "times"),
    [
        (', backend_config={"known_trip_count":{"n":"5"}}', "", 5),
        ("", "  %n = s32[] constant(6)\n  ROOT %l = pred[] compare(%i, %n), direction=LT\n", 6),
        ("", "  ROOT %l = pred[] compare(%i, %n), direction=LT\n", 9),
    ],
)
def test_loops_count_as_often_as_they_run(said, condition, times):
    before = (
        "%body (x: f32[8]) -> f32[8] {\n  %r = f32[8]{0} all-reduce(%x), replica_groups={}\n}\n"
        f"%condition (x: f32[8]) -> pred[] {{\n{condition}}}\n"
    )
    line = f"%w = f32[8]{{0}} while(%p), condition=%condition, body=%body{said}"
    found = only(entry(line, before=before), unknown_trips=9)
    assert found.count == times and found.bytes == times * 2 * 32 * 7 / 8


def test_a_permute_is_along_the_axis_around_which_it_sends():
    ring = "{{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}"
    line = f"%p = f32[8]{{0}} collective-permute(%x), channel_id=1, source_target_pairs={ring}"
    found = only(entry(line))
    assert (found.group, found.axes, found.bytes) == (4, ("fsdp",), 8 * 4)


def test_a_loop_whose_counter_moves_by_two_runs_half_as_often():
    before = (
        "%body (x: (f32[8], s32[])) -> (f32[8], s32[]) {\n"
        "  %two = s32[] constant(2)\n  %one = s32[] constant(1)\n"
        "  %i = s32[] get-tuple-element(%x), index=1\n"
        "  %r = f32[8]{0} all-reduce(%y), replica_groups={}\n  %other = s32[] add(%i, %one)\n"
        "  %next = s32[]{:T(128)} add(%i, %two)\n  ROOT %t = (f32[8], s32[]) tuple(%r, /*index=1*/%next)\n}\n"
        "%condition (x: (f32[8], s32[])) -> pred[] {\n  %n = s32[] constant(16)\n"
        "  %i = s32[]{:T(128)} get-tuple-element(%x), index=1\n"
        "  ROOT %l = pred[] compare(%i, %n), direction=LT\n}\n"
    )
    line = "%w = (f32[8], s32[]) while(%p), condition=%condition, body=%body"
    assert only(entry(line, before=before)).count == 8
    assert only(entry(line, before=before.replace("constant(2)", "constant(3)"))).count == 6


def test_a_compiled_scan_gathers_each_of_its_kernels_once():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), tuple(MESH), axis_types=(AxisType.Auto,) * 2)
    place = functools.partial(NamedSharding, mesh)
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=place(PartitionSpec("data")))
    w = jax.ShapeDtypeStruct((3, 64, 64), jnp.float32, sharding=place(PartitionSpec(None, "fsdp")))

    @functools.partial(jax.jit, out_shardings=place(PartitionSpec("data")))
    def run(x, w):
        def body(x, one):
            whole = jax.lax.with_sharding_constraint(one, place(PartitionSpec()))
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(body, x, w)[0]

    found = collectives(run.lower(x, w).compile().as_text(), MESH)
    assert by_kind(found) == {"all-gather": 3 * 64 * 64 * 4 * 3 / 4}
    assert [(one.axes, one.count) for one in found] == [(("fsdp",), 3)]
