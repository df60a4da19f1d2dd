"""How many floating-point operations the matrix products and convolutions of a traced function take.

Counted in its jaxpr, before any compiler: a product of [m, k] and [k, n] is 2 m k n, the body of a scan
counts as often as it runs, and what nothing reads (the gradient of a frozen kernel) does not. Everything else
that a transformer computes is a few per cent of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

_NONE: tuple[bool, ...] = ()


def products(jaxpr: Any, *, unknown_trips: int = 1) -> float:
    """FLOPs of one call of a `ClosedJaxpr`, over all devices.

    Args:
      unknown_trips: how often a loop runs that does not say how often.
    """
    inner = jaxpr.jaxpr
    return _walk(inner, [True] * len(inner.outvars), unknown_trips)[0]


def _walk(jaxpr: Any, live: Sequence[bool], unknown: int) -> tuple[float, list[bool]]:
    """(FLOPs of what the live results need, which arguments that reads)."""
    read = {_key(v) for v, is_live in zip(jaxpr.outvars, live, strict=True) if is_live}
    total = 0.0
    for eqn in reversed(jaxpr.eqns):
        out = [_key(v) in read for v in eqn.outvars]
        if not any(out):
            continue
        work, used = _equation(eqn, out, unknown)
        total += work
        read |= {_key(v) for v, is_used in zip(eqn.invars, used, strict=True) if is_used}
    return total, [_key(v) in read for v in jaxpr.invars]


def _key(variable: Any) -> int:
    return id(variable)


def _equation(eqn: Any, out: Sequence[bool], unknown: int) -> tuple[float, list[bool]]:
    name, every = eqn.primitive.name, [True] * len(eqn.invars)
    if name in _DIRECT:
        return _DIRECT[name](eqn), every
    if name == "scan":
        return _scan(eqn, out, unknown)
    if name == "while":
        body, _ = _walk(*_whole(eqn.params["body_jaxpr"]), unknown)
        return body * unknown, every
    if name == "cond":
        works = [_walk(*_whole(branch), unknown)[0] for branch in eqn.params["branches"]]
        return max(works), every
    inner = [x for value in eqn.params.values() for x in _jaxprs(value)]
    if len(inner) == 1 and len(inner[0].outvars) == len(out):
        work, used = _walk(inner[0], out, unknown)
        # Of a shard_map the body is what one device does of the axes that it has by hand.
        work *= _shards(eqn) if name == "shard_map" else 1
        return work, used if len(used) == len(every) else every
    return sum(_walk(one, [True] * len(one.outvars), unknown)[0] for one in inner), every


def _scan(eqn: Any, out: Sequence[bool], unknown: int) -> tuple[float, list[bool]]:
    """Carries that only feed themselves are live once one of them is read."""
    p = eqn.params
    constants, carries, body = p["num_consts"], p["num_carry"], p["jaxpr"].jaxpr
    live = list(out)
    while True:
        work, used = _walk(body, live, unknown)
        again = used[constants : constants + carries]
        grown = [a or b for a, b in zip(live[:carries], again, strict=True)]
        if grown == live[:carries]:
            return work * p["length"], used
        live[:carries] = grown


def _whole(closed: Any) -> tuple[Any, list[bool]]:
    return closed.jaxpr, [True] * len(closed.jaxpr.outvars)


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"):
        return [value.jaxpr]
    if isinstance(value, (tuple, list)):
        return [found for one in value for found in _jaxprs(one)]
    return []


def _shards(eqn: Any) -> int:
    mesh, axes = eqn.params["mesh"], eqn.params.get("manual_axes")
    names = tuple(mesh.shape) if axes is None else axes
    return math.prod(mesh.shape[axis] for axis in names)


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def _convolution(eqn: Any) -> float:
    numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
    outputs = kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / outputs


_DIRECT: dict[str, Callable[[Any], float]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
