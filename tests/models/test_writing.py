"""An export is written as the parameters come: the files are those of the library, and one tensor is held."""

from __future__ import annotations

import json
import tracemalloc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from jaxft import models
from jaxft.models import hf
from jaxft.models.checkpoint import tensors
from jaxft.training.mesh import make_parallel
from tests import tiny

ID2LABEL = {0: "no", 1: "yes"}


def pending(arrays: dict[str, np.ndarray]) -> dict[str, tensors.Pending]:
    names = {dtype: name for name, dtype in tensors.DTYPES.items()}
    return {
        name: tensors.Pending(x.shape, names[x.dtype], partial(np.copy, x))
        for name, x in arrays.items()
    }


def header(file: Path) -> tuple[list[tuple[str, Any]], bytes]:
    """The entries in their order, those of the metadata sorted; and the bytes after the header."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    found = json.loads(data[8 : 8 + length])
    return [(name, sorted(entry.items())) for name, entry in found.items()], data[8 + length :]


def test_a_file_is_the_one_that_the_library_writes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "b.weight": rng.normal(size=(5, 3)).astype(np.float32),
        "a.weight": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "z.half": rng.normal(size=7).astype(ml_dtypes.bfloat16),
        "m.count": np.asarray(2**40 + 1, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    tensors.write(str(tmp_path / "ours"), pending(arrays))
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt", "writer": "jaxft"})
    assert header(tmp_path / "ours") == header(tmp_path / "theirs")
    again = load_file(tmp_path / "ours")
    assert again.keys() == arrays.keys()
    for name, x in arrays.items():
        assert again[name].dtype == x.dtype and np.array_equal(again[name], x), name


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_transposed_tensor_is_written_in_parts_in_any_dtype(dtype, tmp_path):
    """Of some more bytes than are converted at a time."""
    x = np.random.default_rng(0).normal(size=(2050, 4300)).astype(np.float32)
    tensor = tensors.Pending(x.T.shape, dtype, lambda: x.T)
    tensors.write(str(tmp_path / "file"), {"x": tensor})
    assert np.array_equal(load_file(tmp_path / "file")["x"], x.T.astype(tensors.DTYPES[dtype]))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_value_that_the_dtype_cannot_hold_is_named_wherever_it_is(axis, tmp_path):
    x = np.zeros((4300, 2050), np.float32)
    x[-1, -1] = 7e4
    x[0, 0] = np.inf  # is one in any dtype
    tensor = tensors.Pending(x.shape, "F16", lambda: x)
    with pytest.raises(ValueError, match=r"head\.weight has values up to 7e\+04, which float16"):
        tensors.write(str(tmp_path / "file"), {"head.weight": tensor})


class Host:
    """Makes arrays of parameters, as a gathering does, and counts what is held of them."""

    def __init__(self) -> None:
        self.held, self.most, self.order = 0, 0, list[int]()

    def __call__(self, given: np.ndarray) -> np.ndarray:
        made = given.copy()
        self.held += made.nbytes
        self.most = max(self.most, self.held)
        self.order.append(id(given))
        weakref.finalize(made, self._gone, made.nbytes)
        return made

    def _gone(self, size: int) -> None:
        self.held -= size


@pytest.mark.parametrize("shard", [2 * 10**4, 10**9])
@pytest.mark.parametrize("dtype", ["", "BF16"])
def test_one_parameter_is_held_at_a_time_and_all_processes_gather_in_one_order(
    shard, dtype, tmp_path
):
    source = tiny.bert(tmp_path / "source", blocks=3, width=32)
    architecture = models.load_architecture(source, num_labels=2)
    whole, _ = hf.read_params(source, architecture, key=jax.random.key(0))
    whole = jax.tree.map(np.asarray, whole)
    frozen = [path for path, depth in architecture.depths.items() if depth < 2]
    options: dict[str, Any] = {
        "source": source, "unchanged": frozen, "max_shard_bytes": shard, "dtype": dtype,
    }  # fmt: skip
    plain, writer, other = tmp_path / "plain", Host(), Host()
    hf.write_checkpoint(str(plain), architecture, whole, id2label=ID2LABEL, **options)
    hf.write_checkpoint(
        str(tmp_path / "out"), architecture, whole, id2label=ID2LABEL, fetch=writer, **options
    )
    hf.join_writing(architecture, whole, fetch=other, **options)
    files = sorted(path.name for path in plain.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert (sum(name.endswith(".safetensors") for name in files) > 3) == (shard < 10**9)
    for name in files:
        assert (plain / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    leaves = models.by_path(whole)
    fetched = {path for path, x in leaves.items() if id(x) in writer.order}
    # What is copied from the source's files is gathered by nobody.
    assert fetched == (leaves.keys() if dtype else leaves.keys() - set(frozen))
    assert writer.order == other.order and len(writer.order) == len(fetched)
    assert writer.held == other.held == 0
    largest = max(leaves[path].nbytes for path in fetched)
    assert writer.most == other.most == largest
    assert largest < sum(x.nbytes for x in leaves.values()) / 10


@pytest.mark.parametrize("mode", ["jit", "shard", "pmap"])
def test_a_parameter_that_is_read_leaves_no_copy_on_the_host(mode):
    """By what numpy allocates. JAX keeps what is read of an array that is cut as long as the array lives."""
    parallel = make_parallel(mode, fsdp=8 if mode == "shard" else 1)
    given = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    place = parallel.shardings(PartitionSpec("fsdp"))
    x = parallel.replicate(jax.device_put(given, place))
    tracemalloc.start()
    found = np.asarray(parallel.whole(x))
    assert found.shape == given.shape and np.array_equal(found, given)
    del found
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < given.nbytes / 2 and most < 2 * given.nbytes, (kept, most)
