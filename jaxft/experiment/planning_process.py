"""A plan made in a process of its own, whose JAX is set up for a machine that is not here.

`python -m jaxft.experiment.planning_process` reads a request, JSON, from its input, and writes the plan, or
what is wrong, to the file that the request names.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxft.config import ConfigDict, from_json, to_json
from jaxft.planning import plan as plans
from jaxft.planning.plan import Plan
from jaxft.planning.survey import Candidate
from jaxft.planning.topology import CPU, check_installed, environment, parse_topology

_TAIL = 2000  # characters of what a process that failed said


def planned(config: ConfigDict, topology: str, **how: Any) -> Plan:
    """`planned.plan_run` for a machine by its name; arguments as there.

    Raises:
      ValueError: as there.
      RuntimeError: the compiler failed, with the end of what it said.
    """
    return plans.from_json(_asked("plan", config, topology, how), "the plan")


def surveyed(
    config: ConfigDict, topology: str, **how: Any
) -> tuple[list[Candidate], dict[str, Any]]:
    """`planned_survey.survey`, likewise, and the chip against which it held them, for `planned`."""
    found = _asked("survey", config, topology, how)
    return [Candidate(**one) for one in found["candidates"]], found["chip"]


def _asked(what: str, config: ConfigDict, topology: str, how: dict[str, Any]) -> Any:
    there = parse_topology(topology)
    check_installed(there)
    with tempfile.TemporaryDirectory(prefix="jaxft-plan-") as folder:
        answer = Path(folder, "answer.json")
        request = {
            "what": what, "config": to_json(config), "topology": topology, "how": how,
            "answer": str(answer),
        }  # fmt: skip
        own = {**os.environ, **environment(there)}
        if there.platform == CPU:
            own["JAX_NUM_CPU_DEVICES"] = str(there.devices)
        else:
            own.pop("XLA_FLAGS", None)  # of this machine's backend
        done = subprocess.run(
            [sys.executable, "-m", "jaxft.experiment.planning_process"], env=own,
            input=json.dumps(request), capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = json.loads(answer.read_text()) if answer.exists() else {}
    if "found" in found:
        return found["found"]
    if "error" in found:
        raise ValueError(found["error"])
    raise RuntimeError(
        f"compiling for {topology} failed (status {done.returncode}): {done.stderr[-_TAIL:].strip()}"
    )


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    # These import jax, for which the environment is settled.
    from jaxft.experiment.planned import chip_of, plan_run
    from jaxft.experiment.planned_survey import survey

    config, topology = from_json(request["config"]), parse_topology(request["topology"])
    try:
        if request["what"] == "plan":
            return {"found": plan_run(config, topology, **request["how"]).to_json()}
        chip = chip_of(topology)
        found = survey(config, topology, chip, **request["how"])
    except ValueError as error:
        return {"error": str(error)}
    candidates = [dataclasses.asdict(one) for one in found]
    return {"found": {"candidates": candidates, "chip": dataclasses.asdict(chip)}}


if __name__ == "__main__":
    given = json.loads(sys.stdin.read())
    Path(given["answer"]).write_text(json.dumps(_answer(given)))
