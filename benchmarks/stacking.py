"""How long a training step of a deep model takes to compile, stacked and not, and what a step costs.

    python benchmarks/stacking.py [--model bert] [--blocks 8,32,80] [--width 128] [--stack on,off]

The step is a run's own: AdamW, clipping, dropout, layer-wise rates, the lower half frozen. Seconds to compile
are of CPU, of all threads of this process, since the machine may be busy.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxft.experiment.build import build
from jaxft.experiment.prepared import Prepared, prepare
from jaxft.experiment.steps import devices
from jaxft.terminal import config_file
from tests import tiny

CONFIG = str(Path(__file__).parent.parent / "configs" / "text_classification.py")
MODELS: dict[str, Callable[..., str]] = {
    "bert": tiny.bert,
    "deberta": tiny.deberta,
    # Half of the blocks each stack.
    "t5": lambda path, blocks, width: tiny.t5(path, blocks=blocks // 2, width=width, dropout=0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="bert")
    parser.add_argument("--blocks", default="8,32,80")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--stack", default="on,off")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny.texts(Path(folder, "train.csv"))
        for blocks in map(int, asked.blocks.split(",")):
            model = MODELS[asked.model](
                Path(folder, f"{asked.model}{blocks}"), blocks=blocks, width=asked.width
            )
            for stack in asked.stack.split(","):
                prepared = _prepared(folder, model, blocks, stack)
                print(
                    f"{asked.model}, {blocks} blocks, stack={stack}: {_here(prepared)}", flush=True
                )


def _prepared(folder: str, model: str, blocks: int, stack: str) -> Prepared:
    values = {
        "model.path": model, "model.stack": stack, "data.train": f"{folder}/train.csv",
        "data.max_shapes": "1", "train.batch_size": "16", "train.steps": "20",
        "train.compile_cache": "", "optim.layer_decay": "0.9",
        "optim.freeze_below": str(blocks // 2), "parallel.mode": "jit",
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


def _since(begin: Any) -> float:
    now = os.times()
    return now.user + now.system - begin.user - begin.system


if __name__ == "__main__":
    main()
