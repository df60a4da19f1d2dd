"""Checkpoint files in and out: what is refused, what is copied, what survives, at what memory."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from jaxft import models
from jaxft.models import config_json, hf, names, tensors

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "torch_dtype": "float16",
    "num_labels": 2,
}
ID2LABEL = {0: "no", 1: "yes"}


def checkpoint(directory: Path, dtype: str = "F32", **config: Any) -> dict[str, np.ndarray]:
    """Writes a tiny BERT with two labels; returns its tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    architecture = models.load_architecture(str(directory), num_labels=2)
    rng = np.random.default_rng(0)
    found = {}
    for path, leaf in models.flatten(architecture.abstract).items():
        name, axes = names.stored(path, leaf.ndim)
        shape = names.to_stored(leaf.shape, axes)
        found[name] = rng.normal(size=shape).astype(tensors.DTYPES[dtype])
    save(directory, found, dtype)
    return found


def save(directory: Path, found: dict[str, np.ndarray], dtype: str = "F32") -> None:
    pending = {n: tensors.Pending(x.shape, dtype, partial(np.copy, x)) for n, x in found.items()}
    tensors.write(str(directory / tensors.SINGLE), pending)


def read(directory: Path, num_labels: int = 2, **options: Any) -> tuple[Any, Any, Any]:
    architecture = models.load_architecture(str(directory), num_labels=num_labels)
    key = jax.random.key(0)
    return architecture, *hf.read_params(str(directory), architecture, key=key, **options)


def write(
    output: Path, architecture: Any, params: Any, source: Path | None = None, **kw: Any
) -> None:
    options = {"id2label": ID2LABEL, "unchanged": (), **kw}
    source_name = None if source is None else str(source)
    hf.write_checkpoint(str(output), architecture, params, source=source_name, **options)


def test_every_misfit_is_listed_at_once(tmp_path):
    found = checkpoint(tmp_path)
    del found["bert.embeddings.LayerNorm.bias"], found["bert.encoder.layer.1.output.dense.weight"]
    found["bert.encoder.layer.7.output.dense.weight"] = np.zeros((2, 2), np.float32)
    found["adapter.down.weight"] = np.zeros(3, np.float32)
    found["bert.encoder.layer.0.intermediate.dense.weight"] = np.zeros((16, 24), np.float32)
    found["classifier.weight"] = np.zeros((2, 17), np.float32)
    save(tmp_path, found)
    with pytest.raises(ValueError) as error:
        read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} is no BertForSequenceClassification: "
        "2 missing: bert.embeddings.LayerNorm.bias, bert.encoder.layer.1.output.dense.weight; "
        "2 unexpected: adapter.down.weight, bert.encoder.layer.7.output.dense.weight; "
        "2 misshapen: bert.encoder.layer.0.intermediate.dense.weight is [16, 24], "
        "expected [24, 16], classifier.weight is [2, 17], expected [2, 16]"
    )


def test_half_a_head_is_missing_not_new(tmp_path):
    found = checkpoint(tmp_path)
    del found["classifier.bias"]
    save(tmp_path, found)
    with pytest.raises(ValueError, match="1 missing: classifier.bias"):
        read(tmp_path)


def test_integer_weights_are_refused(tmp_path):
    found = checkpoint(tmp_path)
    from safetensors.numpy import save_file

    found["classifier.bias"] = np.zeros(2, np.int64)
    save_file(found, tmp_path / tensors.SINGLE)
    with pytest.raises(
        ValueError, match="1 misshapen: classifier.bias is I64, expected one of F64"
    ):
        read(tmp_path)


