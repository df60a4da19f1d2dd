"""Stacked blocks that share what has a gradient, or leave out branches: gradients to the last bit."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.experiment.stacking import LEAST
from jaxft.models import Pass, load_architecture
from jaxft.models.stacking import Layout
from jaxft.models.tree import by_path
from tests import tiny

ROWS = {
    "input_ids": np.arange(24, dtype=np.int32).reshape(2, 12) % 17,
    "segment_ids": np.array([[1] * 5 + [2] * 7, [1] * 8 + [0] * 4], np.int32),
    "positions": np.array([[*range(5), *range(7)], [*range(8), 0, 0, 0, 0]], np.int32),
    "token_type_ids": np.zeros((2, 12), np.int32),
    "starts": np.array([[0, 5], [0, 0]], np.int32),
}


@pytest.mark.parametrize(
    ("kind", "sizes", "count"),
    [
        ("t5", {"num_layers": 24, "d_ff": 65536, "num_heads": 128, "d_model": 1024}, 44),
        ("deberta-v2", {"num_hidden_layers": 48, "relative_attention": True}, 47),
    ],
)  # fmt: skip
def test_deep_ones_have_enough_equal_blocks_to_be_stacked_unasked(tmp_path, kind, sizes, count):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes}))
    architecture = load_architecture(str(tmp_path), num_labels=2, head="sequence")
    assert sum(len(group.depths) for group in architecture.repeats) == count >= LEAST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "blocks", "groups", "shared"),
    [
        (tiny.deberta, 3, [(1, 2)], ["rel_embeddings/embedding"]),
        # Of each stack the first has the table, and the last is followed by a norm, or read in part.
        (
            tiny.t5, 4, [(2, 3), (6, 7)],
            ["relative_attention_bias/embedding", "shared/embedding"],
        ),
    ],
)  # fmt: skip
def test_gradients_of_what_blocks_share_are_summed_in_one_order(
    tmp_path, make, blocks, groups, shared
):
    path = make(tmp_path / "model", blocks=blocks, width=16, dropout=0.1)
    architecture = load_architecture(path, num_labels=3, head="sequence", stochastic_depth=0.3)
    assert [(group.first, group.last) for group in architecture.repeats] == groups
    layout = Layout(architecture.repeats, frozenset(architecture.whole))
    params = architecture.init(jax.random.key(0))
    weights = jax.random.normal(jax.random.key(1), (2, 2, 3))

    @jax.jit
    @jax.grad
    def gradient(params, key):
        outputs = architecture.apply(params, ROWS, key, Pass(isolated=True))
        return (outputs["logits"] * weights).sum()

    key = jax.random.key(2)
    expected = by_path(gradient(params, key))
    stacked = gradient(layout.stack(params, jnp.stack), key)
    found = by_path(layout.unstack(stacked, lambda leaf, count: list(leaf)))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    for name in shared:
        assert any(path.endswith(name) and np.any(leaf) for path, leaf in expected.items()), name
