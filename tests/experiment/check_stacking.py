"""Stacked runs against runs that are not, bit for bit, as users compile them. Prints what differed.

    XLA_FLAGS= python -m tests.experiment.check_stacking FOLDER [CASE ...]

A program of its own, since the tests compile without LLVM's optimisations, which are what could differ.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxft import optim
from jaxft.experiment.build import build
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.steps import devices
from tests import tiny, worlds

BLOCKS = 6
MODELS: dict[str, Callable[[Path], str]] = {
    "deep": functools.partial(tiny.bert, blocks=BLOCKS),
    "deberta": functools.partial(tiny.deberta, blocks=5),
    "t5": functools.partial(tiny.t5, blocks=5, dropout=0.1),  # of each stack
    "vit": functools.partial(tiny.vit, blocks=5),
}


class Case(NamedTuple):
    """A run: flags, and a key of `MODELS`."""

    extra: tuple[str, ...] = ()
    model: str = "deep"


# Under the plans a stage begins with each update, or with every other.
BOTTOM_UP = ("--config.optim.unfreeze=bottom_up", "--config.optim.unfreeze_every=1 steps")
TOP_DOWN = ("--config.optim.unfreeze=top_down", "--config.optim.unfreeze_every=1 steps")
BRANCHES = "--config.model.stochastic_depth=0.4"
CASES = {
    "full": Case(),
    "frozen": Case(("--config.optim.freeze_below=2",)),
    "decay": Case(("--config.optim.layer_decay=0.7", "--config.optim.freeze_below=1")),
    "patterns": Case(("--config.optim.frozen=(r'.*/attention/self/.*',)",)),
    "remat": Case(("--config.model.remat=true", "--config.optim.layer_decay=0.8")),
    "accumulate": Case(("--config.train.accumulate=2",)),
    "lion": Case(("--config.optim.optimizer=lion", "--config.optim.lr=1e-4")),
    "sgd": Case(("--config.optim.optimizer=sgd", "--config.optim.clip=None")),
    "pretrained": Case(("--config.optim.decay_towards=pretrained",)),
    "averages": Case(("--config.optim.average=ema",)),
    "schedule_free": Case(("--config.optim.schedule_free=true", "--config.optim.schedule=constant")),
    "bottom_up": Case(BOTTOM_UP),
    "top_down": Case(TOP_DOWN),
    "lp_ft": Case(("--config.optim.unfreeze=lp_ft", "--config.optim.unfreeze_every=2 steps")),
    "bfloat16": Case(("--config.model.dtype=bfloat16",)),
    "skip": Case(("--config.train.on_nonfinite=skip",)),
    "groups": Case(
        (
            "--config.optim.groups=(('.*/layer/[01]/.*', {'lr': 1e-3, 'weight_decay': 0.1}), "
            "('.*/layer/.*', {'optimizer': 'lion', 'lr': 1e-4}))",
            "--config.optim.layer_decay=0.8",
        )
    ),
    "sam": Case(("--config.optim.sam_radius=0.05", "--config.optim.freeze_below=1")),
    "pmap": Case(("--config.parallel.mode=pmap", "--config.optim.freeze_below=2")),
    "branches": Case((BRANCHES,)),
    "branches, frozen": Case((BRANCHES, "--config.optim.freeze_below=2")),
    "branches, remat": Case((BRANCHES, "--config.model.remat=true")),
    "branches, bfloat16": Case((BRANCHES, "--config.model.dtype=bfloat16")),
    "branches, pmap": Case((BRANCHES, "--config.parallel.mode=pmap")),
    "vit": Case(model="vit"),
    "vit, branches": Case((BRANCHES,), "vit"),
    **{
        f"{model}{name}": Case(extra, model)
        for model, top in (("deberta", ()), ("t5", ("--config.optim.freeze_below=6",)))
        for name, extra in {
            "": (),
            ", frozen": ("--config.optim.freeze_below=2",),
            ", decay": ("--config.optim.layer_decay=0.7",),
            # Of T5 the decoder alone: ten updates have no room for more stages.
            ", bottom_up": (*BOTTOM_UP, *top),
            ", top_down": (*TOP_DOWN, *top),
            ", remat": ("--config.model.remat=true",),
            ", bfloat16": ("--config.model.dtype=bfloat16",),
            ", branches": (BRANCHES,),
            ", pmap": ("--config.parallel.mode=pmap",),
        }.items()
    },
    # All but the tables of relative positions: only what is shared has a gradient in every block.
    "deberta, table": Case(("--config.optim.frozen=(r'(?!.*rel_embeddings).*',)",), "deberta"),
    "t5, table": Case(("--config.optim.frozen=(r'(?!.*relative_attention_bias).*',)",), "t5"),
}  # fmt: skip
STEPS = 10


def make(folder: Path) -> Path:
    """Data, and a BERT with dropout that is large enough to clip and small enough to compile."""
    MODELS["deep"](folder / "deep")
    tiny.texts(folder / "train.csv")
    tiny.images(folder / "images")
    return folder


def prepared(folder: Path, stack: str, *extra: str, model: str = "deep") -> Prepared:
    """A short run of one of the models, which is made where it is not there."""
    if not (folder / model).exists():
        MODELS[model](folder / model)
    own = (f"--config.model.stack={stack}", f"--config.train.steps={STEPS}")
    return worlds.prepared(worlds.arguments(folder, folder / "unused", *extra, *own, model=model))


def after(
    folder: Path, stack: str, *extra: str, model: str = "deep"
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Parameters and slots by path after some updates, and the norms of their gradients."""
    ready = prepared(folder, stack, *extra, model=model)
    run, state = build(ready, devices(ready.config), cache=None, stack=True)
    assert any(run.stacking.layouts) == (stack == "on"), run.stacking.said
    state, metrics = worlds.updated(run, state, STEPS)
    norms = [float(one["grad_norm"]) for one in metrics]
    plain = run.parallel.unreplicate(run.stages.plain(state))
    tree = {"whole": plain.whole, "slots": plain.opt_state}
    return {path: np.asarray(leaf) for path, leaf in optim.by_path(tree).items()}, norms


def differing(folder: Path, *extra: str, model: str = "deep") -> list[str]:
    """Paths of what is not the same bits."""
    (one, norms), (other, others) = (
        after(folder, stack, *extra, model=model) for stack in ("on", "off")
    )
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
        case = CASES[name]
        wrong = differing(Path(folder), *case.extra, model=case.model)
        print(f"{name}: {f'{len(wrong)} differ, {wrong[:3]}' if wrong else 'the same'}", flush=True)
        status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(main())
