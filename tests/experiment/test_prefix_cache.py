"""Runs that keep what a frozen prefix gives: the same losses, and nothing kept that may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxft import train
from jaxft.data import kept as kept_files
from jaxft.experiment import prefix_cache, prefix_cost
from jaxft.experiment.build import build
from jaxft.experiment.steps import devices
from tests import worlds
from tests.experiment.test_stages import host
from tests.worlds import arguments, assert_same_weights, killed_at, timeless


def built(world: Path, model: str, cache: Path | None, *extra: str, mode: str = "jit"):
    plain = ("--config.data.augment=none",) * (model in ("vit", "resnet"))
    argv = arguments(world, world / "unused", *plain, *extra, mode=mode, model=model)
    prepared = worlds.prepared(argv)
    return build(prepared, devices(prepared.config), cache=cache and str(cache))


def trained(run, state, steps: int):
    """(losses, parameters) of the first updates."""
    state, metrics = worlds.updated(run, state, steps)
    return [float(one["loss"]) for one in metrics], host(run.parallel.unreplicate(state.params))


HEAD, HALF = "--config.optim.freeze_below=all", "--config.optim.freeze_below=1"
ON, OFF = "--config.data.cache_prefix=on", "--config.data.cache_prefix=off"
DROPOUT = "--config.model.dropout=0.2"


@pytest.mark.parametrize(
    "model, extra, mode",
    [
        ("bert", (HALF, DROPOUT), "jit"),
        pytest.param("bert", (HEAD, DROPOUT), "shard", marks=pytest.mark.slow),
        ("vit", (HEAD,), "jit"),
        pytest.param("bert", (HEAD, DROPOUT), "jit", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, DROPOUT), "pmap", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, "--config.train.accumulate=2"), "shard", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, "--config.model.dtype=bfloat16"), "jit", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, "--config.data.pack=false"), "jit", marks=pytest.mark.slow),
        pytest.param("bert", (HALF, "--config.train.r_drop=1"), "jit", marks=pytest.mark.slow),
        pytest.param("vit", (HEAD,), "pmap", marks=pytest.mark.slow),
        pytest.param("resnet", (HALF,), "shard", marks=pytest.mark.slow),
        pytest.param(
            "resnet", (HALF, "--config.model.batch_stats=train"), "jit", marks=pytest.mark.slow
        ),
    ],
)  # fmt: skip
def test_updates_are_those_of_a_run_that_keeps_nothing(world, tmp_path, model, extra, mode):
    losses, params = trained(*built(world, model, None, *extra, OFF, mode=mode), 8)
    run, state = built(world, model, tmp_path, *extra, ON, mode=mode)
    kept_losses, kept = trained(run, state, 8)
    (array,) = (name for name in run.train_batches[0] if name.startswith("after_block_"))
    assert run.train_batches[0][array].dtype == run.prepared.config.model.dtype
    assert "pixel_values" not in run.train_batches[0]
    assert list(tmp_path.glob("*.prefix.*.npy"))
    exact = run.prepared.config.model.dtype == "float32"
    np.testing.assert_allclose(kept_losses, losses, rtol=1e-6 if exact else 1e-2)
    for path, value in params.items():
        np.testing.assert_allclose(kept[path], value, atol=3e-5 if exact else 3e-2, err_msg=path)


def files(cache: Path) -> dict[str, int]:
    """Name -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("*.prefix.*.npy")}


@pytest.mark.slow
def test_what_is_kept_is_found_again_by_whoever_has_the_same_prefix(world, tmp_path):
    run, _ = built(world, "bert", tmp_path, HALF, ON)
    found = files(tmp_path)
    assert len(found) == 1 and run.kept.depths == (1,)
    others = ("--config.train.seed=5", "--config.optim.lr=1e-4", "--config.model.dropout=0.3")
    built(world, "bert", tmp_path, HALF, ON, *others, "--config.train.batch_size=8")
    assert files(tmp_path) == found  # neither made again nor another
    built(world, "bert", tmp_path, HALF, ON, "--config.model.dtype=bfloat16")
    built(world, "bert", tmp_path, HEAD, ON)
    assert len(files(tmp_path)) == 3
    name, _ = found.popitem()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    again, _ = built(world, "bert", tmp_path, HALF, ON)
    for array, expected in zip(
        again.train_batches[3].values(), run.train_batches[3].values(), strict=True
    ):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.slow
