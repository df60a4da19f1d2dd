"""Rotary positions: the frequencies of transformers in the old words and the new, and what a turn is."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jaxft import models
from jaxft.models.layers import rotary

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS = {
    "default": {},
    "old theta": {"rope_theta": 500000},
    "old linear": {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.5}},
    "llama3": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "new llama3": {
        "rope_theta": 7.0,  # the new words win
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "original_max_position_embeddings": 8192,
            **LLAMA3,
        },
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_are_those_of_transformers(name):
    raw = {"max_position_embeddings": 16384, **CONFIGS[name]}
    theirs = transformers.LlamaConfig(**copy.deepcopy(raw))
    ours = models.FAMILIES["llama"].config.from_hf(raw)
    assert ours.rope_parameters == theirs.rope_parameters
    found = rotary.frequencies(ours.rope_parameters, ours.head_dim)
    np.testing.assert_allclose(found, LlamaRotaryEmbedding(theirs).inv_freq, rtol=4e-7)


def test_a_product_of_turned_heads_depends_on_the_distance_alone():
    turns = rotary.frequencies({"rope_type": "default", "rope_theta": 100.0}, 6)
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 6)).astype(np.float32)

    def product(at: int, other: int) -> float:
        turned = [
            rotary.rotate(jnp.asarray(x), rotary.table(jnp.array([[p]]), turns))
            for x, p in ((query, at), (key, other))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(0, 0) == pytest.approx(float((query * key).sum()), abs=1e-6)
    assert product(9, 4) == pytest.approx(product(5, 0), abs=1e-5)
    assert abs(product(9, 4) - product(4, 9)) > 1e-2


def test_a_turn_is_rounded_to_the_dtype_only_at_the_end():
    turns = rotary.frequencies({"rope_type": "default", "rope_theta": 100.0}, 6)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 1, 6)), jnp.bfloat16)
    table = rotary.table(jnp.array([[300, 301]]), turns)
    assert table[0].dtype == jnp.float32
    found, exact = rotary.rotate(x, table), rotary.rotate(x.astype(jnp.float32), table)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16), strict=True)
