"""A real checkpoint against PyTorch: `JAXFT_MINILM=DIR make test-slow`, with a BERT directory of your own."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft.models import by_path, hf, load_architecture
from jaxft.tasks import classification

CHECKPOINT = os.environ.get("JAXFT_MINILM", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKPOINT, reason="JAXFT_MINILM names no checkpoint directory"),
]
TEXTS, LENGTH, LABELS = 4, 24, 3


@pytest.fixture(scope="module")
def both():
    """(PyTorch model, architecture, parameters) with the same new head."""
    architecture = load_architecture(CHECKPOINT, num_labels=LABELS, dropout=0.0)
    params, _ = hf.read_params(CHECKPOINT, architecture, key=jax.random.key(0))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        CHECKPOINT, num_labels=LABELS
    ).eval()
    head = by_path(params)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor(np.array(head["classifier/kernel"]).T))
        model.classifier.bias.copy_(torch.tensor(np.array(head["classifier/bias"])))
    return model, architecture, params


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Two texts of unequal length in each row."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 20000, (TEXTS, LENGTH)).astype(np.int32)
    segments = np.repeat([[1] * 10 + [2] * 12 + [0] * 2], TEXTS, axis=0).astype(np.int32)
    positions = np.repeat([[*range(10), *range(12), 0, 0]], TEXTS, axis=0).astype(np.int32)
    return {
        "input_ids": ids, "segment_ids": segments, "positions": positions,
        "token_type_ids": np.zeros_like(ids),
        "starts": np.repeat([[0, 10]], TEXTS, axis=0).astype(np.int32),
        "labels": rng.integers(0, LABELS, (TEXTS, 2)).astype(np.int32),
        "weight": np.ones((TEXTS, 2), np.float32),
    }  # fmt: skip


def torch_logits(model, batch) -> torch.Tensor:
    """[TEXTS, 2, LABELS], each text alone."""
    ids = torch.tensor(batch["input_ids"], dtype=torch.long)
    return torch.stack([model(ids[:, :10]).logits, model(ids[:, 10:22]).logits], dim=1)


def test_logits_equal_pytorch(both, batch):
    model, architecture, params = both
    with torch.no_grad():
        expected = torch_logits(model, batch).numpy()
    np.testing.assert_allclose(architecture.apply(params, batch)["logits"], expected, atol=1e-5)


def test_gradients_equal_pytorch(both, batch):
    model, architecture, params = both
    labels = torch.tensor(batch["labels"], dtype=torch.long).flatten()
    logits = torch_logits(model, batch).reshape(-1, LABELS)
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    found = by_path(
        jax.grad(lambda p: classification.loss(architecture.apply(p, batch), batch)[0])(params)
    )
    for block in range(architecture.num_blocks):
        for name in ("attention.output.dense", "intermediate.dense", "output.dense"):
            module = model.get_submodule(f"bert.encoder.layer.{block}.{name}")
            expected = module.weight.grad.numpy().T
            path = f"bert/encoder/layer/{block}/{name.replace('.', '/')}/kernel"
            error = np.linalg.norm(found[path] - expected) / np.linalg.norm(expected)
            assert error < 1e-4, (path, error)
