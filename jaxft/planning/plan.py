"""A plan: what an update of a run needs of each device of a machine. It is plan.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

WRITER = "jaxft plan"  # of plan.json, under the key 'written by'
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """All numbers are of one device and one update where nothing else is said; bytes, seconds, FLOPs.

    Attributes:
      task, model, note: what is trained, and by which implementation.
      topology, kind, chip, devices, hosted: the machine: its name, kind, device, how many, how many a host.
      mesh: axis -> devices; {} of one device without a mesh.
      batch: 'examples', 'rows', 'length' (tokens of a row; 0 of images), 'tokens' (of an update, over all
        devices, padding included), 'accumulate'.
      dtype, remat: of the computation.
      parameters: 'total', 'trainable', 'blocks', 'frozen_blocks' (depths below which nothing is
        differentiated).
      memory: who holds what, in bytes: 'trainable', 'frozen', 'slots', 'statistics', 'others' (the batch and
        numbers of the optimizer), 'activations' (kept for the backward pass, an estimate before fusion),
        'temporaries' (all others that the program has at its fullest), 'needed', 'available'; 'block' (of
        one block's backward pass, where nothing was compiled, as a part of the temporaries; else 0);
        on one device of the CPU 'process', what all of the process has.
      compiler: what the compiler says: 'arguments', 'results', 'donated', 'temporaries', 'code', 'peak'.
      held: of each depth its bytes: [depth, 'trainable' bytes, 'frozen', 'slots'].
      flops: of the products, of all devices.
      traffic: of each collective 'kind', 'axes', 'group', 'count', 'bytes'.
      least: kind -> bytes that any program receives (docs/plan.md).
      estimate: of `planning.estimate.Estimate`.
      price, watts: of a device; None: not known.
      steps: of the run; 0: not known.
      settled: config field -> value, what `train --plan` takes from here.
      given: the same fields as they were in the config that was planned.
      assumed: config field -> value, on which the plan rests; and 'config.json' -> sizes of the model.
      notes: what a reader must know, one line each.
      advice: what would make it fit, or faster, one line each.
      seconds: {'trace', 'compile'} that planning took.
    """

    task: str
    model: str
    note: str
    topology: str
    kind: str
    chip: str
    devices: int
    hosted: int
    mesh: dict[str, int]
    batch: dict[str, int]
    dtype: str
    remat: bool
    parameters: dict[str, int]
    memory: dict[str, float]
    compiler: dict[str, float]
    held: list[list[float]]
    flops: float
    traffic: list[dict[str, Any]]
    least: dict[str, float]
    estimate: dict[str, float]
    price: float | None
    watts: float | None
    steps: int
    settled: dict[str, Any]
    given: dict[str, Any]
    assumed: dict[str, Any]
    notes: list[str]
    advice: list[str]
    seconds: dict[str, float]

    @property
    def fits(self) -> bool:
        """Whether a device has as much memory as the program needs."""
        return self.memory["needed"] <= self.memory["available"]

    @property
    def received(self) -> dict[str, float]:
        """Kind of collective -> bytes that a device receives."""
        sums: dict[str, float] = {}
        for one in self.traffic:
            sums[one["kind"]] = sums.get(one["kind"], 0.0) + one["bytes"]
        return sums

    @property
    def over_least(self) -> float | None:
        """Bytes received over the least; None where nothing need be sent, or nothing was compiled."""
        least = sum(self.least.values())
        return sum(self.received.values()) / least if least and self.compiler else None

    @property
    def tokens_per_second(self) -> float:
        """Of all devices; of images, these."""
        what = self.batch["tokens"] or self.batch["examples"]
        return what / self.estimate["seconds"]

    def to_json(self) -> dict[str, Any]:
        """plan.json."""
        return {
            "written by": WRITER,
            "version": VERSION,
            "fits": self.fits,
            **dataclasses.asdict(self),
        }


def from_json(raw: Mapping[str, Any], name: str) -> Plan:
    """The plan of a plan.json.

    Args:
      name: of the file, for messages.

    Raises:
      ValueError: it is none, or of another version.
    """
    if raw.get("written by") != WRITER or raw.get("version") != VERSION:
        raise ValueError(f"{name} is no plan.json of this version of `jaxft plan`")
    names = [field.name for field in dataclasses.fields(Plan)]
    if lacking := [one for one in names if one not in raw]:
        raise ValueError(f"{name} lacks {', '.join(lacking)}: it is no whole plan.json")
    return Plan(**{one: raw[one] for one in names})
