"""The whole path: a checkpoint and a file in, a run directory and a checkpoint out; stops and resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import evaluate, export, predict, train
from jaxft.training.logs import Logs
from tests.worlds import (
    ROOT,
    arguments,
    assert_same_weights,
    killed_at,
    rows,
    timeless,
    weights,
)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A run that was not disturbed; its batches have several shapes."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert train.main(undisturbed(world, workdir)) == 0
    return workdir


def undisturbed(world: Path, workdir: Path, *extra: str) -> list[str]:
    """The command of `finished`."""
    return arguments(
        world, workdir, f"--config.data.test={world}/test.csv", "--config.data.max_shapes=4",
        "--config.log.tensorboard=true", *extra,
    )  # fmt: skip


def test_a_run_leaves_everything_it_promises(finished):
    for name in ("config.json", "source.json", "metrics.jsonl", "parameters.json", "summary.json",
                 "report.html", "predictions/eval.jsonl", "predictions/test.jsonl",
                 "best/config.json", "best/model.safetensors", "best/tokenizer.json"):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    assert any((finished / "tensorboard").iterdir())
    logged = rows(finished)
    assert [r["step"] for r in logged if r["kind"] == "eval"] == [4, 8, 12, logged[-1]["step"]]
    assert [r["step"] for r in logged if r["kind"] == "train"] == [2, 4, 6, 8, 10, 12]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["data"] == {"train": 86, "eval": 10, "test": 30}
    assert set(summary["test"]["per_class"]) == {"good", "bad", "odd"}
    assert json.loads((finished / "best/config.json").read_text())["id2label"]["0"] == "bad"


def test_it_learns(world, tmp_path):
    extra = ("--config.train.steps=150", "--config.eval.every=100%", "--config.model.dropout=0",
             "--config.optim.lr=1e-2", "--config.checkpoint.every_steps=1000",
             "--config.train.log_every=50", f"--config.data.test={world}/test.csv")  # fmt: skip
    assert train.main(arguments(world, tmp_path / "run", *extra)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test"]["accuracy"] > 0.9


def test_the_same_command_again_changes_nothing(world, finished, capsys):
    before = (finished / "summary.json").read_bytes()
    assert train.main(undisturbed(world, finished)) == 0
    assert "is finished" in capsys.readouterr().out
    assert (finished / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("jit", (3, 12)),
        pytest.param("jit", (3, 4, 9, 12), marks=pytest.mark.slow),
        pytest.param("shard", (3, 12), marks=pytest.mark.slow),
        pytest.param("pmap", (3, 4, 9, 12), marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_any_step_ends_bitwise_equal(world, tmp_path, mode, kills):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    saved = "--config.checkpoint.every_steps=2"
    assert train.main(arguments(world, whole, saved, mode=mode)) == 0
    for step in kills:
        killed_at(step, arguments(world, broken, saved, mode=mode))
    assert train.main(arguments(world, broken, saved, mode=mode)) == 0
    assert_same_weights(broken, whole)
    assert timeless(broken) == timeless(whole)


def test_sigterm_saves_and_the_same_command_continues(world, tmp_path, finished, monkeypatch):
    workdir = tmp_path / "run"
    original = Logs.train

    def interrupt(self, at, *rest):
        original(self, at, *rest)
        if at == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Logs, "train", interrupt)
    argv = undisturbed(world, workdir)
    assert train.main(argv) == 143
    monkeypatch.setattr(Logs, "train", original)
    assert (workdir / "checkpoints" / "5").is_dir()
    assert train.main(argv) == 0
    assert_same_weights(workdir, finished)


@pytest.mark.slow
def test_sigkill_of_a_real_process_at_a_random_moment(world, tmp_path):
    """One here; twenty, also during saves, in the slow test below."""
    _kill_and_compare(world, tmp_path, kills=1, steps=12)


@pytest.mark.slow
def test_twenty_sigkills(world, tmp_path):
    _kill_and_compare(world, tmp_path, kills=20, steps=40)


def _newest_checkpoint(run: Path) -> int:
    return max((int(p.name) for p in run.glob("checkpoints/*") if p.name.isdigit()), default=0)


def _kill_and_compare(world: Path, folder: Path, kills: int, steps: int) -> None:
    def arguments_of(name: str) -> list[str]:
        # A checkpoint at every step: the kills then often hit a save.
        return arguments(world, folder / name, "--config.checkpoint.every_steps=1",
                         f"--config.train.steps={steps}", "--config.eval.every=10 steps")  # fmt: skip

    assert train.main(arguments_of("whole")) == 0
    command = [sys.executable, "-m", "jaxft.train", *arguments_of("killed")[1:]]
    rng = np.random.default_rng(0)
    # Each process lives until the run has reached a random step, and a random moment longer: counting
    # steps, not seconds, hits the middle of the run on a machine of any speed.
    for step in np.sort(rng.integers(1, steps - 2, kills)):
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        while child.poll() is None and _newest_checkpoint(folder / "killed") < step:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert train.main(arguments_of("killed")) == 0
    assert_same_weights(folder / "killed", folder / "whole")


def test_another_config_in_the_same_directory_is_refused(world, finished):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match="another config(.|\n)*optim.lr: 0.003 -> 0.1"):
        train.main(undisturbed(world, finished, "--config.optim.lr=0.1"))
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("changed", ["train.csv", "one_block/model.safetensors"])
def test_a_source_that_changed_is_refused(world, tmp_path, changed):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    killed_at(5, arguments(copy, tmp_path / "run"))
    path = copy / changed
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"film", b"meal", 1) if changed == "train.csv" else data[:-4] + b"\0\0\1\1"
    )
    with pytest.raises(ValueError, match="has changed since the run"):
        train.main(arguments(copy, tmp_path / "run"))


def test_two_processes_cannot_share_a_run(world, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    held = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
    held += "print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen(
        [sys.executable, "-c", held, str(workdir / ".lock")], stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(OSError, match="in use by another"):
            train.main(arguments(world, workdir))
    finally:
        other.kill()
        other.communicate()


def test_a_non_finite_loss_stops_before_a_good_checkpoint_is_replaced(world, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="step"):
        train.main(arguments(world, workdir, "--config.optim.lr=10", "--config.optim.clip=none",
                             "--config.optim.warmup=0", "--config.optim.weight_decay=10",
                             "--config.train.steps=400", "--config.checkpoint.keep=100"))  # fmt: skip
    assert not (workdir / "summary.json").exists()


def test_early_stopping_waits_for_its_patience(world, tmp_path):
    extra = ("--config.optim.lr=0", "--config.eval.patience=2", "--config.eval.every=2 steps")
    assert train.main(arguments(world, tmp_path / "run", *extra)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # The first evaluation is the best; two more without improvement end the run.
    assert (summary["stopped_early"], summary["steps"], summary["best_step"]) == (True, 6, 2)


def test_frozen_tensors_leave_byte_identical(world, tmp_path):
    extra = ("--config.optim.freeze_below=1", "--config.optim.frozen=.*/layer/1/output/.*")
    assert train.main(arguments(world, tmp_path / "run", *extra, model="bert")) == 0
    source = load_file(world / "bert" / "model.safetensors")
    table = json.loads((tmp_path / "run" / "parameters.json").read_text())
    found = weights(tmp_path / "run")
    frozen = [row["path"] for row in table if not row["trainable"]]
    assert len(frozen) == 5 + 16 + 4
    for path in frozen:
        name = path.replace("/", ".")
        for leaf in ("kernel", "scale", "embedding"):
            name = name.removesuffix(leaf) + "weight" if name.endswith(leaf) else name
        assert found[name].tobytes() == source[name].tobytes(), name


def test_images_train_too(world, tmp_path, capsys):
    extra = ("--config.train.batch_size=8", "--config.train.steps=4", "--config.eval.every=2 steps")
    assert train.main(arguments(world, tmp_path / "run", *extra, model="vit")) == 0
    assert "are held out" in capsys.readouterr().out
    output = tmp_path / "labels.jsonl"
    run = ["predict", f"--run={tmp_path}/run", f"--input={world}/images", f"--output={output}"]
    assert predict.main(run) == 0
    first = json.loads(output.read_text().splitlines()[0])
    assert first["predicted"] in ("left", "upper") and first["image"].endswith(".png")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_agree_with_the_evaluation(world, finished, tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    argv = ["predict", f"--run={finished}", f"--input={world}/test.csv", f"--output={output}"]
    assert predict.main(argv) == 0
    from jaxft.data.sources import open_source

    source = open_source(str(output))
    table = [source[i] for i in range(len(source))]
    correct = sum(row["label"] == row["predicted"] for row in table)
    summary = json.loads((finished / "summary.json").read_text())
    assert correct / len(table) == pytest.approx(summary["test"]["accuracy"])
    total = sum(float(table[0][f"probability_{name}"]) for name in ("good", "bad", "odd"))
    assert total == pytest.approx(1, abs=1e-5)


def test_evaluate_repeats_the_summary(world, finished, tmp_path, capsys):
    output = tmp_path / "metrics.json"
    assert evaluate.main(["evaluate", f"--run={finished}", f"--output={output}"]) == 0
    summary = json.loads((finished / "summary.json").read_text())
    metrics = json.loads(output.read_text())
    assert metrics["per_class"] == summary["test"]["per_class"]
    assert metrics["loss"] == pytest.approx(summary["test"]["loss"], rel=1e-5)
    assert "30 rows" in capsys.readouterr().out


def test_export_of_an_unfinished_run_is_its_best_so_far(world, finished, tmp_path):
    assert export.main(["export", f"--run={finished}", f"--output={tmp_path}/out"]) == 0
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(exported[k], v) for k, v in weights(finished).items())
    with pytest.raises(ValueError, match="--step=7 is not kept; there are"):
        export.main(["export", f"--run={finished}", f"--output={tmp_path}/out", "--step=7"])
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="not a checkpoint"):
        export.main(["export", f"--run={finished}", f"--output={precious}"])