def test_folds_share_what_is_kept(world, tmp_path):
    folds = ("--config.data.folds=3", HEAD, ON)
    first, _ = built(world, "bert", tmp_path, *folds, "--config.data.fold=0")
    second, _ = built(world, "bert", tmp_path, *folds, "--config.data.fold=1")
    assert len(files(tmp_path)) == 1

    def vectors(run) -> dict[int, np.ndarray]:
        batches = [run.train_batches[i] for i in range(run.prepared.length.epoch)]
        batches += [run.eval_batches(1)[i] for i in range(len(run.eval_batches(1)))]
        found = {}
        for batch in batches:
            rows, vectors = batch["index"].ravel(), batch["after_block_2"].reshape(-1, 32)
            found |= {int(row): v for row, v in zip(rows, vectors, strict=True) if row >= 0}
        return found

    own, other = vectors(first), vectors(second)
    assert own.keys() == other.keys() and len(own) == 96
    assert all(np.array_equal(own[row], other[row]) for row in own)


@pytest.mark.slow
def test_a_file_is_of_at_most_so_many_bytes_and_all_are_read_as_one(world, tmp_path, monkeypatch):
    whole, _ = built(world, "bert", tmp_path / "one", HALF, ON)
    monkeypatch.setattr(kept_files, "SHARD_BYTES", 1 << 15)
    parts, _ = built(world, "bert", tmp_path / "many", HALF, ON)
    assert len(files(tmp_path / "many")) > 3
    for step in range(3):
        one, many = whole.train_batches[step], parts.train_batches[step]
        np.testing.assert_allclose(many["after_block_1"], one["after_block_1"], atol=2e-6)
    (lost := next((tmp_path / "many").glob("*.00001.npy"))).unlink()  # as after a kill
    times = files(tmp_path / "many")
    built(world, "bert", tmp_path / "many", HALF, ON)
    after = files(tmp_path / "many")
    assert {name: after[name] for name in times} == times and lost.name in after