@pytest.mark.parametrize("pooler", [True, False])
def test_an_old_masked_language_model_loads(pooler, tmp_path):
    """gamma and beta for the norms, no prefix, other heads, a buffer: all of it is reported."""
    found = checkpoint(tmp_path)
    old = {}
    for name, value in found.items():
        if name.startswith("classifier") or (not pooler and "pooler" in name):
            continue
        name = name.removeprefix("bert.")
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    old["cls.predictions.bias"] = np.zeros(40, np.float32)
    old["embeddings.position_ids"] = np.zeros((1, 12), np.float32)
    save(tmp_path, old)
    _, params, report = read(tmp_path)
    assert set(report.dropped) == {"cls.predictions.bias", "embeddings.position_ids"}
    assert len(report.renamed) == 10
    assert ("embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight") in report.renamed
    head = {"classifier/kernel", "classifier/bias"}
    if not pooler:
        head |= {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"}
    assert set(report.initialised) == head
    norm = params["bert"]["encoder"]["layer"][1]["output"]["LayerNorm"]
    np.testing.assert_array_equal(
        norm["scale"], found["bert.encoder.layer.1.output.LayerNorm.weight"]
    )
    np.testing.assert_array_equal(norm["bias"], found["bert.encoder.layer.1.output.LayerNorm.bias"])


def test_a_new_head_depends_on_the_key_alone(tmp_path):
    checkpoint(tmp_path)
    architecture = models.load_architecture(str(tmp_path), num_labels=5)
    heads = [
        hf.read_params(str(tmp_path), architecture, key=jax.random.key(seed))[0]["classifier"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(heads[0]["kernel"], heads[1]["kernel"])
    assert np.abs(heads[0]["kernel"] - heads[2]["kernel"]).min() > 0


def test_a_fitting_classifier_for_other_labels_is_replaced_if_asked(tmp_path):
    found = checkpoint(tmp_path)
    _, kept, report = read(tmp_path)
    np.testing.assert_array_equal(kept["classifier"]["bias"], found["classifier.bias"])
    assert report == names.ReadReport()
    architecture = models.load_architecture(str(tmp_path), num_labels=2, new_head=True)
    params, report = hf.read_params(str(tmp_path), architecture, key=jax.random.key(0))
    assert not np.asarray(params["classifier"]["bias"]).any()
    assert set(report.initialised) == {"classifier/kernel", "classifier/bias"}
    assert set(report.dropped) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("cut", [0, 5, 200, -1])
def test_a_truncated_file_is_one_line(cut, tmp_path):
    checkpoint(tmp_path)
    file = tmp_path / tensors.SINGLE
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match="is no complete safetensors file") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_garbage_is_one_line(tmp_path):
    checkpoint(tmp_path)
    (tmp_path / tensors.SINGLE).write_bytes(b"\xff" * 4096)
    with pytest.raises(ValueError, match="is no complete safetensors file"):
        read(tmp_path)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        models.load_architecture(str(tmp_path), num_labels=2)
    checkpoint(tmp_path)
    (tmp_path / tensors.SINGLE).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no model.safetensors; pytorch_model.bin must be saved"):
        read(tmp_path)
    (tmp_path / tensors.INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match="lacks model-1.safetensors, which"):
        read(tmp_path)
    (tmp_path / tensors.INDEX).write_text("{}")
    with pytest.raises(ValueError, match="is no index of safetensors files"):
        read(tmp_path)


def test_a_broken_config_is_one_line(tmp_path):
    for text, message in (("{", "cannot be read as JSON"), ("[]", "must hold a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            config_json.load(str(tmp_path))


def test_an_unknown_family_names_the_nearest(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "berd"}')
    with pytest.raises(ValueError, match=r"'berd' is not implemented.*did you mean 'bert'\?"):
        models.load_architecture(str(tmp_path), num_labels=2)


def test_resolve(tmp_path):
    assert hf.resolve(str(tmp_path)) == str(tmp_path)
    for name, message in (
        ("./no/such/dir", "not of the form of a hub id"),
        ("nobody/no-such-model", "the hub is out of reach"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            hf.resolve(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_what_was_frozen_is_byte_identical_in_the_export(dtype, tmp_path):
    found = checkpoint(tmp_path / "in", dtype)
    (tmp_path / "in" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (tmp_path / "in" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "in" / "notes.txt").write_text("mine")
    architecture, params, _ = read(tmp_path / "in")
    frozen = {path for path, depth in architecture.depths.items() if depth < 2}
    # A frozen tensor is copied, not converted back: what is in params for it must not matter.
    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    write(tmp_path / "out", architecture, moved, tmp_path / "in", unchanged=frozen)
    exported = load_file(tmp_path / "out" / tensors.SINGLE)
    assert set(exported) == set(found)
    for path, leaf in models.flatten(moved).items():
        name, axes = names.stored(path, leaf.ndim)
        if path in frozen:
            assert exported[name].dtype == found[name].dtype
            assert exported[name].tobytes() == found[name].tobytes()
        else:
            assert exported[name].dtype == np.float32
            np.testing.assert_array_equal(exported[name].transpose(axes), leaf)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32" and "torch_dtype" not in config
    assert config["id2label"] == {"0": "no", "1": "yes"} and config["label2id"] == {
        "no": 0,
        "yes": 1,
    }
    assert config["vocab_size"] == CONFIG["vocab_size"] and "num_labels" not in config
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    ]


def test_an_export_of_nothing_trained_keeps_the_dtype(tmp_path):
    checkpoint(tmp_path / "in", "F16")
    architecture, params, _ = read(tmp_path / "in")
    write(tmp_path / "out", architecture, params, tmp_path / "in", unchanged=architecture.depths)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("max_bytes", [1, 2000, 10**6])
def test_shards_are_bounded_and_read_back_equal(max_bytes, tmp_path):
    checkpoint(tmp_path / "in")
    architecture, params, _ = read(tmp_path / "in")
    write(tmp_path / "out", architecture, params, max_shard_bytes=max_bytes)
    files = list((tmp_path / "out").glob("*.safetensors"))
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert max(sum(x.nbytes for x in load_file(file).values()) for file in files) <= max(
        max_bytes, largest
    )
    assert (len(files) == 1) == (max_bytes == 10**6)
    _, again, report = read(tmp_path / "out")
    assert report == names.ReadReport()
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_failed_export_leaves_the_old_one(tmp_path):
    checkpoint(tmp_path / "in")
    architecture, params, _ = read(tmp_path / "in")
    write(tmp_path / "out", architecture, params)
    before = (tmp_path / "out" / tensors.SINGLE).read_bytes()

    class Unreadable:
        shape, ndim = (2,), 1

        def __array__(self, *_, **__):
            raise OSError("no space left on device")

    broken = {**params, "classifier": {**params["classifier"], "bias": Unreadable()}}
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path / "out", architecture, broken)
    assert (tmp_path / "out" / tensors.SINGLE).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    # What a killed process left behind is in nobody's way.
    (tmp_path / "out.writing").mkdir()
    write(tmp_path / "out", architecture, jax.tree.map(lambda leaf: leaf + 1, params))
    assert (tmp_path / "out" / tensors.SINGLE).read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_an_export_never_deletes_what_is_no_checkpoint(tmp_path):
    checkpoint(tmp_path / "in")
    architecture, params, _ = read(tmp_path / "in")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match="holds 'thesis.tex'"):
        write(tmp_path / "home", architecture, params)
    with pytest.raises(ValueError, match="being read"):
        write(tmp_path / "in", architecture, params, tmp_path / "in")
    assert (tmp_path / "home" / "thesis.tex").exists() and (tmp_path / "in").exists()


def test_fingerprint_sees_a_changed_weight_and_a_changed_shape(tmp_path):
    found = checkpoint(tmp_path)
    before = hf.fingerprint(str(tmp_path))
    assert before == hf.fingerprint(str(tmp_path))
    found["classifier.bias"][1] += 1
    save(tmp_path, found)
    changed = hf.fingerprint(str(tmp_path))
    found["classifier.bias"] = found["classifier.bias"].reshape(1, 2)
    save(tmp_path, found)
    assert len({before, changed, hf.fingerprint(str(tmp_path))}) == 3


def test_a_leaf_is_read_in_pieces_straight_to_its_devices(tmp_path, monkeypatch):
    checkpoint(tmp_path)
    architecture, whole, _ = read(tmp_path)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("data", "tensor"))
    spec = PartitionSpec("tensor")

    def sharding(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec if leaf.shape[0] % 4 == 0 else PartitionSpec())

    sizes = []
    original = tensors.read

    def spy(entry: Any, name: str, index: Any = None) -> np.ndarray:
        sizes.append((name, original(entry, name, index).size))
        return original(entry, name, index)

    monkeypatch.setattr(tensors, "read", spy)
    _, params, _ = read(tmp_path, shardings=jax.tree.map(sharding, architecture.abstract))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    kernel = params["bert"]["encoder"]["layer"][0]["intermediate"]["dense"]["kernel"]
    assert kernel.sharding.spec == spec and kernel.addressable_data(0).shape == (4, 24)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert {size for read_name, size in sizes if read_name == name} == {16 * 24 // 4}


MEMORY = """
import sys, jax
from jaxft import models
from jaxft.models import hf

def mebibytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024

architecture = models.load_architecture(sys.argv[1], num_labels=2)
jax.block_until_ready(jax.numpy.zeros(3))
start = mebibytes("VmHWM:")
params, _ = hf.read_params(sys.argv[1], architecture, key=jax.random.key(0))
read = mebibytes("VmHWM:")
hf.write_checkpoint(
    sys.argv[2], architecture, params, id2label={0: "a", 1: "b"}, source=sys.argv[1],
    unchanged=[path for path, depth in architecture.depths.items() if depth < 9],
)
size = sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20
print(size, read - start, mebibytes("VmHWM:") - read)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_model_is_never_in_memory_twice(tmp_path):
    """By the growth of the peak resident memory: malloc keeps up to 0.4 of the size for itself."""
    checkpoint(tmp_path / "in", hidden_size=512, intermediate_size=1024, num_hidden_layers=12)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "in"), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    size, reading, writing = map(float, run.stdout.split())
    assert size > 90
    assert reading < 1.6 * size and writing < 0.3 * size
