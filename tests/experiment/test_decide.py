"""What is said of a config's rules for single parameters."""

from __future__ import annotations

import json

import pytest
from jax.sharding import PartitionSpec

from jaxft.config import default_config, override
from jaxft.experiment.decide import decide
from jaxft.experiment.length import Length
from jaxft.models import cuts, load_architecture

LENGTH = Length(steps=100, epoch=10)
SIZES = {"hidden_size": 8, "num_attention_heads": 8, "intermediate_size": 8, "vocab_size": 16}


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    """A BERT of twelve blocks; decisions need no weights."""
    folder = tmp_path_factory.mktemp("bert")
    text = json.dumps({"model_type": "bert", "num_hidden_layers": 12, **SIZES})
    (folder / "config.json").write_text(text)
    return load_architecture(str(folder), num_labels=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frozen", ("bert.encoder.layer.1.*",)),
        ("lr_mult", ((".*/layer/1.*", 0.5),)),
        ("groups", ((".*/layer/1.*", {"lr": 1e-5}),)),
    ],
)
def test_a_block_number_that_also_matches_longer_ones_is_said(architecture, field, value):
    config = default_config()
    config.optim[field] = value
    (warning,) = decide(config, architecture, LENGTH).warnings
    assert warning.startswith(f"optim.{field} ") and "layer" in warning and "1/.*'" in warning


def test_a_block_number_alone_is_not(architecture):
    config = default_config()
    config.optim.frozen = (
        ".*/layer/1/.*",
        ".*/layer/(2|3)/.*",
        ".*/layer/9.*",
        ".*/layer/1[01]/.*",
    )
    assert decide(config, architecture, LENGTH).warnings == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data.train": "a.csv", "data.eval": "./a.csv", "data.test": "b.csv"}, ["data.eval="]),
        ({"data.mixture": (("a.csv", 1), ("b.csv", 1)), "data.test": "b.csv"}, ["data.test="]),
        ({"data.train": "a.csv", "data.eval": "b.csv", "data.test": "b.csv"}, ["data.test="]),
        ({"data.train": "a.csv[:80%]", "data.eval": "a.csv[80%:]"}, []),
        ({"data.train": "a.csv"}, []),
    ],
)
def test_data_that_is_learned_from_and_evaluated_is_said(architecture, fields, said):
    warnings = decide(override(default_config(), fields), architecture, LENGTH).warnings
    assert [w for w in warnings if w.startswith("data.")] == list(warnings)
    assert [w.partition("=")[0] + "=" for w in warnings] == said


def test_where_a_parameter_lives_is_decided_without_a_device(architecture, monkeypatch):
    """Larger meshes than this machine has: rules over tensor first, then the largest free dimension."""
    monkeypatch.setattr(cuts, "MIN_FSDP_SIZE", 64)
    config = override(default_config(), {"parallel.fsdp": 4, "parallel.tensor": 8})
    placements = decide(config, architecture, LENGTH).placements
    block = "bert/encoder/layer/3"
    assert placements[f"{block}/attention/self/query/kernel"] == PartitionSpec("fsdp", "tensor")
    assert placements[f"{block}/attention/self/query/bias"] == PartitionSpec("tensor")
    assert placements[f"{block}/output/LayerNorm/scale"] == PartitionSpec(None)
    assert placements["classifier/kernel"] == PartitionSpec(None, None)  # 8 x 2 is small
    table = placements["bert/embeddings/word_embeddings/embedding"]
    assert table == PartitionSpec("tensor", "fsdp")  # rows of the vocabulary, and columns
    whole = decide(default_config(), architecture, LENGTH).placements
    assert not any(axis for spec in whole.values() for axis in spec)


def test_what_the_tensor_axis_does_not_divide_is_whole_and_said(architecture):
    config = override(default_config(), {"parallel.tensor": 16})
    found = decide(config, architecture, LENGTH)
    key = "bert/encoder/layer/0/attention/self/key/kernel"
    (said,) = (text for text in found.warnings if "parallel.tensor" in text)
    assert said.startswith(
        "parallel.tensor=16 does not divide the heads or rows of bert/encoder/layer/0/"
    )
    assert said.endswith("whole on each of these devices; 8 does")
    assert found.placements[key] == PartitionSpec(None, None)
