"""How long a training step of a deep BERT takes to compile, stacked and not, and what a step costs.

    python benchmarks/stacking.py [--blocks 8,32,80] [--width 128] [--topology v5e:2x2] [--stack on,off]

The step is a run's own: AdamW, clipping, dropout, layer-wise rates, the lower half frozen. For a TPU topology
(which needs `pip install libtpu`, and no TPU) it is compiled ahead over data 2 x fsdp 2. Seconds to compile
are of CPU, of all threads of this process, since the machine may be busy.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxft.experiment.build import build
from jaxft.experiment.compilation import batch_shapes
from jaxft.experiment.prepared import Prepared, prepare
from jaxft.experiment.steps import devices, make_stages
from jaxft.terminal import config_file
from jaxft.training.parallel import Parallel
from tests import tiny

CONFIG = str(Path(__file__).parent.parent / "configs" / "text_classification.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", default="8,32,80")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--topology", default="")
    parser.add_argument("--stack", default="on,off")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny.texts(Path(folder, "train.csv"))
        for blocks in map(int, asked.blocks.split(",")):
            model = tiny.bert(Path(folder, f"bert{blocks}"), blocks=blocks, width=asked.width)
            for stack in asked.stack.split(","):
                prepared = _prepared(folder, model, blocks, stack, asked.topology)
                row = _ahead(prepared, asked.topology) if asked.topology else _here(prepared)
                print(f"{blocks} blocks, stack={stack}: {row}", flush=True)


def _prepared(folder: str, model: str, blocks: int, stack: str, topology: str) -> Prepared:
    mode = (
        {"parallel.mode": "shard", "parallel.fsdp": "2"} if topology else {"parallel.mode": "jit"}
    )
    values = {
        "model.path": model, "model.stack": stack, "data.train": f"{folder}/train.csv",
        "data.max_shapes": "1", "train.batch_size": "16", "train.steps": "20",
        "train.compile_cache": "", "optim.layer_decay": "0.9",
        "optim.freeze_below": str(blocks // 2), **mode,
    }  # fmt: skip
    return prepare(config_file.load(CONFIG, list(values.items())))


def _here(prepared: Prepared) -> str:
    run, state = build(prepared, devices(prepared.config), cache=None, stack=True)
    stage, batch = run.stages.at(0), run.parallel.put(run.train_batches[0])
    begin = os.times()
    stage.program.compile((stage.state,), [batch])
    compiled, size = _since(begin), stage.program.bytes(batch) or 0
    times = []
    for _ in range(8):
        begin, clock = os.times(), time.perf_counter()
        state, metrics = stage.program(state, batch)
        jax.block_until_ready(metrics)
        times.append((_since(begin), time.perf_counter() - clock))
    cpu, wall = (1e3 * min(x) for x in zip(*times, strict=True))
    kept = size / 2**20
    return f"{compiled:.1f} s to compile, step {cpu:.0f} ms of CPU ({wall:.0f} ms), {kept:.1f} MiB in all"


def _ahead(prepared: Prepared, topology: str) -> str:
    from jax.experimental import topologies

    there = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(
        np.array(there).reshape(-1, 2, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
    )
    parallel = Parallel("shard", mesh, len(there))
    stage = make_stages(prepared, parallel, (), layouts=prepared.stacking.layouts)[0]
    run, _ = build(_alone(prepared), Parallel("jit", None, 1), cache=None)
    shape: Any = batch_shapes(run.train_batches, parallel, range(1))[0]
    begin = os.times()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(stage.step, donate_argnums=0).lower(stage.state, shape)
        traced = _since(begin)
        memory: Any = lowered.compile().memory_analysis()
    sizes = (memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20)
    return (
        f"{_since(begin):.1f} s to compile, of them {traced:.1f} to trace; a device "
        f"{sizes[0]:.1f} MiB of arguments, {sizes[1]:.1f} MiB temporary"
    )


def _alone(prepared: Prepared) -> Prepared:
    """For its batches: the same on one device."""
    config = config_file.load(CONFIG, [])
    config.update(prepared.config)
    config.parallel.mode, config.parallel.fsdp, config.model.stack = "jit", 1, "off"
    return dataclasses.replace(prepare(config))


def _since(begin: Any) -> float:
    now = os.times()
    return now.user + now.system - begin.user - begin.system


if __name__ == "__main__":
    main()
