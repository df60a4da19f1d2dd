"""Checkpoints in: what is refused, what is read, and at what memory. Out: test_models_export.py."""

import dataclasses
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
from safetensors.numpy import load_file, save_file

from jaxft import models
from jaxft.models import hf
from jaxft.models.checkpoint import config_json, names, tensors

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
# As the first versions of jaxft wrote it into source.json.
FINGERPRINT = "225d7220d2c35522126ac31bd9c3d94f92048cbc2516bd732b00ab9dd0797312"


def checkpoint(directory: Path, dtype: str = "F32", **config: Any) -> dict[str, np.ndarray]:
    """Writes a tiny BERT with two labels; returns its tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    architecture = models.load_architecture(str(directory), num_labels=2)
    rng = np.random.default_rng(0)
    found = {}
    for path, leaf in models.by_path(architecture.abstract).items():
        stored = architecture.stored[path]
        shape = stored.reordered(leaf.shape)
        found[stored.name] = rng.normal(size=shape).astype(tensors.DTYPES[dtype])
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


def tied(directory: Path) -> Any:
    """The architecture, had its word embeddings two names."""
    architecture = models.load_architecture(str(directory), num_labels=2)
    path = "bert/embeddings/word_embeddings/embedding"
    stored = dataclasses.replace(architecture.stored[path], ties=("shared.weight",))
    return dataclasses.replace(architecture, stored={**architecture.stored, path: stored})


def test_a_tied_tensor_is_read_under_any_of_its_names_and_written_once(tmp_path):
    found, key = checkpoint(tmp_path), jax.random.key(0)
    architecture, name = tied(tmp_path), "bert.embeddings.word_embeddings.weight"
    once, _ = hf.read_params(str(tmp_path), architecture, key=key)
    table = found[name]
    others = {other: x for other, x in found.items() if other != name}
    for given in ({name: table, "shared.weight": table}, {"shared.weight": table}):
        save(tmp_path, {**others, **given})
        again, report = hf.read_params(str(tmp_path), architecture, key=key)
        jax.tree.map(np.testing.assert_array_equal, again, once)
        assert report == names.ReadReport()
        write(tmp_path / "out", architecture, again, tmp_path, unchanged=architecture.depths)
        assert tensors.entries(str(tmp_path / "out")).keys() == found.keys()


@pytest.mark.parametrize("change", ["value", "shape"])
def test_tied_tensors_that_differ_are_one_line(change, tmp_path):
    found = checkpoint(tmp_path)
    table = found["bert.embeddings.word_embeddings.weight"]
    other = table[:-1] if change == "shape" else np.where(np.arange(len(table))[:, None], table, 0)
    save(tmp_path, {**found, "shared.weight": other})
    with pytest.raises(ValueError, match="are one tensor in this model, but differ") as error:
        hf.read_params(str(tmp_path), tied(tmp_path), key=jax.random.key(0))
    assert "\n" not in str(error.value)


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


def test_nothing_is_read_of_what_is_not_asked_for(tmp_path, monkeypatch):
    checkpoint(tmp_path)
    names, plain = [], tensors.read

    def noted(entry, name, index=None):
        names.append(name)
        return plain(entry, name, index)

    monkeypatch.setattr(tensors, "read", noted)
    architecture, params, _ = read(tmp_path, only={"classifier/kernel"})
    assert names == ["classifier.weight"]
    for path, leaf in models.by_path(params).items():
        assert isinstance(leaf, jax.Array) == (path == "classifier/kernel")
        assert leaf.shape == models.by_path(architecture.whole)[path].shape


def test_what_a_config_leaves_out_is_there_with_its_default(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": 24}')
    raw = models.load_architecture(str(tmp_path), num_labels=2).hf_config
    assert (raw["image_size"], raw["hidden_size"], raw["model_type"]) == (224, 24, "vit")


def test_what_would_be_initialised_is_known_without_reading_a_tensor(tmp_path, monkeypatch):
    found = checkpoint(tmp_path)
    for name in [name for name in found if "pooler" in name]:
        del found[name]
    save(tmp_path, found)
    architecture, _, report = read(tmp_path)

    def refused(*_: Any) -> None:
        raise AssertionError("a tensor is read")

    monkeypatch.setattr(tensors, "read", refused)
    missing = hf.missing(str(tmp_path), architecture)
    assert set(missing) == {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"}
    assert missing == report.initialised
    found["classifier.bias"] = np.zeros(7, np.float32)
    save(tmp_path, found)
    with pytest.raises(ValueError, match=r"1 misshapen: classifier.bias is \[7\], expected \[2\]"):
        hf.missing(str(tmp_path), architecture)
    (tmp_path / tensors.SINGLE).unlink()
    with pytest.raises(ValueError, match="has no model.safetensors"):
        hf.missing(str(tmp_path), architecture)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    found = checkpoint(tmp_path)
    (tmp_path / tensors.SINGLE).unlink()
    for file in ("a.safetensors", "b.safetensors"):
        save_file(found, tmp_path / file)
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}}
    (tmp_path / tensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="b.safetensors holds 'bert.*', as does .*a.safetensors"):
        read(tmp_path)


def test_two_tensors_for_one_parameter_are_refused(tmp_path):
    found = checkpoint(tmp_path)
    found["embeddings.LayerNorm.gamma"] = found["bert.embeddings.LayerNorm.weight"]
    save(tmp_path, found)
    with pytest.raises(
        ValueError, match="1 unexpected: embeddings.LayerNorm.gamma|1 unexpected: bert"
    ):
        read(tmp_path)


def test_a_directory_whose_name_is_no_utf8_works(tmp_path):
    directory = tmp_path / os.fsdecode(b"caf\xe9")
    checkpoint(directory)
    assert hf.resolve(str(directory)) == str(directory)
    architecture, params, _ = read(directory)
    assert hf.fingerprints(str(directory))["weights"]
    output = tmp_path / os.fsdecode(b"th\xe9")
    write(output, architecture, params, directory, unchanged=architecture.depths)
    assert load_file(output / tensors.SINGLE).keys() == load_file(directory / tensors.SINGLE).keys()


def test_fingerprints_say_which_part_changed(tmp_path):
    checkpoint(tmp_path)
    before = hf.fingerprints(str(tmp_path))
    assert before["preprocessor_config.json"] == before["tokenizer"] == ""
    assert before["weights"] == hf.fingerprint(str(tmp_path))
    weights = (tmp_path / tensors.SINGLE).read_bytes()
    for file, part, text in (
        ("config.json", "config.json", json.dumps({**CONFIG, "hidden_act": "relu"})),
        ("preprocessor_config.json", "preprocessor_config.json", "{}"),
        ("preprocessor_config.json", "preprocessor_config.json", '{"do_resize": false}'),
        ("vocab.txt", "tokenizer", "a"),
        ("tokenizer.json", "tokenizer", "a"),
        ("special_tokens_map.json", "tokenizer", "{}"),
        (tensors.SINGLE, "weights", weights[:-1] + bytes([weights[-1] ^ 1])),
    ):
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
        after = hf.fingerprints(str(tmp_path))
        assert {name for name in before if before[name] != after[name]} == {part}
        before = after
    assert len(set(before.values())) == len(before) == 4
    (tmp_path / tensors.SINGLE).unlink()  # as from scratch
    assert hf.fingerprints(str(tmp_path), weights=False) == {**before, "weights": ""}


def test_the_fingerprint_of_weights_is_that_of_runs_that_have_begun(tmp_path):
    header = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + b"abcd"
    (tmp_path / tensors.SINGLE).write_bytes(data)
    assert hf.fingerprint(str(tmp_path)) == FINGERPRINT


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
