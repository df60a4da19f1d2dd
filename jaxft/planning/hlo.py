"""What a compiled program sends: its collectives, read from the text of its optimised HLO.

`cost_analysis` counts the body of a loop once and says nothing of groups. Here each collective is counted as
often as the loops around it run, with the bytes that it moves and the axes of the mesh along which it does.
A reduce-scatter is one also where the TPU's compiler has hidden it in a fusion (`all-reduce-scatter`), and
a gather that it does in the course of several fusions stands in each of them, with one channel: it is one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
          "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}  # fmt: skip
_COMPUTATION = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s*\(.*->.*\{\s*$")
_OP = re.compile(rf"\s({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+)\[([\d,]*)\]")
_FLOAT8 = re.compile(r"\bf8\w*\[")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r"known_trip_count\D*(\d+)")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")
_TILED = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESHED = re.compile(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}")
_ORDER = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_PART = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(r"= [su]32\[\]\S* get-tuple-element\(.*\), index=(\d+)")
_NAME = re.compile(r"%([\w.\-]+)")
_NOTE = re.compile(r"/\*.*?\*/")
_PHASE = (
    "async_collective_fusion_config"  # in the line of one that is done in the course of fusions
)
_HIDDEN = "all-reduce-scatter"  # in the name of a computation that is a reduce-scatter


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of traffic: what the same instruction does along the same axes.

    Attributes:
      kind: one of KINDS.
      group: devices that take part in it together.
      axes: of the mesh, along which these lie; () where that is not known.
      bytes: that each device receives of the others in one update, as a ring needs them.
      count: how often an update does it.
    """

    kind: str
    group: int
    axes: tuple[str, ...]
    bytes: float
    count: int


def on_the_wire(kind: str, size: float, group: int) -> float:
    """Bytes that a device receives of the others in a ring.

    Args:
      size: bytes of the whole array: of the result of a gather, the operand of a reduction.
      group: devices.
    """
    if group <= 1:
        return 0.0
    share = (group - 1) / group
    return size * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def collectives(
    text: str, mesh: Mapping[str, int], *, unknown_trips: int = 1
) -> tuple[Collective, ...]:
    """Those of one run of a compiled program, added up by kind, group and axes.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      mesh: axis -> devices, in the order of the mesh; devices are numbered in that order.
      unknown_trips: how often a loop runs that does not say how often.
    """
    computations, entry = _parse(text)
    times = _times(computations, entry, unknown_trips)
    devices = math.prod(mesh.values())
    sums: dict[tuple[str, int, tuple[str, ...]], list[float]] = {}
    for one in _sent(computations):
        if not times[one.computation]:
            continue
        group, axes = _group(one.line, devices, mesh)
        so_far = sums.setdefault((one.kind, group, axes), [0.0, 0.0])
        so_far[0] += times[one.computation] * on_the_wire(one.kind, _size(one, group), group)
        so_far[1] += times[one.computation]
    return tuple(
        Collective(kind, group, axes, moved, int(count))
        for (kind, group, axes), (moved, count) in sorted(sums.items(), key=lambda x: -x[1][0])
        if group > 1
    )


class Sent(NamedTuple):
    """A collective as it stands in the text.

    Attributes:
      kind: one of KINDS.
      computation: in which it is.
      line: all of it.
      result: its types, as '(f32[8,4]{1,0}, f32[2]{0})'.
      starts: it is the first of a pair of start and done.
      hidden: it is a sum in a fusion that keeps a part: its result is whole, and so larger than what is kept.
    """

    kind: str
    computation: str
    line: str
    result: str
    starts: bool
    hidden: bool


def sent(text: str) -> list[Sent]:
    """Every collective of optimised HLO text once, in its order: those of a loop's body once, too."""
    return list(_sent(_parse(text)[0]))


