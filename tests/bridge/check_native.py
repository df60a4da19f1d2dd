"""Every native family against its bridged PyTorch module: logits, every gradient, and what is written."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxft import optim
from jaxft.models import by_path, hf, load_architecture
from jaxft.models.features import block_features
from tests.models.native_rows import LABELS, ROWS
from tests.models.test_native import OUTPUTS, PREDICT_TOKENS, logits_of, torch_model

FAST = ("deit",)
HEADS = ("sequence", "token", "question", "image", *PREDICT_TOKENS)  # that both have in such rows
NAMES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name, row in ROWS.items()
    if row.head in HEADS
]


def both(name: str, folder: Path):
    """Of each implementation (architecture, parameters)."""
    row = ROWS[name]
    row.save(torch_model(row), folder)
    for implementation in ("native", "bridge"):
        labels = OUTPUTS.get(row.head, LABELS)
        architecture = load_architecture(
            str(folder), num_labels=labels, head=row.head, implementation=implementation
        )
        yield architecture, hf.read_params(str(folder), architecture, key=jax.random.key(0))[0]


# One list of blocks where the family has stages; the norm after an encoder that a decoder follows.
OTHER_BLOCKS = {"convnext without layer scale": (), "t5, sequence": (0, 2, 3)}


def check_features(name, native, ours, bridged, theirs, batch):
    """What a probe reads after each block."""
    found, expected = (
        jax.jit(lambda params, model=model: block_features(model, params, batch))(params)
        for model, params in ((native, ours), (bridged, theirs))
    )
    for depth in OTHER_BLOCKS.get(name, range(native.num_blocks)):
        np.testing.assert_allclose(found[depth], expected[depth], atol=1e-5)


def differentiated(architecture, params, batch, head):
    """(logits of what is no padding, gradients by path) of a weighted sum of these logits."""
    side = "decoder_" if head == "seq2seq" else ""
    tokens = head in ("token", "question", *PREDICT_TOKENS)
    counts = batch[f"{side}segment_ids"][..., None] > 0 if tokens else np.ones(1)
    labels = optim.path_map(lambda path, _: path in architecture.depths, params)
    split = optim.split(params, labels, names=(True, False))

    def value(trained):
        found = logits_of(architecture.apply(optim.merge(trained, split[False]), batch)) * counts
        weights = np.random.default_rng(3).normal(size=found.shape).astype(np.float32)
        return (found * weights).sum(), found

    (_, logits), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(split[True])
    return logits, by_path(gradients)


@pytest.mark.parametrize("name", NAMES)
def test_native_is_bridged(name, tmp_path):
    (native, ours), (bridged, theirs) = both(name, tmp_path / "model")
    arrays, _ = ROWS[name].inputs(np.random.default_rng(0))
    batch = jax.tree.map(jnp.asarray, arrays)
    if native.head in ("sequence", "image"):
        check_features(name, native, ours, bridged, theirs, batch)
    logits, gradients = differentiated(native, ours, batch, native.head)
    expected, wanted = differentiated(bridged, theirs, batch, native.head)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    current, seen = bridged.naming.current, set()
    largest = max(float(abs(x).max()) for x in wanted.values())
    for path, gradient in gradients.items():
        stored = native.stored[path]
        known = current(stored.name).replace(".", "/")
        found = np.transpose(wanted[known], stored.axes)
        allowed = max(1e-4 * float(abs(found).max()), 1e-6 * largest)
        assert abs(found - gradient).max() <= allowed, path
        seen.add(known)
    assert seen == wanted.keys()
    names = {index: f"label {index}" for index in range(native.num_labels)}
    for out, architecture, params in (("native", native, ours), ("bridge", bridged, theirs)):
        hf.write_checkpoint(
            str(tmp_path / out), architecture, params, id2label=names, source=str(tmp_path / "model"),
            unchanged=(),
        )  # fmt: skip
    one, other = (load_file(tmp_path / out / "model.safetensors") for out in ("native", "bridge"))
    assert {current(key): x.tobytes() for key, x in one.items()} == {
        key: x.tobytes() for key, x in other.items()
    }


@pytest.mark.slow
def test_features_of_a_convolutional_net_are_means_of_its_maps(tmp_path):
    """Also of images that are not square, whose channels have to be told from rows and columns."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=6, hidden_sizes=[8, 12, 16], depths=[1, 2, 1], num_labels=LABELS
    )
    model = transformers.ResNetForImageClassification(config)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).normal(size=(3, 64, 96, 3)).astype(np.float32)
    models = {}
    for implementation in ("native", "bridge"):
        architecture = load_architecture(
            str(tmp_path), num_labels=LABELS, implementation=implementation
        )
        params, _ = hf.read_params(str(tmp_path), architecture, key=jax.random.key(0))
        models[implementation] = (architecture, params)
    batch = {"pixel_values": jnp.asarray(pixels)}
    check_features("resnet", *models["native"], *models["bridge"], batch)
    assert models["bridge"][0].num_blocks == 4
