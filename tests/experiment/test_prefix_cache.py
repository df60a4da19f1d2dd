"""Runs that keep what a frozen prefix gives: the same losses, and nothing kept that may change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxft.experiment.build import build
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.terminal import config_file
from tests.experiment.test_stages import host
from tests.worlds import arguments


def built(world: Path, model: str, cache: Path | None, *extra: str, mode: str = "jit"):
    plain = ("--config.data.augment=none",) * (model in ("vit", "resnet"))
    argv = arguments(world, world / "unused", *plain, *extra, mode=mode, model=model)
    overrides = [a.removeprefix("--config.").split("=", 1) for a in argv if "--config." in a]
    file = next(a for a in argv if a.startswith("--config=")).removeprefix("--config=")
    prepared = prepare(config_file.load(file, [(k, v) for k, v in overrides]))
    return build(prepared, devices(prepared.config), cache=cache and str(cache))


def trained(run, state, steps: int):
    """(losses, parameters) of the first updates."""
    losses, stage = [], 0
    for step in range(steps):
        if run.stages.index(step) > stage:
            stage, state = run.stages.index(step), run.stages.advance(state, step)
        state, metrics = run.stages.at(step).program(
            state, run.parallel.put(run.train_batches[step])
        )
        losses.append(float(run.parallel.unreplicate(metrics["loss"])))
    return losses, host(run.parallel.unreplicate(state.params))


HEAD, HALF = "--config.optim.freeze_below=all", "--config.optim.freeze_below=1"
ON, OFF = "--config.data.cache_prefix=on", "--config.data.cache_prefix=off"
DROPOUT = "--config.model.dropout=0.2"


@pytest.mark.parametrize(
    "model, extra, mode",
    [
        ("bert", (HALF, DROPOUT), "jit"),
        pytest.param("bert", (HEAD, DROPOUT), "shard", marks=pytest.mark.slow),
        ("vit", (HEAD,), "jit"),
        pytest.param("bert", (HEAD, DROPOUT), "jit", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, DROPOUT), "pmap", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, "--config.train.accumulate=2"), "shard", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, "--config.model.dtype=bfloat16"), "jit", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, "--config.data.pack=false"), "jit", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, "--config.train.r_drop=1"), "jit", marks=pytest.mark.slow),
        pytest.param("vit", (HEAD,), "pmap", marks=pytest.mark.slow),
        pytest.param("resnet", (HALF,), "shard", marks=pytest.mark.slow),
        pytest.param(
            "resnet", (HALF, "--config.model.batch_stats=train"), "jit", marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_updates_are_those_of_a_run_that_keeps_nothing(world, tmp_path, model, extra, mode):
    losses, params = trained(*built(world, model, None, *extra, OFF, mode=mode), 8)
    run, state = built(world, model, tmp_path, *extra, ON, mode=mode)
    kept_losses, kept = trained(run, state, 8)
    (array,) = (name for name in run.train_batches[0] if name.startswith("after_block_"))
    assert run.train_batches[0][array].dtype == run.prepared.config.model.dtype
    assert "pixel_values" not in run.train_batches[0]
    assert list(tmp_path.glob("*.prefix.*.npy"))
    exact = run.prepared.config.model.dtype == "float32"
    np.testing.assert_allclose(kept_losses, losses, rtol=1e-6 if exact else 1e-2)
    for path, value in params.items():
        np.testing.assert_allclose(kept[path], value, atol=3e-5 if exact else 3e-2, err_msg=path)
