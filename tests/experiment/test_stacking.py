"""Stacked blocks: the same updates, checkpoints and exports as without, and refused where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxft import optim, train
from jaxft.experiment.build import build
from jaxft.experiment.steps import devices
from jaxft.models import cuts, load_architecture
from jaxft.models.stacking import Layout
from tests import hlo, tiny, worlds
from tests.experiment import check_stacking
from tests.worlds import assert_same_weights, killed_at, timeless


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Data, and a BERT of six blocks."""
    return check_stacking.make(tmp_path_factory.mktemp("deep"))


def arguments(deep: Path, workdir: Path, stack: str, *extra: str, mode: str = "jit") -> list[str]:
    own = (f"--config.model.stack={stack}", "--config.train.steps=8", *extra)
    return worlds.arguments(deep, workdir, *own, mode=mode, model="deep")


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_updates_are_the_same_bits(deep):
    extra = ("--config.optim.freeze_below=2", "--config.optim.layer_decay=0.7")
    assert not check_stacking.differing(deep, *extra)


@pytest.mark.slow
def test_a_run_is_resumed_stacked_or_not_and_ends_with_the_same_bits(deep, tmp_path):
    extra = ("--config.optim.freeze_below=2",)
    train.main(arguments(deep, tmp_path / "off", "off", *extra))
    killed_at(6, arguments(deep, tmp_path / "on", "on", *extra))
    killed_at(8, arguments(deep, tmp_path / "on", "off", *extra))
    train.main(arguments(deep, tmp_path / "on", "on", *extra))
    assert_same_weights(tmp_path / "on", tmp_path / "off")
    assert [r for r in timeless(tmp_path / "on") if r["kind"] == "eval"] == [
        r for r in timeless(tmp_path / "off") if r["kind"] == "eval"
    ]
    own, other = (files(tmp_path / name / "best") for name in ("on", "off"))
    assert own.keys() == other.keys()
    assert own["model.safetensors"] == other["model.safetensors"]


def test_a_layout_takes_trees_apart_as_it_put_them_together(deep):
    architecture = load_architecture(str(deep / "deep"), num_labels=2)
    (group,) = architecture.repeats
    assert (group.first, group.last) == (1, check_stacking.BLOCKS - 1)
    layout = Layout((group.part(1, 2), group.part(3, 5)), frozenset(architecture.whole))
    flat = {path: np.full(3, i) for i, path in enumerate(optim.by_path(architecture.whole))}
    tree = optim.path_map(lambda path, _: flat[path], architecture.whole)
    given = {"mu": tree, "count": np.zeros(())}
    there = layout.stack(given, np.stack)
    path = "attention/self/key/kernel"
    assert there["mu"]["stacked"]["3-5"][path].shape == (3, 3)
    assert there["mu"]["bert"]["encoder"]["layer"][0]["attention"]["self"]["key"]["kernel"] is None
    back = layout.unstack(there, lambda leaf, count: list(leaf))
    assert optim.by_path(back).keys() == optim.by_path(given).keys()
    for path, leaf in optim.by_path(back).items():
        np.testing.assert_array_equal(leaf, optim.by_path(given)[path])


def test_auto_leaves_few_blocks_as_they_are(deep):
    settled = check_stacking.prepared(deep, "auto").stacking
    assert not any(settled.layouts)
    assert settled.said.startswith("not stacked: 5 equal blocks compile soon")


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ((), "no two equal blocks"),
        (("--config.optim.frozen=(r'.*/layer/[024]/.*',)",), "no two blocks beside each other"),
    ],
)  # fmt: skip
def test_what_cannot_be_stacked_is_refused_in_one_line(deep, tmp_path, extra, why):
    if not extra:
        extra = (f"--config.model.path={tiny.bert(tmp_path / 'two', blocks=2)}",)
    with pytest.raises(ValueError, match="config.model.stack='on' is not possible") as refused:
        check_stacking.prepared(deep, "on", *extra)
    assert why in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("case", check_stacking.CASES)
def test_updates_are_the_same_bits_as_users_compile_them(deep, case):
    ours = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "tests.experiment.check_stacking", str(deep), case]
    done = subprocess.run(command, env=ours, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


MESH = "--config.parallel.mode=shard"
BOTH = ("fsdp=2", "tensor=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "axes"),
    [
        ("deep", ()), ("deep", ("fsdp=8",)), ("deep", ("tensor=2",)), ("deep", ("fsdp=4", "tensor=2")),
        ("deberta", BOTH), ("t5", BOTH), ("vit", BOTH),
    ],
)  # fmt: skip
def test_over_a_mesh_updates_are_those_of_blocks_that_are_not_stacked(
    deep, monkeypatch, model, axes
):
    monkeypatch.setattr(cuts, "MIN_FSDP_SIZE", 64)  # the tiny model's matrices, too
    extra = ["--config.optim.layer_decay=0.7", check_stacking.BRANCHES]
    extra += ["--config.optim.freeze_below=2"] * (model == "deep")
    mesh = (MESH, "--config.model.remat=true", *(f"--config.parallel.{axis}" for axis in axes))
    found, norms = check_stacking.after(deep, "on", *extra, *mesh, model=model)
    expected, others = check_stacking.after(deep, "off", *extra, *mesh, model=model)
    np.testing.assert_allclose(norms, others, rtol=1e-4)
    for path, leaf in expected.items():
        if path.startswith("whole"):
            np.testing.assert_allclose(found[path], leaf, atol=1e-5, err_msg=path)


@pytest.mark.slow
def test_over_a_mesh_each_block_is_gathered_in_the_scan(deep, monkeypatch):
    monkeypatch.setattr(cuts, "MIN_FSDP_SIZE", 64)
    ready = check_stacking.prepared(deep, "on", MESH, "--config.parallel.fsdp=8")
    run, state = build(ready, devices(ready.config), cache=None, stack=True)
    batch = run.parallel.put(run.train_batches[0])
    traced = run.stages.at(0).program.traced_for((state,), batch)
    found = hlo.collectives(traced.lower().compile().as_text())
    gathered = Counter(shape for one in found if one.kind == "all-gather" for shape in one.shapes)
    # Of five stacked blocks the one that runs, and the last, which is not stacked; no stack whole.
    # A table of fewer rows than a device has tokens is gathered, too.
    leaves = optim.by_path(ready.architecture.abstract)
    gathered.subtract(hlo.shape_of(x) for path, x in leaves.items() if path.endswith("embedding"))
    for kernel in ("32,64", "64,32"):
        assert gathered[f"f32[1,{kernel}]"] == gathered[f"f32[{kernel}]"] == 1, gathered
    assert not any(shape.startswith("f32[5,") for shape in gathered), gathered


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["lp_ft", "bottom_up"])
def test_a_plan_is_killed_and_resumed_between_its_stages(deep, tmp_path, plan):
    extra = (f"--config.optim.unfreeze={plan}", "--config.optim.unfreeze_every=1 steps")
    for stack in ("on", "off"):
        killed_at(5, arguments(deep, tmp_path / stack, stack, *extra))
        train.main(arguments(deep, tmp_path / stack, stack, *extra))
    assert_same_weights(tmp_path / "on", tmp_path / "off")