@pytest.mark.slow
def test_a_stage_keeps_what_has_not_changed_and_nothing_of_what_it_trains(world, tmp_path):
    plan = ("--config.optim.unfreeze=top_down", "--config.optim.unfreeze_every=3 steps")
    extra = (*plan, DROPOUT)
    losses, params = trained(*built(world, "bert", None, *extra, OFF), 12)
    run, state = built(world, "bert", tmp_path, *extra, ON)
    assert run.kept.depths == (2, 1, 0, None)
    names = [
        next((name for name in run.train_batches[step] if name.startswith("after")), None)
        for step in (0, 2, 3, 6, 9)
    ]
    assert names == ["after_block_2", "after_block_2", "after_block_1", "after_block_0", None]
    # An evaluation after 3 updates is of the stage that made them.
    assert "after_block_2" in run.eval_batches(3)[0] and "after_block_1" in run.eval_batches(4)[0]
    kept_losses, kept = trained(run, state, 12)
    np.testing.assert_allclose(kept_losses, losses, rtol=2e-6)
    for path, value in params.items():
        np.testing.assert_allclose(kept[path], value, atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_what_trained_before_and_pauses_is_not_kept(world, tmp_path):
    plan = ("--config.optim.unfreeze=chain_thaw", "--config.optim.unfreeze_every=2 steps")
    run, _ = built(world, "bert", tmp_path, *plan, ON)
    depths = run.prepared.architecture.depths
    for index, depth in enumerate(run.kept.depths):
        trained_by_then = {
            path for n in range(index + 1) for path in depths
            if path not in run.prepared.decisions.frozen_in(n)
        }  # fmt: skip
        assert depth is None or all(depths[path] > depth for path in trained_by_then)


@pytest.mark.parametrize(
    "model, extra, why",
    [
        ("bert", (), "nothing is frozen from the embeddings on"),
        ("bert", (HALF, "--config.data.token_dropout=0.1"), "data.token_dropout=0.1 changes"),
        ("vit", (HEAD, "--config.data.augment=flip"), "data.augment='flip' changes an example"),
        ("vit", (HEAD, "--config.data.mixup=0.2"), "data.mixup=0.2 changes an example"),
    ],
)
def test_on_names_what_is_in_the_way_and_auto_says_it(world, model, extra, why):
    with pytest.raises(ValueError, match=f"cache_prefix='on' is not possible: .*{why}"):
        built(world, model, None, *extra, ON)
    run, _ = built(world, model, None, *extra)
    assert all(depth is None for depth in run.kept.depths)
    assert not extra or why in run.kept.notes[0]


def test_auto_keeps_what_saves_much_and_fits(world, tmp_path, monkeypatch):
    run, _ = built(world, "bert", tmp_path, HEAD)
    assert run.kept.depths == (None,) and "less than compiling" in run.kept.notes[0]
    assert not files(tmp_path)
    monkeypatch.setattr(prefix_cost, "LEAST_FLOPS", 1.0)
    run, _ = built(world, "bert", tmp_path, HEAD)
    assert run.kept.depths == (2,) and "bytes a text" in run.kept.notes[0]
    once, _ = built(world, "bert", tmp_path, HEAD, "--config.train.steps=6")
    assert once.kept.depths == (None,) and "read 1 times" in once.kept.notes[0]
    monkeypatch.setattr(prefix_cost, "MOST_BYTES", 1 << 10)
    large, _ = built(world, "bert", tmp_path, HEAD)
    assert large.kept.depths == (None,) and "above" in large.kept.notes[0]


def test_a_full_disk_is_known_before_anything_is_computed(world, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_cost, "LEAST_FLOPS", 1.0)
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(prefix_cache.shutil, "disk_usage", lambda path: free)
    with pytest.raises(ValueError, match="has 100 bytes left, and what is kept .* takes"):
        built(world, "bert", tmp_path, HEAD, ON)
    run, _ = built(world, "bert", tmp_path, HEAD)
    assert run.kept.depths == (None,) and "100 bytes left" in run.kept.notes[0]


@pytest.mark.slow
def test_an_evaluation_that_reads_what_is_kept_gives_the_same_rows(world, tmp_path):
    for name, mode in (("off", OFF), ("on", ON)):
        extra = (HALF, mode, "--config.optim.lr=1e-2", f"--config.data.test={world / 'test.csv'}")
        assert train.main(arguments(world, tmp_path / name, *extra, model="bert")) == 0
    plain, kept = (
        [row for row in timeless(tmp_path / name) if row["kind"] == "eval"]
        for name in ("off", "on")
    )
    assert [row["split"] for row in kept] == ["eval"] * 3 + ["test"]
    for row, expected in zip(kept, plain, strict=True):
        assert row["per_class"] == expected["per_class"] and row["step"] == expected["step"]
        for name in ("loss", "ece", "mcc"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5)
    for file in ("predictions/eval.jsonl", "predictions/test.jsonl"):
        ours, theirs = (
            list(map(json.loads, (tmp_path / name / file).read_text().splitlines()))
            for name in ("on", "off")
        )
        assert [row["predicted"] for row in ours] == [row["predicted"] for row in theirs]
    killed_at(7, arguments(world, tmp_path / "cut", *extra, model="bert"))
    assert train.main(arguments(world, tmp_path / "cut", *extra, model="bert")) == 0
    assert_same_weights(tmp_path / "cut", tmp_path / "on")
