"""How a sweep searches: what its user asks for, what follows from space and data, and that it stays so."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.base.nearest import nearest
from jaxft.base.nested import flatten
from jaxft.config import ConfigDict, override, to_json
from jaxft.experiment.continuing import FREE
from jaxft.search.sweeps import objectives
from jaxft.search.sweeps.optuna_study import PRUNERS, SAMPLERS, Plan
from jaxft.search.sweeps.space import Space, said
from jaxft.search.trials.groups import grouped
from jaxft.search.trials.worlds import Worlds

_TRIALS = 30
_AT_ONCE = 8  # where trials run as one program


@dataclasses.dataclass(frozen=True)
class Asked:
    """The settings of a sweep, as its user gave them.

    Attributes:
      sampler: one of SAMPLERS. pruner: one of PRUNERS; '': median, with several objectives none.
      objectives: 'accuracy,seconds'; '': `eval.metric`.
      trials: how many there are to be in the end; 0: 30, or all points of a grid.
      at_once: trials that are asked for together; 0: by what is searched.
      storage, study: see `open_study`.
    """

    sampler: str = "tpe"
    pruner: str = ""
    objectives: str = ""
    trials: int = 0
    at_once: int = 0
    seed: int = 0
    storage: str = ""
    study: str = "sweep"


def plan_of(asked: Asked, config: ConfigDict) -> Plan:
    """What is known before anything is opened; the rest is 0.

    Raises:
      ValueError: a sampler or pruner that there is not, or that does not go with several objectives.
    """
    names = objectives.named(asked.objectives, config)
    for flag, given, known in (
        ("sampler", asked.sampler, SAMPLERS),
        ("pruner", asked.pruner, PRUNERS),
    ):
        if given not in known and (given or flag == "sampler"):
            raise ValueError(
                f"--{flag}={given} is none of {', '.join(known)}{nearest(given, known)}"
            )
    several = len(names) > 1
    if several and asked.pruner not in ("", "none"):
        raise ValueError(
            f"--pruner={asked.pruner}: trials with several objectives cannot be pruned; give none"
        )
    if several and asked.sampler == "cmaes":
        raise ValueError("--sampler=cmaes has one objective; tpe, random and grid have several")
    for flag, number, low in (
        ("trials", asked.trials, 0),
        ("at_once", asked.at_once, 0),
        ("seed", asked.seed, 0),
    ):
        if number < low:
            raise ValueError(f"--{flag}={number} is negative")
    pruner = asked.pruner or ("none" if several else "median")
    directions = objectives.directions(names, config)
    return Plan(asked.sampler, pruner, names, directions, asked.seed, asked.at_once, 0)


def number_of_trials(asked: Asked, space: Space) -> int:
    if asked.sampler != "grid":
        return asked.trials or _TRIALS
    points = len(space.grid())
    return min(asked.trials or points, points)


def looked_at(config: ConfigDict, space: Space, plan: Plan, worlds: Worlds) -> Plan:
    """Every field of the space tried on the data and the model, before compute is spent.

    Returns:
      The plan with what follows from them: how many evaluations the longest trial has, and how many
      trials are asked for at once.
    """
    looked = {}
    for number, changes in enumerate(space.single()):
        try:
            looked[number] = worlds.prepared(override(config, changes))
        except ValueError as error:
            raise ValueError(f"a trial with {said(changes)} cannot be: {error}") from None
    steps = ((one.length.steps, one.length.of(one.config, "eval.every")) for one in looked.values())
    evaluations = max(math.ceil(whole / max(1, every)) for whole, every in steps)
    # What the trials of a batch could tell each other is lost, so there is a batch only where it pays.
    pays = 2 * len(grouped(looked, worlds, objectives.vmapped(plan.objectives))) <= len(looked)
    at_once = plan.at_once or (_AT_ONCE if pays else 1)
    return dataclasses.replace(plan, evaluations=evaluations, at_once=at_once)


def identity_of(config: ConfigDict, space: Space, plan: Plan) -> dict[str, Any]:
    """What decides every trial, as plain JSON."""
    free = (*FREE, "log.")
    values = {f: x for f, x in flatten(to_json(config)).items() if not f.startswith(free)}
    known = {"config": values, "space": space.to_json(), "plan": dataclasses.asdict(plan)}
    return json.loads(json.dumps(known))


def settled(
    known: Mapping[str, Any], config: ConfigDict, space: Space, plan: Plan, where: Path
) -> Plan:
    """The plan of the study.

    Raises:
      ValueError: the study is of another config or space, or searches otherwise.
    """
    was = known["plan"]
    if not plan.at_once:
        plan = dataclasses.replace(plan, at_once=was["at_once"])
    plan = dataclasses.replace(plan, evaluations=was["evaluations"])
    now = identity_of(config, space, plan)
    for name in now["config"]:
        before, given = known["config"].get(name), now["config"][name]
        if before != given:
            raise ValueError(_another(where, f"config.{name}={before!r}, not {given!r}"))
    for name, before in was.items():
        if before != now["plan"][name]:
            shown = [",".join(x) if isinstance(x, list) else x for x in (before, now["plan"][name])]
            raise ValueError(_another(where, f"--{name}={shown[0]}, not {shown[1]}"))
    if known["space"] != now["space"]:
        changed = [one for one in now["space"] if one not in known["space"]]
        changed += [one for one in known["space"] if one not in now["space"]]
        field = changed[0]["field"] if changed else "another order of fields"
        raise ValueError(_another(where, f"another space ({field})"))
    return plan


def _another(where: Path, what: str) -> str:
    return (
        f"the sweep in {where} was begun with {what}: go on as it began, or give another --workdir (and, "
        "with --storage, another --study)"
    )
