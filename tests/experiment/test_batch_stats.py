"""Batch norms that train: against PyTorch in train mode, the same on any devices, and fixed below."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxft import evaluate, train
from jaxft.experiment.stages import split_for
from jaxft.models import Pass, by_path, hf, load_architecture, move_statistics
from jaxft.models.cuts import param_specs
from jaxft.tasks import classification
from jaxft.training.gradient import MeanGradient
from jaxft.training.mesh import make_parallel
from jaxft.training.parallel import Parallel
from jaxft.training.step import hyperparameters, train_step
from tests.worlds import arguments, killed_at

LABELS, ROWS, REAL = 3, 16, 13  # the last three rows of a batch are padding
ONE = make_parallel("jit")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.ResNetConfig(
        num_channels=2, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
        num_labels=LABELS,
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    transformers.ResNetForImageClassification(config).save_pretrained(path)
    return path


def batch(seed: int, rows: int = ROWS, real: int = REAL) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    present = np.arange(rows) < real
    images = rng.normal(size=(rows, 16, 16, 2)) * present[:, None, None, None]
    return {
        "pixel_values": images.astype(np.float32),
        "labels": rng.integers(0, LABELS, rows).astype(np.int32),
        "weight": present.astype(np.float32),
        "index": np.where(present, np.arange(rows), -1).astype(np.int32),
    }


def trained(
    directory: Path,
    parallel: Parallel,
    steps: int,
    *,
    accumulate: int = 1,
    frozen_blocks: int = -1,
    tx: Any = None,
    **options: Any,
) -> tuple[Any, dict[str, np.ndarray], list[float]]:
    """(architecture, the model's tree by path, losses) after some updates."""
    architecture = load_architecture(str(directory), num_labels=LABELS)
    places = parallel.shardings(param_specs(architecture.whole, (), fsdp=1, tensor=1))
    whole, _ = hf.read_params(str(directory), architecture, key=jax.random.key(0), shardings=places)
    depths = {**architecture.depths, **architecture.statistics}
    frozen = frozenset(path for path, depth in depths.items() if depth <= frozen_blocks)
    moving = frozenset(architecture.statistics) - frozen
    params, fixed, stats = split_for(frozen, moving, whole)
    hparams, tx = hyperparameters(jax.random.key(1)), tx or optax.sgd(0.1, momentum=0.9)
    state = parallel.init(params, fixed, hparams, lambda _: tx, stats)
    forward = functools.partial(
        architecture.apply,
        how=Pass(
            batch_stats=True, axis_name=parallel.axis_name, frozen_blocks=frozen_blocks, **options
        ),
    )  # fmt: skip
    step = parallel.compile_train(
        functools.partial(
            train_step, forward=forward, loss=classification.loss, optimizer=lambda _: tx,
            gradient=MeanGradient(accumulate, parallel.axis_name), moved=move_statistics,
        ),
        state,
    )  # fmt: skip
    lost = []
    for i in range(steps):
        state, metrics = step(state, parallel.put(batch(i)))
        lost.append(float(parallel.unreplicate(metrics)["loss"]))
    tree = jax.tree.map(np.asarray, parallel.unreplicate(state.whole))
    return architecture, by_path(tree), lost


def test_five_updates_track_pytorch_in_train_mode_and_are_exported(directory, tmp_path):
    tx = optax.adamw(1e-2, eps=1e-3, weight_decay=0.0)
    architecture, found, lost = trained(directory, ONE, 5, tx=tx)
    model = transformers.ResNetForImageClassification.from_pretrained(directory).train()
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0)
    expected = []
    for i in range(5):
        one = {name: torch.tensor(x[:REAL]) for name, x in batch(i).items()}
        theirs.zero_grad()
        result = model(one["pixel_values"].permute(0, 3, 1, 2), labels=one["labels"].long())
        result.loss.backward()
        theirs.step()
        expected.append(result.loss.item())
    np.testing.assert_allclose(lost, expected, atol=1e-4)
    state = model.state_dict()
    for path in architecture.statistics:
        reference = state[architecture.stored[path].name].numpy()
        np.testing.assert_allclose(found[path], reference, rtol=1e-3, atol=1e-4, err_msg=path)

    treedef = jax.tree.structure(architecture.whole)
    whole = jax.tree.unflatten(treedef, list(found.values()))
    hf.write_checkpoint(
        str(tmp_path / "out"), architecture, whole, id2label=dict(enumerate("abc")),
        source=str(directory), unchanged=(),
    )  # fmt: skip
    again = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "out").eval()
    counts = {int(x) for name, x in again.state_dict().items() if name.endswith("tracked")}
    assert counts == {5}
    images = batch(9)["pixel_values"]
    with torch.no_grad():
        reference = again(torch.tensor(images.transpose(0, 3, 1, 2))).logits.numpy()
    logits = jax.jit(architecture.apply)(whole, {"pixel_values": images})["logits"]
    np.testing.assert_allclose(logits, reference, atol=1e-4)


