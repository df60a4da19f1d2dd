"""A run compiled for a machine that is not here, and what that says of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from jaxft.config import ConfigDict
from jaxft.experiment.compilation import batch_shapes, release_free_memory
from jaxft.experiment.data import open_splits
from jaxft.experiment.encoder import make_encoder
from jaxft.experiment.outline import NOWHERE, outline, outlined_batch
from jaxft.experiment.planned_world import World, chunks
from jaxft.experiment.prepared import Prepared, settle, task_at
from jaxft.experiment.steps import devices, make_stages, slicing
from jaxft.models import class_names, hf
from jaxft.planning.advice import advice
from jaxft.planning.cpu import cpu_chip, process_bytes, resident
from jaxft.planning.flops import products
from jaxft.planning.hardware import CHIPS, Chip
from jaxft.planning.holding import bytes_of
from jaxft.planning.plan import Plan
from jaxft.planning.topology import CPU, Topology, open_devices
from jaxft.training.parallel import Parallel
from jaxft.training.programs import CPU_OPTIONS


def plan_run(
    config: ConfigDict, topology: Topology, *, length: int = 0, examples: int = 0,
    price: float | None = None, watts: float | None = None, compiles: bool = True,
    chip: Mapping[str, Any] | None = None,
) -> Plan:  # fmt: skip
    """Compile a run's step for a machine, in a process with `topology.environment`.

    Args:
      length: tokens of every text, of data that nobody reads; 0: the data are read.
      examples: of such data; 0: not known.
      price, watts: of a device, in place of the table's.
      chip: fields of one that is known; None: as `chip_of` says.
      compiles: False leaves out what only the compiler tells: temporaries and traffic are then estimates.

    Raises:
      ValueError: a config, a checkpoint, data or a mesh that cannot be.
    """
    began = time.perf_counter()
    parallel = devices(config, open_devices(topology))
    prepared = prepared_for(config, length, examples)
    stages = make_stages(prepared, parallel, ())
    number = max(range(len(stages)), key=lambda one: bytes_of(stages[one].state.params))
    shapes = _batch(prepared, parallel, length)
    stage = run = stages[number]
    if any(
        layouts := prepared.stacking.layouts
    ):  # what is told is told by path, of a tree that is not
        run = make_stages(prepared, parallel, (), layouts=layouts)[number]
    traced = run.program.traced_for((run.state,), shapes)
    trips = chunks(prepared, parallel, shapes)
    flops = products(traced.jaxpr, unknown_trips=trips)
    spent, began = time.perf_counter() - began, time.perf_counter()
    compiled = None
    if compiles:
        options = CPU_OPTIONS if topology.platform == "cpu" else None
        compiled = traced.lower().compile(compiler_options=options)
    seconds = {"trace": spent, "compile": time.perf_counter() - began}
    release_free_memory()
    own, highest = resident()
    known_chip = chip_of(topology) if chip is None else Chip(**chip)
    world = World(prepared, parallel, topology, known_chip, stage, shapes)
    plan = world.plan(flops, compiled, trips, seconds)
    known = bool(examples or not length or config.train.steps)
    memory = dict(plan.memory)
    if topology.platform == "cpu" and topology.devices == 1:
        memory["process"] = process_bytes(plan.memory, own, highest)
    plan = dataclasses.replace(
        plan,
        memory=memory,
        price=known_chip.price if price is None else price,
        watts=known_chip.watts if watts is None else watts,
        steps=prepared.length.steps if known else 0,
    )
    return dataclasses.replace(plan, advice=advice(plan))


def chip_of(topology: Topology) -> Chip:
    """One of its devices; of the CPU it is measured."""
    return cpu_chip(topology.devices) if topology.kind == CPU else CHIPS[topology.kind]


def prepared_for(config: ConfigDict, length: int, examples: int) -> Prepared:
    """See `plan_run`."""
    if length or config.task.startswith("image") and not config.data.train:
        return outline(config, examples or 100 * config.train.batch_size)
    directory = hf.resolve(config.model.path)
    task = task_at(config, directory)
    if not config.data.train and not config.data.mixture:
        raise ValueError(
            "config.data.train is empty: give the data, or --length, the tokens of every text, and none is "
            "read"
        )
    splits = open_splits(config, task, class_names(directory), config.data.cache or None)
    return settle(config, directory, splits)


def _batch(prepared: Prepared, parallel: Parallel, length: int) -> dict[str, Any]:
    """Shapes of the largest batch, with their placement."""
    config, cut = prepared.config, slicing(parallel, prepared.config.train.accumulate)
    train = prepared.splits.train
    if train.source.name == NOWHERE:
        return parallel.abstract_batch(outlined_batch(prepared, length, cut))
    encoder = make_encoder(
        config, prepared.task.inputs, prepared.directory, prepared.architecture.limits,
        prepared.splits, config.data.cache or None,
    )  # fmt: skip
    batches = encoder.training(train, config, prepared.length.steps, cut)
    return max(batch_shapes(batches, parallel), key=lambda batch: bytes_of(batch))