def _sent(computations: Mapping[str, list[str]]) -> Iterator[Sent]:
    seen: set[tuple[str, str]] = set()
    for name, lines in computations.items():
        hidden = _HIDDEN in name
        for line in map(functools.partial(_NOTE.sub, ""), lines):
            if (found := _OP.search(line)) is None:
                continue
            # What is done in the course of several fusions has one channel; sums that are several may, too.
            channel = _CHANNEL.search(line)
            if channel and _PHASE in line:
                if (found[1], channel[1]) in seen:
                    continue
                seen.add((found[1], channel[1]))
            kind = "reduce-scatter" if hidden else found[1]
            result = line[line.index("=") + 1 : found.start()]
            yield Sent(kind, name, line, result, bool(found[2]), hidden)


def runs(text: str, *, unknown_trips: int | None = None) -> list[tuple[int, list[str]]]:
    """(how often it runs, its lines) of each computation of optimised HLO text; both branches of a
    conditional run.

    Args:
      unknown_trips: of a loop that does not say how often.

    Raises:
      ValueError: there is one, and nothing is given for it.
    """
    computations, entry = _parse(text)
    times = _times(computations, entry, unknown_trips)
    return [(times[name], lines) for name, lines in computations.items()]


def by_kind(found: Iterable[Collective]) -> dict[str, float]:
    """Bytes that a device receives, of each kind that there is."""
    sums: dict[str, float] = {}
    for one in found:
        sums[one.kind] = sums.get(one.kind, 0.0) + one.bytes
    return sums