@pytest.mark.parametrize("mode", ["shard", "pmap"])
def test_devices_share_one_sample(mode, directory):
    """Of 16 rows the last device has padding only; statistics are those of all devices."""
    _, alone, lost = trained(directory, ONE, 3)
    _, together, also_lost = trained(directory, make_parallel(mode), 3)
    np.testing.assert_allclose(also_lost, lost, rtol=1e-4)
    for path, value in alone.items():
        np.testing.assert_allclose(together[path], value, rtol=1e-3, atol=1e-4, err_msg=path)


def test_microbatches_are_normalised_apart_and_move_the_statistics_once(directory):
    architecture, parts, lost = trained(directory, ONE, 1, accumulate=2)
    _, whole, whole_lost = trained(directory, ONE, 1)
    assert lost != whole_lost
    stem = "resnet/embedder/embedder/normalization"
    for name in ("running_mean", "running_var"):  # nothing before it depends on the sample
        np.testing.assert_allclose(parts[f"{stem}/{name}"], whole[f"{stem}/{name}"], rtol=1e-4)
    assert {int(parts[p]) for p in architecture.statistics if p.endswith("tracked")} == {1}


def test_what_lies_below_the_trainable_blocks_keeps_its_statistics(directory):
    architecture, found, _ = trained(directory, ONE, 2, frozen_blocks=1, remat=True)
    before = by_path(hf.read_params(str(directory), architecture, key=jax.random.key(0))[0])
    for path, depth in architecture.statistics.items():
        same = np.array_equal(found[path], before[path])
        assert same == (depth <= 1), path


@pytest.mark.slow
@pytest.mark.parametrize(("unfreeze", "kills"), [("none", (5,)), ("lp_ft", (2, 6))])
def test_a_killed_run_keeps_its_statistics_bit_for_bit(
    world: Path, tmp_path: Path, unfreeze: str, kills: tuple[int, ...]
):
    def command(name: str) -> list[str]:
        return arguments(
            world, tmp_path / name, "--config.model.batch_stats=train",
            f"--config.optim.unfreeze={unfreeze}", "--config.train.batch_size=8",
            "--config.train.steps=8", "--config.train.log_every=1",
            "--config.checkpoint.every_steps=1", model="resnet",
        )  # fmt: skip

    assert train.main(command("whole")) == 0
    for step in kills:
        killed_at(step, command("broken"))
    assert train.main(command("broken")) == 0
    whole, broken = (
        load_file(tmp_path / n / "best/model.safetensors") for n in ("whole", "broken")
    )
    before = load_file(world / "resnet/model.safetensors")
    for name, value in whole.items():
        np.testing.assert_array_equal(broken[name], value, err_msg=name)
    moved = [
        name for name in before if "running" in name and not (before[name] == whole[name]).all()
    ]
    assert moved and all(name in whole for name in before if "classifier" not in name)
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert summary["eval"]["loss"] == pytest.approx(evaluate(tmp_path / "whole")["loss"], rel=1e-5)
