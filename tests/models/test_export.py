"""Checkpoints out: what is copied, what is written, and what is never deleted for it."""

import errno
import json
import os
import resource

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import models
from jaxft.models.checkpoint import names, tensors
from tests.models.test_hf import CONFIG, checkpoint, read, write


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
    for path, leaf in models.by_path(moved).items():
        name, axes = architecture.stored[path].name, architecture.stored[path].axes
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
    write(tmp_path / "out", architecture, jax.tree.map(lambda leaf: leaf + 1, params))
    assert (tmp_path / "out" / tensors.SINGLE).read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_full_disk_leaves_the_old_export_and_names_the_new_one(tmp_path):
    """Here a limit on the size of files: the error comes from `write`, which knows no name."""
    checkpoint(tmp_path / "in")
    architecture, params, _ = read(tmp_path / "in")
    write(tmp_path / "out", architecture, params)
    before = (tmp_path / "out" / tensors.SINGLE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            write(tmp_path / "out", architecture, params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG and error.value.filename == str(tmp_path / "out")
    assert (tmp_path / "out" / tensors.SINGLE).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_parent_that_is_a_file_is_named(tmp_path):
    checkpoint(tmp_path / "in")
    architecture, params, _ = read(tmp_path / "in")
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error:
        write(tmp_path / "file" / "out", architecture, params)
    assert error.value.filename == str(tmp_path / "file")


def test_an_export_deletes_nothing_but_an_earlier_export(tmp_path):
    checkpoint(tmp_path / "in")
    architecture, params, _ = read(tmp_path / "in")
    output = tmp_path / "out"
    for name in ("out.old", "out.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("mine")
    write(output, architecture, params)
    write(output, architecture, params, max_shard_bytes=2000)
    write(output, architecture, params)
    for name in ("thesis.tex", "README.md", "other.safetensors", "merges.txt"):
        (output / name).mkdir() if name == "merges.txt" else (output / name).write_text("...")
        with pytest.raises(ValueError, match=f"holds '{name}'"):
            write(output, architecture, params)
        (output / name).rmdir() if name == "merges.txt" else (output / name).unlink()
    write(output, architecture, params)
    with pytest.raises(ValueError, match="being read"):
        write(tmp_path / "in", architecture, params, tmp_path / "in")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is no directory"):
        write(tmp_path / "file", architecture, params)
    assert {
        (tmp_path / name / "config.json").read_text() for name in ("out.old", "out.writing")
    } == {"mine"}
    assert len(os.listdir(tmp_path)) == 5 and len(os.listdir(output)) == 2


def test_a_checkpoint_that_jaxft_did_not_write_is_not_replaced(tmp_path):
    found = checkpoint(tmp_path / "in")
    architecture, params, _ = read(tmp_path / "in")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text(json.dumps(CONFIG))
    for _ in range(2):  # without weights, and with another writer's
        with pytest.raises(ValueError, match="did not write"):
            write(theirs, architecture, params)
        save_file(found, theirs / tensors.SINGLE, metadata={"format": "pt"})
    assert sorted(os.listdir(theirs)) == ["config.json", tensors.SINGLE]


def test_labels_are_exported_in_the_order_of_their_numbers(tmp_path):
    checkpoint(tmp_path / "in")
    architecture, params, _ = read(tmp_path / "in", num_labels=12)
    labels = {index: f"class {index}" for index in reversed(range(12))}
    write(tmp_path / "out", architecture, params, id2label=labels)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"]) == [str(index) for index in range(12)]
    assert list(config["label2id"].values()) == list(range(12))
