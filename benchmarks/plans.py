"""The shipped plans, made again: `python benchmarks/plans.py [--compile] [NAME …]`.

Writes configs/plans/NAME.json and prints a table. Each model is a config.json of published sizes. Without
`--compile` the update is traced: seconds to minutes each; with it libtpu compiles it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from jaxft.config import ConfigDict, override
from jaxft.experiment.planning_process import planned
from jaxft.planning import told
from jaxft.planning.advice import size
from jaxft.planning.plan import Plan
from jaxft.terminal import config_file

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "configs" / "plans"
_LM = {"task": "causal_lm", "model.dtype": "bfloat16", "model.remat": True}
_IMAGES = {"task": "image_classification", "model.dtype": "bfloat16"}
_TEXTS = {"task": "text_classification", "model.dtype": "bfloat16"}
# name -> (model, topology, tokens of a text, fields)
PLANS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "llama3_8b_full": (
        "llama3_8b", "v5p:4x4x4", 4096, {**_LM, "parallel.fsdp": 32, "train.batch_size": 128},
    ),
    "llama3_8b_last_quarter": (
        "llama3_8b", "v5e:8x8", 2048,
        {**_LM, "parallel.fsdp": 32, "train.batch_size": 64, "optim.freeze_below": 24},
    ),
    "llama3_8b_full_h100": (
        "llama3_8b", "h100:4x8", 4096, {**_LM, "parallel.fsdp": 32, "train.batch_size": 32},
    ),
    "llama3_70b_last_eighth": (
        "llama3_70b", "v6e:16x16", 4096,
        {**_LM, "parallel.fsdp": 64, "train.batch_size": 256, "optim.freeze_below": 70},
    ),
    "vit_h14_full": (
        "vit_h14", "v5e:4x4", 0, {**_IMAGES, "parallel.fsdp": 16, "train.batch_size": 256},
    ),
    "bert_large_full": (
        "bert_large", "v5e:2x4", 512, {**_TEXTS, "train.batch_size": 64},
    ),
    "bert_large_last_half": (
        "bert_large", "v5e:4x4", 512,
        {**_TEXTS, "parallel.fsdp": 4, "train.batch_size": 128, "optim.freeze_below": 12},
    ),
}  # fmt: skip


def config_of(name: str) -> tuple[ConfigDict, str, int]:
    """(config, topology, tokens of a text) of a shipped plan."""
    model, topology, length, fields = PLANS[name]
    config = config_file.load(str(ROOT / "configs" / f"{fields['task']}.py"))
    place = str((PLACE / model).relative_to(ROOT))
    return (
        override(config, {**fields, "model.path": place, "parallel.mode": "shard"}),
        topology,
        length,
    )


def row(name: str, plan: Plan, seconds: float) -> str:
    """Of the table in docs/plan.md."""
    mesh = " x ".join(str(n) for n in plan.mesh.values())
    how = "compiled" if plan.compiler else "traced"
    return (
        f"| `{name}` | {plan.topology}, {mesh} | {plan.batch['rows']} x {plan.batch['length'] or 'image'} | "
        f"{size(plan.memory['needed'])} of {size(plan.memory['available'])} | "
        f"{told.number(plan.flops)} | {size(sum(plan.least.values()))} | "
        f"{told.seconds(plan.estimate['seconds'])} | {told.number(plan.tokens_per_second)} | "
        f"{how}, {seconds:.0f} s |"
    )


def main(argv: list[str]) -> None:
    """Make the plans that are named, or all."""
    compiles = "--compile" in argv
    for name in [one for one in argv if not one.startswith("-")] or list(PLANS):
        config, topology, length = config_of(name)
        began = time.perf_counter()
        plan = planned(config, topology, length=length, compiles=compiles)
        (PLACE / f"{name}.json").write_text(json.dumps(plan.to_json(), indent=1) + "\n")
        print(row(name, plan, time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
