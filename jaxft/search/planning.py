"""What `plan` does: one plan of a config as it is, or the best of those that a search looks at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxft.base.nested import as_tuples
from jaxft.config import ConfigDict, override
from jaxft.experiment.output import Output, check_pair
from jaxft.experiment.planning_process import planned, surveyed
from jaxft.planning import page, told
from jaxft.planning.advice import size
from jaxft.planning.plan import Plan
from jaxft.planning.survey import Candidate, promising
from jaxft.planning.topology import check_installed, parse_topology


def make_plan(
    config: ConfigDict, topology: str, *, output: str, length: int = 0, examples: int = 0,
    price: float | None = None, watts: float | None = None, compiles: bool = True, compiled: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:  # fmt: skip
    """Plan, and write plan.json and plan.html into `output`.

    Args:
      config: of the run.
      topology: see `planning.topology.parse_topology`.
      length, examples: of texts that are not read; 0: the data are.
      price, watts: of a device; None: as the table says.
      compiles: False: the update is traced alone.
      compiled: of a search, so many are compiled; 0: the config is planned as it is.
      say: is told what goes on.

    Raises:
      ValueError: an argument, the config, the checkpoint, the data or the output is not usable.
      RuntimeError: the compiler failed.
    """
    check_installed(parse_topology(topology))
    for name, value in (("length", length), ("examples", examples), ("compiled", compiled)):
        if value < 0:
            raise ValueError(f"--{name}={value}: give a number from 0 on")
    files = check_pair(
        Path(output), ("plan.json", page.is_json), ("plan.html", page.is_page),
        reads={"--config.data.train": config.data.train}, written_by="plan",
    )  # fmt: skip
    how: dict[str, Any] = {
        "length": length,
        "examples": examples,
        "price": price,
        "watts": watts,
        "compiles": compiles,
    }
    if compiled:
        plan, others = _best(config, topology, how, compiled, say)
    else:
        say(
            f"{'compiling' if compiles else 'tracing'} the update for {topology}: seconds to minutes"
        )
        plan, others = planned(config, topology, **how), []
    texts = (json.dumps(plan.to_json(), indent=1), page.render(plan, others))
    for path, text in zip(files, texts, strict=True):
        with Output(path) as file:
            file.write((text + "\n").encode("utf-8", "replace"))
    return plan


def _best(
    config: ConfigDict, topology: str, how: dict[str, Any], count: int, say: Callable[[str], None]
) -> tuple[Plan, list[list[str]]]:
    """The fastest of those that were compiled and fit, else the one that lacks least; and cells of what
    else was looked at."""
    say("looking at meshes, batches, compute types and recomputation, without compiling")
    candidates, chip = surveyed(config, topology, length=how["length"], examples=how["examples"])
    fitting = sum(one.fits for one in candidates)
    say(f"{len(candidates)} looked at, {fitting} may fit; compiling {min(count, len(candidates))}")
    best, seconds = _compiled(
        config, topology, {**how, "chip": chip}, promising(candidates), count, say
    )
    say(f"compiling took {told.seconds(seconds)}")
    given = dict(planned_fields(config, best))
    others = [_cells(one) for one in candidates[: 3 * count + 10]]
    return Plan(**{**vars(best), "given": given}), others


def _compiled(
    config: ConfigDict, topology: str, how: dict[str, Any], waiting: list[Candidate], count: int,
    say: Callable[[str], None],
) -> tuple[Plan, float]:  # fmt: skip
    """(the best of the first `count`, or of twice as many where none of these fits; seconds of all).

    By how much one needs more than arithmetic had said is taken to be so of the others, too: those that then
    do not fit are left out.
    """
    began, found, more = time.perf_counter(), list[tuple[Plan, float]](), 1.0
    while waiting and len(found) < (count if any(p.fits for p, _ in found) else 2 * count):
        one = waiting.pop(0)
        say(f"compiling {_said(one)}")
        changed = override(config, {name: as_tuples(value) for name, value in one.fields.items()})
        plan = planned(changed, topology, **how)
        say(f"{told.headline(plan)}; {told.number(plan.tokens_per_second)} a second")
        found.append((plan, one.worth(plan.tokens_per_second)))
        if not plan.fits:
            more = max(more, plan.memory["needed"] / one.needed)
            waiting = [
                other for other in waiting if other.needed * more <= other.available
            ] or waiting
    best, _ = min(
        found, key=lambda x: (not x[0].fits, -x[1] if x[0].fits else x[0].memory["needed"])
    )
    return best, time.perf_counter() - began


def planned_fields(config: ConfigDict, plan: Plan) -> list[tuple[str, Any]]:
    """The fields that a plan settles, as the config has them."""
    return [(field, config[field.split(".")[0]][field.split(".")[1]]) for field in plan.settled]


def _said(one: Candidate) -> str:
    return ", ".join(f"{name.split('.')[1]} {value}" for name, value in one.fields.items())


def _cells(one: Candidate) -> list[str]:
    f = one.fields
    mesh = " x ".join(str(f[f"parallel.{axis}"]) for axis in ("data", "fsdp", "tensor"))
    batch = f"{f['train.batch_size']} in {f['train.accumulate']}"
    return [
        mesh, batch, f["model.dtype"], "yes" if f["model.remat"] else "no", "yes" if one.fits else "no",
        size(one.needed), told.seconds(one.seconds), told.number(one.rate),
    ]  # fmt: skip
