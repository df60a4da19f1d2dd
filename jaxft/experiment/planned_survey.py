"""Every way to run a config on a machine, by arithmetic: see `planning.survey`."""

from __future__ import annotations

import dataclasses
import math

from jax.sharding import PartitionSpec

from jaxft.config import ConfigDict, override
from jaxft.experiment.planned import plan_run, prepared_for
from jaxft.experiment.planned_leaves import leaves_of
from jaxft.experiment.prepared import Prepared
from jaxft.models.cuts import param_specs
from jaxft.optim import by_path
from jaxft.planning.estimate import estimate
from jaxft.planning.hardware import Chip
from jaxft.planning.holding import width_of
from jaxft.planning.least import Leaf, gathered, least
from jaxft.planning.plan import Plan
from jaxft.planning.survey import Candidate, batches, meshes
from jaxft.planning.topology import Topology
from jaxft.planning.whole_slice import as_compiled

# Beside what is counted: logits of a chunk and their gradient, and what the compiler needs for itself.
_ROOM = 2**29


def survey(
    config: ConfigDict, topology: Topology, chip: Chip, *, length: int, examples: int
) -> list[Candidate]:
    """Every candidate, the most promising first.

    Args:
      chip: what all of them are held against; that of this machine is measured, never twice the same.

    Raises:
      ValueError: as `plan_run`; or no mesh cuts the batch.
    """
    found: list[Candidate] = []
    # XLA's CPU backend computes bfloat16 in float32.
    others = () if topology.platform == "cpu" else ("bfloat16",)
    for dtype in dict.fromkeys((config.model.dtype, *others)):
        for remat in dict.fromkeys((False, True)):
            plain = {
                "model.dtype": dtype, "model.remat": remat, "parallel.data": 1, "parallel.fsdp": 1,
                "parallel.tensor": 1, "train.accumulate": 1, "parallel.mode": "jit",
            }  # fmt: skip
            one = override(config, plain)
            alone = dataclasses.replace(topology, shape=(1,) * len(topology.shape))
            counted = plan_run(
                one, alone, length=length, examples=examples, compiles=False,
                chip=dataclasses.asdict(chip),
            )  # fmt: skip
            prepared = prepared_for(one, length, examples)
            found += _of_type(prepared, counted, topology, chip)
    if not found:
        raise ValueError(
            f"config.train.batch_size={config.train.batch_size} cannot be cut over {topology.devices} "
            f"devices in any way; give a multiple of {topology.devices}"
        )
    return sorted(found, key=lambda one: (not one.fits, -one.rank, one.fields["train.accumulate"]))


def _of_type(prepared: Prepared, counted: Plan, topology: Topology, chip: Chip) -> list[Candidate]:
    """Those of one compute type, recomputing or not. counted: of one device that holds all."""
    config = prepared.config
    rules, abstract = prepared.architecture.tensor_rules, prepared.architecture.abstract
    found = []
    for data, fsdp, tensor in meshes(topology.devices, topology.hosted, tensor=bool(rules)):
        specs = by_path(param_specs(abstract, rules, fsdp=fsdp, tensor=tensor))
        mesh = {"data": data, "fsdp": fsdp, "tensor": tensor}
        held = _held(prepared, counted, specs, mesh)
        for larger, batch, parts in batches(config.train.batch_size, data * fsdp):
            share = larger / (data * fsdp)
            tokens = (counted.batch["tokens"] or counted.batch["examples"]) * larger
            sent = least(
                held.leaves, mesh, lowest=counted.parameters["frozen_blocks"], tokens=tokens, width=4,
                compute=width_of(config.model.dtype), accumulate=parts,
            )  # fmt: skip
            kept = (counted.memory["activations"] + counted.memory["block"]) * share / parts
            needed = held.bytes + kept * (1 + held.shared / tensor - held.shared) + _ROOM
            took = estimate(
                chip, flops=counted.flops * larger / topology.devices, dtype=config.model.dtype,
                held=held.state, found=as_compiled(sent, topology, mesh), mesh=mesh,
                hosted=topology.hosted,
            ).seconds  # fmt: skip
            fields = {
                "parallel.mode": "shard", **{f"parallel.{axis}": n for axis, n in mesh.items()},
                "train.batch_size": batch, "train.accumulate": parts, "model.dtype": config.model.dtype,
                "model.remat": config.model.remat,
            }  # fmt: skip
            found.append(Candidate(fields, needed, chip.memory, took, tokens / took, larger))
    return found


@dataclasses.dataclass(frozen=True)
class _Held:
    """state: bytes a device of parameters and slots; bytes: and gradients and a gathered block; shared:
    which part of activations the tensor axis cuts."""

    leaves: list[Leaf]
    state: float
    bytes: float
    shared: float = 0.5


def _held(
    prepared: Prepared, counted: Plan, specs: dict[str, PartitionSpec], mesh: dict[str, int]
) -> _Held:
    frozen = prepared.decisions.frozen_in(len(prepared.decisions.starts) - 1)
    leaves = leaves_of(prepared, specs, {row.path for row in prepared.decisions} - frozen)
    own = trained = 0.0
    for leaf in leaves:
        share = 4 * leaf.size / math.prod(mesh[axis] for axis in leaf.placement if axis)
        own += share
        trained += share * leaf.trains
    slots = trained * counted.memory["slots"] / max(1.0, counted.memory["trainable"])
    whole = gathered(leaves, mesh, compute=width_of(prepared.config.model.dtype))
    return _Held(leaves, own + slots, own + slots + trained + whole)
