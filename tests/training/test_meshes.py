"""Twenty updates over eight devices are those of one device, and what the devices send is what they must."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxft.models import by_path, cuts
from jaxft.models.layers import slices
from jaxft.training.mesh import make_parallel
from tests import hlo
from tests.training import meshes

STEPS = 20
MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "tensor 2": {"tensor": 2},
    "tensor 4": {"tensor": 4},
    "tensor 8": {"tensor": 8},
    "data 2 fsdp 4": {"data": 2, "fsdp": 4},
    "fsdp 4 tensor 2": {"fsdp": 4, "tensor": 2},
    "data 2 fsdp 2 tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "context 8": {"context": 8},
    "data 2 context 4": {"data": 2, "context": 4},
    "fsdp 2 context 2 tensor 2": {"fsdp": 2, "context": 2, "tensor": 2},
    "pmap": None,
}
# The others are slow.
FAST = {("gpt2", 1, "data 2 fsdp 2 tensor 2"), ("bert", 1, "pmap")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """(model, frozen up to) -> its architecture, and what one device makes of it."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def of(model: str, below: int):
        head, config = meshes.MODELS[model]
        architecture = meshes.architecture_of(
            Path(folder / model), {"model_type": model, **config}, head
        )
        return architecture, meshes.updated(architecture, make_parallel("jit"), STEPS, below=below)

    return of


def cases():
    for model in meshes.MODELS:
        for below in (-1, 1):
            for name, sizes in MESHES.items():
                if model == "resnet" and sizes and sizes.get("tensor", 1) > 1:
                    continue  # which has no tensor axis
                marks = () if (model, below, name) in FAST else pytest.mark.slow
                part = "full" if below < 0 else "half"
                yield pytest.param(model, below, name, marks=marks, id=f"{model}-{part}-{name}")


@pytest.mark.parametrize(("model", "below", "name"), cases())
def test_twenty_updates_are_those_of_one_device(expected, monkeypatch, model, below, name):
    monkeypatch.setattr(cuts, "MIN_FSDP_SIZE", 64)  # the tiny model's matrices too
    monkeypatch.setattr(slices, "SPARED", 0)  # and its short rows are balanced
    architecture, one = expected(model, below)
    sizes = MESHES[name]
    parallel = make_parallel("pmap") if sizes is None else make_parallel("shard", **sizes)
    found = meshes.updated(architecture, parallel, STEPS, below=below)
    assert np.ptp(one.losses) > 1e-2  # it learns, or at least moves
    np.testing.assert_allclose(found.losses, one.losses, atol=1e-5, rtol=1e-5)
    for path, value in one.leaves.items():
        np.testing.assert_allclose(found.leaves[path], value, atol=1e-5, rtol=1e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("model", meshes.OTHERS)
def test_the_other_families_are_those_of_one_device_on_a_mixed_mesh(tmp_path, monkeypatch, model):
    monkeypatch.setattr(cuts, "MIN_FSDP_SIZE", 64)
    head, config = meshes.OTHERS[model]
    architecture = meshes.architecture_of(tmp_path, {"model_type": model, **config}, head)
    one = meshes.updated(architecture, make_parallel("jit"), 3)
    mixed = make_parallel("shard", data=2, fsdp=2, tensor=2)
    found = meshes.updated(architecture, mixed, 3)
    np.testing.assert_allclose(found.losses, one.losses, atol=1e-5, rtol=1e-5)
    for path, value in one.leaves.items():
        np.testing.assert_allclose(found.leaves[path], value, atol=1e-5, err_msg=path)


@pytest.fixture(scope="module")
def half_frozen(tmp_path_factory):
    """(architecture, collectives) of a BERT with one of two blocks frozen, over data 2 x fsdp 4."""
    head, config = meshes.MODELS["bert"]
    folder = tmp_path_factory.mktemp("bert")
    told_apart = {"model_type": "bert", **config, "vocab_size": 72, "max_position_embeddings": 24}
    architecture = meshes.architecture_of(folder, told_apart, head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "MIN_FSDP_SIZE", 64)
        parallel = make_parallel("shard", data=2, fsdp=4)
        state, step = meshes.program_of(architecture, parallel, below=1)
        batch = parallel.abstract_batch(meshes.batch_of(head, 0))
        compiled = step.traced_for((state,), batch).lower().compile()
    return architecture, hlo.collectives(compiled.as_text())


def test_each_kernel_is_gathered_once_and_no_table_of_words_is(half_frozen):
    architecture, collectives = half_frozen
    gathered = Counter(
        shape for one in collectives if one.kind == "all-gather" for shape in one.shapes
    )
    leaves = by_path(architecture.abstract)
    cut = [path for path, x in leaves.items() if x.size >= 64 and path.endswith("kernel")]
    kernels = Counter(hlo.shape_of(leaves[path]) for path in cut)
    assert {shape: gathered[shape] for shape in kernels} == kernels
    # A device has 32 tokens: the words that these are come from where they lie; 24 positions and 2 kinds
    # are gathered.
    tables = {
        path: gathered[hlo.shape_of(x)] for path, x in leaves.items() if path.endswith("embedding")
    }
    assert tables == {path: int("word" not in path) for path in tables} and len(tables) == 3


@pytest.mark.parametrize("model", ["bert", pytest.param("t5", marks=pytest.mark.slow)])
def test_rows_that_are_cut_are_whole_nowhere_and_gradients_summed_once(tmp_path, model):
    head, config = meshes.MODELS[model]
    told_apart = {"model_type": model, **config, "vocab_size": 72, "max_position_embeddings": 24}
    told_apart = {name: x for name, x in told_apart.items() if model == "bert" or "max" not in name}
    architecture = meshes.architecture_of(tmp_path, told_apart, head)
    parallel = make_parallel("shard", data=2, context=4)
    state, step = meshes.program_of(architecture, parallel)
    batch = parallel.abstract_batch(meshes.batch_of(head, 0))
    text = step.traced_for((state,), batch).lower().compile().as_text()
    found = hlo.collectives(text)
    assert {one.kind for one in found} == {"all-reduce", "collective-permute"}
    summed = Counter(x for one in found for x in one.shapes if one.kind == "all-reduce")
    leaves = by_path(architecture.abstract)
    kernels = Counter(hlo.shape_of(x) for path, x in leaves.items() if path.endswith("kernel"))
    assert {shape: summed[shape] for shape in kernels} == kernels


def test_only_gradients_of_what_trains_are_summed(half_frozen):
    architecture, collectives = half_frozen
    summed = [one for one in collectives if one.kind in ("all-reduce", "reduce-scatter")]
    depths, leaves = architecture.depths, by_path(architecture.abstract)
    trained = sum(x.size for path, x in leaves.items() if depths[path] > 1) * 4
    # Over fsdp each kernel whole, as the CPU has no reduce-scatter, and over data the quarter of it that is
    # kept; and some numbers for the loss, the norm, and the norms of the stem's tokens.
    assert trained < sum(one.size for one in summed) < 1.5 * trained
    frozen = {hlo.shape_of(x) for path, x in leaves.items() if path.endswith("embedding")}
    assert not frozen & {shape for one in summed for shape in one.shapes}
