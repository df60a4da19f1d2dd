"""The small world that most tests run in, and the command lines, kills and comparisons of runs in it.

`world` (tests/conftest.py) is made once a session and read only: a test that changes a file copies it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import train
from jaxft.experiment.build import Run
from jaxft.experiment.prepared import Prepared, prepare
from jaxft.terminal import config_file
from jaxft.training.logs import Logs
from jaxft.training.step import TrainState
from tests import tiny

ROOT = Path(__file__).parent.parent
IMAGES = ("image", "images")


def make(folder: Path) -> Path:
    """Checkpoints and data: what each test needs another of, it makes beside them."""
    tiny.bert(folder / "bert")
    tiny.bert(folder / "one_block", blocks=1)  # for all that does not ask how deep the model is
    tiny.vit(folder / "vit", blocks=1)
    tiny.resnet(folder / "resnet")
    tiny.texts(folder / "train.csv")
    tiny.texts(folder / "test.csv", 30, seed=9)
    tiny.texts(folder / "few.csv", 6, seed=2)
    tiny.images(folder / "images")
    return folder


def arguments(
    world: Path, workdir: Path, *extra: str, mode: str = "jit", model: str = "one_block"
) -> list[str]:
    """The command line of a short run; `extra` comes last, so that it wins.

    Batches have one shape: of each further one, every run compiles two programs more.
    """
    kind, data = IMAGES if model in ("vit", "resnet") else ("text", "train.csv")
    return [
        "jaxft.train", f"--config={ROOT}/configs/{kind}_classification.py", f"--workdir={workdir}",
        f"--config.model.path={world / model}", f"--config.data.train={world / data}",
        "--config.train.batch_size=16", "--config.train.steps=12", "--config.eval.every=4 steps",
        "--config.checkpoint.every_steps=4", "--config.optim.lr=3e-3", "--config.train.log_every=2",
        "--config.data.max_shapes=1", "--config.log.tensorboard=false", f"--config.parallel.mode={mode}",
        "--config.train.compile_cache=", *extra,
    ]  # fmt: skip


def fields(folder: Path, data: str, batch: int, **more: object) -> dict[str, object]:
    """Of a short run of `folder`/bert on `folder`/`data`, in one batch shape."""
    return {
        "model.path": str(folder / "bert"), "data.train": str(folder / data),
        "data.max_shapes": 1, "train.compile_cache": "", "train.batch_size": batch,
        "parallel.mode": "jit", "log.tensorboard": False, **more,
    }  # fmt: skip


def prepared(argv: list[str]) -> Prepared:
    """What a command line of `arguments` asks for, before a weight is read."""
    given = [a.removeprefix("--config.").split("=", 1) for a in argv if a.startswith("--config.")]
    (file,) = (a.removeprefix("--config=") for a in argv if a.startswith("--config="))
    return prepare(config_file.load(file, [(name, value) for name, value in given]))


def updated(run: Run, state: TrainState, stop: int, start: int = 0) -> tuple[TrainState, list[Any]]:
    """The state after updates start..stop - 1, by the loop's own parts, and the metrics of each."""
    stage, found = run.stages.index(start), []
    for step in range(start, stop):
        if run.stages.index(step) > stage:
            stage, state = run.stages.index(step), run.stages.advance(state, step)
        batch = run.parallel.put(run.train_batches[step])
        state, metrics = run.stages.at(step).program(state, batch)
        found.append(run.parallel.unreplicate(metrics))
    return state, found


def weights(run: Path) -> dict[str, np.ndarray]:
    """What a finished run exported."""
    return load_file(run / "best" / "model.safetensors")


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict]:
    """What a run logged that is the same whenever it is run again: no events, no times."""
    return [
        {k: v for k, v in row.items() if not k.endswith(("second", "seconds"))}
        for row in rows(run)
        if row["kind"] != "event"
    ]


def assert_same_weights(found: Path, expected: Path) -> None:
    """Of two finished runs, bit for bit."""
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


class Crash(BaseException):
    """Stands for a kill: nothing in the program catches it."""


def killed_at(step: int, argv: list[str]) -> None:
    """Run a command that is killed after it logged this step."""
    original = Logs.train

    def crash(self, at, *rest):
        original(self, at, *rest)
        if at == step:
            raise Crash

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Logs, "train", crash)
        train.main(argv)