def _parse(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if not line.startswith(" ") and (header := _COMPUTATION.match(line)):
            current = header[1]
            entry = current if line.startswith("ENTRY") else entry
            computations[current] = []
        elif current:
            computations[current].append(line)
    if not entry:
        raise ValueError("no ENTRY computation in the HLO text")
    return computations, entry


def _times(computations: Mapping[str, list[str]], entry: str, unknown: int | None) -> Counter[str]:
    """How often each computation runs when the entry does."""
    calls: dict[str, Counter] = {name: Counter() for name in computations}
    for name, lines in computations.items():
        for line in lines:
            if " async-done(" in line or " async-update(" in line:  # of what async-start has called
                continue
            callees = _CALLED.findall(line)
            for group in _BRANCHES.findall(line):
                callees += [callee.strip().lstrip("%") for callee in group.split(",")]
            often = _trips(line, computations, unknown) if callees and " while(" in line else 1
            for callee in callees:
                calls[name][callee] += often
    times: Counter = Counter({entry: 1})
    for name in _callers_first(calls, entry):
        for callee, often in calls[name].items():
            times[callee] += often * times[name]
    return times


def _callers_first(calls: Mapping[str, Counter], entry: str) -> list[str]:
    done: list[str] = []
    seen: set[str] = set()
    waiting: list[tuple[str, bool]] = [(entry, False)]
    while waiting:
        name, left = waiting.pop()
        if left:
            done.append(name)
        elif name not in seen and name in calls:
            seen.add(name)
            waiting.append((name, True))
            waiting += [(callee, False) for callee in calls[name]]
    return done[::-1]


def _trips(line: str, computations: Mapping[str, list[str]], unknown: int | None) -> int:
    """As the compiler says, else as the condition does that compares a counter from 0 with a constant.

    The second is so of a product that a TPU does piece by piece, sending a piece on meanwhile; its loop is
    unrolled, so that the counter moves by more than 1.
    """
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = computations.get(_named("condition", line), [])
    body = computations.get(_named("body", line), [])
    constants = _constants(condition)
    compares = any("direction=LT" in one for one in condition)
    if len(constants) != 1 or not compares:
        if unknown is None:
            raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
        return unknown
    return math.ceil(next(iter(constants.values())) / _step(condition, body))


def _step(condition: list[str], body: list[str]) -> int:
    """By how much a loop's body moves the counter that the condition compares; 1 where that is hidden."""
    counters = [found[1] for one in condition if (found := _ELEMENT.search(one))]
    roots = [one for one in body if one.lstrip().startswith("ROOT")]
    if len(counters) != 1 or len(roots) != 1:
        return 1
    given = _NAME.findall(_NOTE.sub("", roots[0].partition(" tuple(")[2].partition(")")[0]))
    name = given[int(counters[0])] if int(counters[0]) < len(given) else ""
    added = next((one for one in body if one.lstrip().startswith(f"%{name} =")), "")
    operands = _NAME.findall(added.partition(" add(")[2].partition(")")[0])
    constants = _constants(body)
    return next((constants[one] for one in operands if constants.get(one, 0) > 0), 1)


def _constants(lines: list[str]) -> dict[str, int]:
    """Integer scalars by their names."""
    found = (_CONSTANT.search(line) for line in lines)
    return {match[1]: int(match[2]) for match in found if match}


def _named(what: str, line: str) -> str:
    found = re.search(rf"{what}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _size(one: Sent, group: int) -> float:
    """Bytes of the whole array of a collective: of what it gives, or takes where that is larger."""
    arrays = [_array(kind, dims) for kind, dims in _ARRAY.findall(one.result)]
    arrays += [0.0] * (not arrays and bool(_FLOAT8.search(one.result)))
    if one.starts and one.kind != "all-reduce":
        arrays = _results(arrays)  # the operands come first
    size = sum(arrays)
    return size * group if one.kind == "reduce-scatter" and not one.hidden else size


def _results(arrays: list[float]) -> list[float]:
    """Of (operands, results) the results; further numbers, as of a permute, are scalars."""
    whole = [x for x in arrays if x > 8] or arrays
    return whole[len(whole) // 2 :]


def _array(kind: str, dims: str) -> float:
    return _BYTES.get(kind, 1) * math.prod(int(d) for d in dims.split(",") if d)


def _group(line: str, devices: int, mesh: Mapping[str, int]) -> tuple[int, tuple[str, ...]]:
    """(devices of a group, the axes along which they lie)."""
    if meshed := _MESHED.search(line):
        first = _of_mesh(*meshed.groups())
    elif tiled := _TILED.search(line):
        first = _ordered(*tiled.groups())[0].ravel()
    elif pairs := _PAIRS.search(line):
        first = np.array(_ring(dict(re.findall(r"(\d+),(\d+)", pairs[1]))))
    elif (listed := _LISTED.search(line)) and listed[1]:
        first = np.array([int(n) for n in re.findall(r"\d+", listed[1].split("}")[0])])
    else:
        first = np.arange(devices)
    if len(first) <= 1 or first.max() >= devices:
        return len(first), ()
    places = np.array(np.unravel_index(first, tuple(mesh.values())))
    return len(first), tuple(
        axis for axis, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1
    )


def _ring(targets: Mapping[str, str]) -> list[int]:
    """The devices to which what the first source sends would come, itself first: all of a ring or a row."""
    place = next(iter(targets))
    found = [place]
    while (place := targets.get(place, found[0])) not in found:
        found.append(place)
    return [int(one) for one in found]


def _ordered(shape: str, source: str, order: str | None) -> np.ndarray:
    """`[2,4]<=[4,2]T(1,0)`: numbers in the shape of the source, their axes in this order, in a shape."""
    sizes = [int(n) for n in source.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    if order:
        numbers = numbers.transpose([int(n) for n in order.split(",")])
    return numbers.reshape([int(n) for n in shape.split(",")])


def _of_mesh(axes: str, order: str, chosen: str) -> np.ndarray:
    """`mesh['a'=4,'b'=2] {'a':(2)2,'b'}`: the first group along axes, or along parts of them."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    parts: list[int] = []
    along: list[bool] = []
    taken = {name: (int(m or 1), int(n or sizes[name])) for name, m, n in _PART.findall(chosen)}
    for name, size in sizes.items():
        before, own = taken.get(name, (size, 1))
        parts += [before, own, size // (before * own)]
        along += [False, True, False]
    given = _ORDER.search(order)
    count = str(math.prod(sizes.values()))
    numbers = _ordered(count, given[2] or given[1], given[3]) if given else np.arange(int(count))
    return numbers.reshape(parts)[tuple(slice(None) if is_ else 0 for is_ in along)].ravel()
