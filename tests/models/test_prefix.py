"""A forward pass that goes on from what is kept of its first blocks: the same outputs, fewer products."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import Pass
from jaxft.models.prefix import forward, hidden_after, prefix_of
from tests.hlo import count_matmuls
from tests.models import native_rows, test_native, test_parity

# Texts are with whole runs in experiment/test_prefix_cache.py; the other families and heads are slow.
FAST = ("vit",)
NAMES = tuple(dict.fromkeys((*test_parity.FAMILY_ROWS, *native_rows.ROWS)))
every_model = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in NAMES]
)
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def loaded(name: str, folder: Path) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """(architecture, parameters, batch)."""
    if name in test_parity.FAMILY_ROWS:
        row: Any = test_parity.FAMILY_ROWS[name]
        row.with_head(row.config).save_pretrained(folder)
        architecture, params, _ = test_parity.load(folder)
        return architecture, params, test_parity.batches(name)[0]
    own = native_rows.ROWS[name]
    own.save(test_native.torch_model(own), folder)
    architecture, params = test_native.load(folder, own)
    return architecture, params, own.inputs(np.random.default_rng(0))[0]


def outputs(found: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(found)]


@every_model
def test_what_is_kept_gives_the_outputs_and_leaves_the_products_of_the_prefix_out(name, tmp_path):
    architecture, params, batch = loaded(name, tmp_path)
    run = compiled(lambda params, batch: forward(architecture, params, batch))
    whole, products = outputs(run(params, batch)), count(run, params, batch)
    for depth in range(architecture.num_blocks + 1):
        prefix = prefix_of(architecture, batch, depth, jnp.float32)
        first = compiled(lambda p, b, d=prefix.depth: hidden_after(architecture, p, b, d))
        hidden = first(params, batch)
        assert hidden.dtype == prefix.dtype and hidden.shape[-len(prefix.unit) :] == prefix.unit
        given = {n: x for n, x in batch.items() if n != "pixel_values"} | {prefix.name: hidden}
        for found, expected in zip(outputs(run(params, given)), whole, strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
        assert count(run, params, given) == products - count(first, params, batch), depth
        if depth == architecture.num_blocks:
            assert prefix.depth == depth  # the head needs nothing but what it reads


def count(run: Any, *given: Any) -> int:
    return count_matmuls(run.lower(*given).compile())


def test_an_encoders_states_are_kept_up_to_its_end_or_all_of_the_model(tmp_path):
    architecture, _, batch = loaded("t5", tmp_path)
    depths = [
        prefix_of(architecture, batch, d, jnp.float32) for d in range(architecture.num_blocks + 1)
    ]
    encoder = architecture.num_blocks // 2
    inside = [*range(encoder + 1), *[encoder] * (architecture.num_blocks - encoder - 1)]
    assert [one.depth for one in depths] == [*inside, architecture.num_blocks]
    assert {one.space for one in depths[:-1]} == {"tokens"} != {depths[-1].space}


@pytest.mark.slow
def test_above_the_boundary_dropout_and_dtype_are_as_without_it(tmp_path):
    architecture, params, batch = loaded("bert", tmp_path)
    architecture = test_parity.load(tmp_path, dropout=0.3)[0]
    key, how = jax.random.key(1), Pass(frozen_blocks=1, dtype=jnp.bfloat16)
    prefix = prefix_of(architecture, batch, 1, jnp.bfloat16)
    hidden = hidden_after(architecture, params, batch, 1, how)
    assert hidden.dtype == prefix.dtype == jnp.bfloat16
    given = {**batch, prefix.name: hidden}
    # Operation by operation, so bitwise.
    whole = architecture.apply(params, batch, key, how)["logits"]
    np.testing.assert_array_equal(forward(architecture, params, given, key, how)["logits"], whole)
    assert np.abs(architecture.apply(params, batch, None, how)["logits"] - whole).max() > 1e-3
    with pytest.raises(AssertionError):  # its first block would have dropout
        forward(architecture, params, given, key)
