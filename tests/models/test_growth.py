"""Rows for tokens that were added to a tokenizer: how they are drawn, and which tables have them."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft import models
from jaxft.models import hf
from jaxft.models.checkpoint.growth import grow
from tests.models.native_rows import ROWS
from tests.models.test_native import torch_model

SIZE = 57  # the models of ROWS know 50 tokens


def test_new_rows_have_the_mean_and_the_covariance_of_the_old():
    rng = np.random.default_rng(0)
    mix = np.array([[1, 0, 0.5], [0, 0.2, 1]], np.float32)  # of rank 2: the covariance is singular
    old = (rng.standard_normal((300, 2)) @ mix + [3, -1, 0]).astype(np.float32)
    table = grow(old, 20_300, np.random.default_rng(1))
    np.testing.assert_array_equal(table[:300], old)
    np.testing.assert_allclose(table[300:].mean(0), old.mean(0), atol=0.03)
    np.testing.assert_allclose(np.cov(table[300:].T), np.cov(old.T, bias=True), atol=0.04)
    np.testing.assert_array_equal(table, grow(old, 20_300, np.random.default_rng(1)))
    bias = grow(old[:, 0], 5_300, np.random.default_rng(2))
    assert abs(bias[300:].mean() - 3) < 0.1 and abs(bias[300:].std() / old[:, 0].std() - 1) < 0.1


@pytest.mark.parametrize(
    "name",
    [
        "bert, masked",
        "gpt2, next token, untied",
        "distilbert, masked, untied",
        "electra, masked",
        "t5",
    ],
)
def test_tables_grow_and_the_export_is_transformers(name, tmp_path):
    row = ROWS[name]
    source, output = tmp_path / "in", tmp_path / "out"
    torch_model(row).save_pretrained(source)
    labels = 3 if row.head in ("sequence", "token") else 0

    def load(directory, size, key=0):
        architecture = models.load_architecture(
            str(directory), num_labels=labels, head=row.head, vocabulary=size
        )
        return architecture, hf.read_params(str(directory), architecture, key=jax.random.key(key))

    small, (before, report) = load(source, 50)
    assert not small.grown and not report.initialised
    architecture, (params, report) = load(source, SIZE)
    assert architecture.limits.vocabulary == SIZE and not report.initialised
    old, new = models.by_path(before), models.by_path(params)
    other = models.by_path(load(source, SIZE, key=1)[1][0])
    assert old.keys() == new.keys() and architecture.grown
    for path, leaf in new.items():
        if path not in architecture.grown:
            np.testing.assert_array_equal(leaf, old[path])
            continue
        assert leaf.shape == (SIZE, *old[path].shape[1:])
        np.testing.assert_array_equal(leaf[:50], old[path])
        if np.ptp(old[path]):  # biases are zeros in a new model
            assert not np.array_equal(leaf[50:], other[path][50:])
    hf.write_checkpoint(
        str(output), architecture, params, id2label={n: f"l{n}" for n in range(labels)},
        source=str(source), unchanged=new,
    )  # fmt: skip
    assert json.loads((output / "config.json").read_text())["vocab_size"] == SIZE
    again, (read, _) = load(output, 0)
    assert not again.grown
    for path, leaf in models.by_path(read).items():
        np.testing.assert_array_equal(leaf, new[path])
    theirs, loaded = getattr(transformers, architecture.exports).from_pretrained(
        output, output_loading_info=True
    )
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    table = theirs.get_input_embeddings().weight
    unembedding = theirs.get_output_embeddings()
    assert table.shape[0] == SIZE
    assert unembedding is None or unembedding.weight.shape[0] == SIZE
    assert all(torch.isfinite(x).all() for x in theirs.parameters())
