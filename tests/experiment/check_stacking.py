"""Stacked runs against runs that are not, bit for bit, as users compile them. Prints what differed.

    XLA_FLAGS= python -m tests.experiment.check_stacking FOLDER [CASE ...]

A program of its own, since the tests compile without LLVM's optimisations, which are what could differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from jaxft import optim
from jaxft.experiment.build import build
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.steps import devices
from tests import tiny, worlds

BLOCKS = 6
CASES: dict[str, tuple[str, ...]] = {
    "full": (),
    "frozen": ("--config.optim.freeze_below=2",),
    "decay": ("--config.optim.layer_decay=0.7", "--config.optim.freeze_below=1"),
    "patterns": ("--config.optim.frozen=(r'.*/attention/self/.*',)",),
    "remat": ("--config.model.remat=true", "--config.optim.layer_decay=0.8"),
    "accumulate": ("--config.train.accumulate=2",),
    "lion": ("--config.optim.optimizer=lion", "--config.optim.lr=1e-4"),
    "sgd": ("--config.optim.optimizer=sgd", "--config.optim.clip=None"),
    "pretrained": ("--config.optim.decay_towards=pretrained",),
    "averages": ("--config.optim.average=ema",),
    "schedule_free": ("--config.optim.schedule_free=true", "--config.optim.schedule=constant"),
    "bottom_up": ("--config.optim.unfreeze=bottom_up", "--config.optim.unfreeze_every=1 steps"),
    "top_down": ("--config.optim.unfreeze=top_down", "--config.optim.unfreeze_every=1 steps"),
    "lp_ft": ("--config.optim.unfreeze=lp_ft", "--config.optim.unfreeze_every=2 steps"),
    "bfloat16": ("--config.model.dtype=bfloat16",),
    "skip": ("--config.train.on_nonfinite=skip",),
    "pmap": ("--config.parallel.mode=pmap", "--config.optim.freeze_below=2"),
}  # fmt: skip
STEPS = 10


def make(folder: Path) -> Path:
    """A BERT with dropout that is large enough to clip and small enough to compile."""
    tiny.bert(folder / "deep", blocks=BLOCKS)
    tiny.texts(folder / "train.csv")
    return folder


def prepared(folder: Path, stack: str, *extra: str) -> Prepared:
    """A short run of it."""
    own = (f"--config.model.stack={stack}", f"--config.train.steps={STEPS}")
    return worlds.prepared(worlds.arguments(folder, folder / "unused", *extra, *own, model="deep"))


def after(folder: Path, stack: str, *extra: str) -> tuple[dict[str, np.ndarray], list[float]]:
    """Parameters and slots by path after some updates, and the norms of their gradients."""
    ready = prepared(folder, stack, *extra)
    run, state = build(ready, devices(ready.config), cache=None, stack=True)
    assert any(run.stacking.layouts) == (stack == "on"), run.stacking.said
    state, metrics = worlds.updated(run, state, STEPS)
    norms = [float(one["grad_norm"]) for one in metrics]
    plain = run.parallel.unreplicate(run.stages.plain(state))
    tree = {"whole": plain.whole, "slots": plain.opt_state}
    return {path: np.asarray(leaf) for path, leaf in optim.by_path(tree).items()}, norms


def differing(folder: Path, *extra: str) -> list[str]:
    """Paths of what is not the same bits."""
    (one, norms), (other, others) = (after(folder, stack, *extra) for stack in ("on", "off"))
    assert one.keys() == other.keys()
    found = [path for path in one if not np.array_equal(one[path], other[path])]
    return found + [
        f"norm {i}" for i, pair in enumerate(zip(norms, others, strict=True)) if len({*pair}) > 1
    ]


def main() -> int:
    jax.config.update("jax_num_cpu_devices", 2)
    folder, *names = sys.argv[1:]
    status = 0
    for name in names or CASES:
        wrong = differing(Path(folder), *CASES[name])
        print(f"{name}: {f'{len(wrong)} differ, {wrong[:3]}' if wrong else 'the same'}", flush=True)
        status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(main())
