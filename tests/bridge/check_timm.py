"""Models of timm in its hub format: against PyTorch, its layer-wise decay, and through a whole run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import optim, train
from jaxft.models import by_path, hf, load_architecture
from tests import tiny
from tests.bridge.torch_reference import DECAY, LABELS, cotangent

NAMES = ("timm-vit", "timm-resnet", "timm-swin")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A folder with a checkpoint and PyTorch's results of each case."""
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, "-m", "tests.bridge.torch_reference", str(folder), *NAMES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_timm(reference, name):
    """Logits, every gradient, and the scale of layer-wise decay of every parameter."""
    architecture = load_architecture(str(reference / name), num_labels=LABELS)
    params, report = hf.read_params(str(reference / name), architecture, key=jax.random.key(0))
    assert not report.initialised and not report.dropped and architecture.inputs == "image"
    labels = optim.path_map(lambda path, _: path in architecture.depths, params)
    split = optim.split(params, labels, names=(True, False))
    arrays = np.load(reference / f"{name}.npz")
    batch = {"pixel_values": jnp.asarray(arrays["pixel_values"]).transpose(0, 2, 3, 1)}

    def value(trained):
        logits = architecture.apply(optim.merge(trained, split[False]), batch)["logits"]
        return (logits * cotangent(arrays["logits"].shape)).sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(split[True])
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-5, rtol=1e-5)
    for path, gradient in by_path(gradients).items():
        theirs = arrays[f"gradient {path.replace('/', '.')}"]
        assert np.abs(gradient - theirs).max() <= 1e-4 * max(float(np.abs(theirs).max()), 1e-3), (
            path
        )
    scales = json.loads((reference / f"{name}.json").read_text())
    top = architecture.num_blocks + 1
    ours = {path.replace("/", "."): DECAY ** (top - d) for path, d in architecture.depths.items()}
    assert ours == pytest.approx(scales)


def test_a_run_ends_in_a_checkpoint_that_timm_loads(reference, tmp_path):
    import timm
    import torch

    tiny.images(tmp_path / "images")
    train(ROOT / "configs" / "image_classification.py", tmp_path / "run", {
        "model.path": str(reference / "timm-vit"), "data.train": str(tmp_path / "images"),
        "train": {"batch_size": 4, "steps": 4, "compile_cache": ""}, "eval.every": "100%",
        "optim": {"freeze_below": 1, "lr": 1e-3}, "parallel.mode": "jit", "log.tensorboard": False,
    })  # fmt: skip
    best = tmp_path / "run" / "best"
    before = load_file(reference / "timm-vit" / "model.safetensors")
    after = load_file(best / "model.safetensors")
    assert before["blocks.0.mlp.fc1.weight"].tobytes() == after["blocks.0.mlp.fc1.weight"].tobytes()
    assert not np.array_equal(before["blocks.1.mlp.fc1.weight"], after["blocks.1.mlp.fc1.weight"])
    config = json.loads((best / "config.json").read_text())
    assert config["label_names"] == ["left", "upper"] and config["num_classes"] == 2
    model = timm.create_model(f"local-dir:{best}", pretrained=True).eval()
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(pixels)).numpy()
    architecture = load_architecture(str(best), num_labels=2)
    params, _ = hf.read_params(str(best), architecture, key=jax.random.key(0))
    batch = {"pixel_values": jnp.asarray(pixels).transpose(0, 2, 3, 1)}
    np.testing.assert_allclose(architecture.apply(params, batch)["logits"], theirs, atol=1e-5)


def test_no_training_from_scratch_where_the_first_values_are_not_known(reference):
    directory = str(reference / "timm-vit")
    architecture = load_architecture(directory, num_labels=LABELS)
    with pytest.raises(ValueError, match="vit_tiny_patch16_224 is initialised is not known"):
        hf.read_params(directory, architecture, key=jax.random.key(0), scratch=True)
