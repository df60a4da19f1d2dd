"""Starting again in a directory: what may change, what is noticed, and what an unlucky end leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import evaluate, train
from jaxft.analysis import report
from jaxft.config import default_config, override, unflatten
from jaxft.experiment import finish, loop, provenance
from jaxft.experiment.continuing import accepted
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.session import Memory, judge
from jaxft.experiment.signals import saved_first
from tests import worlds
from tests.worlds import Crash, rows


def arguments(world: Path, workdir: Path, *extra: str, model: str = "one_block") -> list[str]:
    return worlds.arguments(
        world, workdir, f"--config.data.test={world}/test.csv", "--config.train.steps=6",
        "--config.eval.every=3 steps", "--config.checkpoint.every_steps=500",
        "--config.optim.schedule=constant", "--config.optim.warmup=0", *extra, model=model,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A run that was not disturbed."""
    workdir = tmp_path_factory.mktemp("done") / "run"
    assert train.main(arguments(world, workdir)) == 0
    return workdir


@pytest.fixture
def copy(done, tmp_path):
    return Path(shutil.copytree(done, tmp_path / "run"))


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def last_weights(workdir: Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "best" / "model.safetensors")


# The end


def test_a_kill_before_the_report_leaves_a_run_that_is_not_finished(world, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(report, "render", lambda *_: (_ for _ in ()).throw(Crash()))
        train.main(arguments(world, tmp_path / "run"))
    assert not (tmp_path / "run/summary.json").exists()
    assert (tmp_path / "run/best/model.safetensors").exists()
    assert train.main(arguments(world, tmp_path / "run")) == 0
    assert (tmp_path / "run/report.html").exists()
    # The whole run's, although this process has only finished it.
    assert summary(tmp_path / "run")["examples_per_second"] > 0


@pytest.mark.parametrize("part", ["report.html", "best", "predictions/test.jsonl"])
def test_a_finished_run_that_lacks_a_part_makes_it_again(world, done, copy, part):
    path = copy / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train.main(arguments(world, copy)) == 0
    assert path.exists()
    for name, value in last_weights(done).items():
        np.testing.assert_array_equal(last_weights(copy)[name], value)


def test_the_export_comes_before_the_test(world, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(finish, "_test", fails)
        train.main(arguments(world, tmp_path / "run"))
    assert (tmp_path / "run/best/model.safetensors").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_finish_ends_with_a_word(world, copy, monkeypatch, capsys, number, status):
    (copy / "summary.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(finish, "report", lambda *_: os.kill(os.getpid(), number))
        assert train.main(arguments(world, copy)) == status
    assert f"{number.name} while finishing" in capsys.readouterr().err
    assert train.main(arguments(world, copy)) == 0
    assert (copy / "summary.json").exists()


def test_a_signal_in_the_last_evaluation_ends_the_run_before_the_finish(
    world, tmp_path, monkeypatch, capsys
):
    measure = loop.evaluate

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(*args, **options)

    command = arguments(world, tmp_path / "run", "--config.eval.every=100%")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        assert train.main(command) == 143
    assert "SIGTERM: saved step 6; the same command continues" in capsys.readouterr().out
    assert not (tmp_path / "run/best").exists()
    assert train.main(command) == 0
    assert (tmp_path / "run/summary.json").exists()


def test_a_second_sigterm_does_not_kill_before_the_save():
    with saved_first() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(1)
    assert stop.received == signal.SIGTERM


def test_running_out_of_patience_at_the_last_step_is_no_early_stop():
    config = unflatten({"eval.patience": 1})
    memory = Memory(best_step=1, best_value=0.9, best_metrics={}, reference=0.9)

    class Result:
        metrics = {"accuracy": 0.5}

    assert judge(memory, 2, Result(), config, last=False).stopped_early
    assert not judge(memory, 2, Result(), config, last=True).stopped_early


def test_a_package_that_is_not_installed_has_no_version():
    assert provenance.versions(("jax", "no-such-package"))["no-such-package"] == "unknown"


# The data of every split


@pytest.mark.parametrize("split", ["test", "eval"])
@pytest.mark.parametrize("content", ["body,label\nx,good\n", "text,label\na,good\n,\n"])
def test_no_split_is_wrong_only_after_the_training(world, tmp_path, split, content):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"config.data.{split}.*(text|label)"):
        train.main(arguments(world, tmp_path / "run", f"--config.data.{split}={tmp_path}/bad.csv"))
    assert not (tmp_path / "run/checkpoints").exists()


# What may change


def test_other_test_data_are_tested_and_nothing_is_trained_again(world, done, copy):
    extra = (f"--config.data.test={world}/few.csv", "--config.train.log_every=3")
    assert train.main(arguments(world, copy, *extra)) == 0
    assert summary(copy)["data"]["test"] == 6
    events = [row["message"] for row in rows(copy) if row["kind"] == "event"]
    assert any("config.data.test" in message for message in events)
    assert [row["step"] for row in rows(copy) if row["kind"] == "train"] == [
        row["step"] for row in rows(done) if row["kind"] == "train"
    ]
    before = (copy / "summary.json").read_bytes()
    assert train.main(arguments(world, copy, *extra)) == 0
    assert (copy / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_a_longer_run_is_the_one_that_was_long_from_the_start(world, copy, tmp_path):
    extra = ("--config.train.steps=9", "--config.eval.metric=loss")
    whole = tmp_path / "whole"
    assert train.main(arguments(world, whole, *extra)) == 0
    short = tmp_path / "short"
    assert train.main(arguments(world, short, "--config.eval.metric=loss")) == 0
    assert train.main(arguments(world, short, *extra)) == 0
    assert (
        summary(short)["steps"] == 9 and summary(short)["best_step"] == summary(whole)["best_step"]
    )
    for name, value in last_weights(whole).items():
        np.testing.assert_array_equal(last_weights(short)[name], value)


OLD = {
    "optim.schedule": "constant",
    "optim.warmup": "4 steps",
    "train.steps": 40,
    "train.epochs": None,
}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            {"optim.schedule": "linear"},
            {"train.steps": 80},
            "follow config.optim.schedule='linear'",
        ),
        ({}, {"train.steps": 20}, "can only be made longer"),
        ({"optim.warmup": "10%"}, {"train.steps": 80}, "--config.optim.warmup='4 steps'"),
        ({"optim.unfreeze": "top_down"}, {"train.steps": 80}, "follows the length"),
        # An epoch of a stream is the whole run.
        ({"data.stream": 9, "optim.warmup": "0.1 epochs"}, {"train.steps": 80}, "warmup='4 steps'"),
        ({}, {"train.seed": 1}, "config.train.seed: 0 -> 1"),
        ({}, {"train.steps": 80, "optim.lr": 0.1}, "another config"),
    ],
)
def test_what_a_run_cannot_become(old, new, message):
    before = unflatten({**OLD, **old})
    after = unflatten({**OLD, **old, **new})
    with pytest.raises(ValueError, match=message):
        accepted(before, after, entries=64, stopped_early=False, where="runs/x")


def test_what_it_can_become():
    def changes(old, new):
        configs = (unflatten({**OLD, **old}), unflatten({**OLD, **old, **new}))
        return accepted(*configs, entries=64, stopped_early=False, where="runs/x")

    assert changes({}, {"train.steps": 80}).reopens
    assert changes({"optim.warmup": "10%"}, {"train.steps": 80, "optim.warmup": "4 steps"}).reopens
    assert not changes({}, {"log.tensorboard": False, "checkpoint.keep": 3}).reopens
    # What earlier versions wrote for today's None is no change.
    assert changes({"optim.b2": 0.999}, {"optim.b2": None}).lines == ()
    with pytest.raises(ValueError, match="stopped early"):
        longer = (unflatten(OLD), unflatten({**OLD, "train.steps": 80}))
        accepted(*longer, entries=64, stopped_early=True, where="runs/x")


def test_epochs_are_of_what_the_run_counts(copy):
    source = json.loads((copy / "source.json").read_text())
    directory = RunDirectory(copy)
    longer = override(directory.config(), {"train.steps": None, "train.epochs": 1.0})
    assert directory.changes(longer).reopens
    (copy / "source.json").write_text(json.dumps({**source, "training pairs": 48}))
    with pytest.raises(ValueError, match="of 6 steps, which cannot become one of 3"):
        directory.changes(longer)


def test_a_field_that_came_later_does_not_stop_an_old_run():
    old = default_config()
    assert accepted(old, default_config(), entries=9, stopped_early=False, where="x").lines == ()


# What is noticed


def test_a_changed_checkpoint_config_is_noticed(world, tmp_path, done):
    source = Path(shutil.copytree(world / "one_block", tmp_path / "bert"))
    argv = arguments(world, tmp_path / "run", f"--config.model.path={source}")
    assert train.main(argv) == 0
    (tmp_path / "run/summary.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="model config.json has changed"):
        train.main(argv)


def test_replaced_images_are_noticed(world, tmp_path):
    shutil.copytree(world / "images", tmp_path / "images")
    argv = worlds.arguments(
        world, tmp_path / "run", f"--config.data.train={tmp_path}/images",
        "--config.train.batch_size=8", "--config.train.steps=2", model="vit",
    )  # fmt: skip
    assert train.main(argv) == 0
    (tmp_path / "run/summary.json").unlink()
    for path in sorted((tmp_path / "images/left").iterdir()):
        path.write_bytes((tmp_path / "images/upper" / path.name).read_bytes())
    with pytest.raises(ValueError, match="(training|evaluation) fingerprint has changed"):
        train.main(argv)


def test_a_run_of_an_earlier_version_is_not_continued_but_read(world, copy):
    """Its record has one fingerprint of all data, and its held-out rows were others."""
    (copy / "summary.json").unlink()
    record = json.loads((copy / "source.json").read_text())
    del record["training fingerprint"], record["evaluation fingerprint"]
    (copy / "source.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="earlier version of jaxft"):
        train.main(arguments(world, copy))
    assert evaluate.main(["evaluate", f"--run={copy}", f"--data={world}/test.csv"]) == 0
    config = json.loads((copy / "config.json").read_text())
    config["data"]["test"] = ""
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="give --data"):
        evaluate.main(["evaluate", f"--run={copy}"])


def test_other_versions_are_said(world, copy, monkeypatch):
    (copy / "summary.json").unlink()
    record = json.loads((copy / "source.json").read_text())
    record["versions"]["jax"] = "0.1.0"
    (copy / "source.json").write_text(json.dumps(record))
    assert train.main(arguments(world, copy)) == 0
    messages = [row["message"] for row in rows(copy) if row["kind"] == "event"]
    assert any("jax 0.1.0 -> " in message for message in messages)


def test_the_held_out_share_is_not_taken_from_other_rows(world, tmp_path):
    data = tmp_path / "train.csv"
    data.write_bytes((world / "train.csv").read_bytes())
    run = tmp_path / "run"
    argv = arguments(world, run, f"--config.data.train={data}", "--config.data.test=")
    assert train.main(argv) == 0
    assert evaluate.main(["evaluate", f"--run={run}"]) == 0
    with data.open("a") as file:
        file.writelines(f"the fine film {i},good\n" for i in range(30))
    with pytest.raises(ValueError, match="evaluation fingerprint has changed"):
        evaluate.main(["evaluate", f"--run={run}"])


# A damaged checkpoint


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one_or_from_a_chosen_one(
    world, tmp_path, capsys
):
    argv = arguments(world, tmp_path / "run", "--config.checkpoint.keep=3")
    assert train.main(argv) == 0
    expected = last_weights(tmp_path / "run")
    for name in ("summary.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    largest = max(
        (tmp_path / "run/checkpoints/6").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    damaged = largest.read_bytes()
    capsys.readouterr()
    assert train.main(argv) == 0
    said = "".join(capsys.readouterr().out.split("\n"))
    assert "the checkpoint of step 6 is damaged: " in said, said
    aside = tmp_path / "run/checkpoints/damaged-6"
    assert str(aside) in said
    assert (aside / largest.relative_to(aside.with_name("6"))).read_bytes() == damaged
    events = [r["name"] for r in rows(tmp_path / "run") if r["kind"] == "event"]
    assert events == ["resume", "damaged"]
    evaluated = [r["step"] for r in rows(tmp_path / "run") if r.get("split") == "eval"]
    assert evaluated == [3, 6]  # the rows of step 3 stay, those of step 6 are written again
    for name, value in last_weights(tmp_path / "run").items():
        np.testing.assert_array_equal(value, expected[name])
    assert train.main([*argv, "--resume_from=3"]) == 0
    assert (tmp_path / "run/checkpoints/damaged-6-2").is_dir()
    for name, value in last_weights(tmp_path / "run").items():
        np.testing.assert_array_equal(value, expected[name])
    with pytest.raises(ValueError, match="no checkpoint of step 5"):
        train.main([*argv, "--resume_from=5"])


def test_records_of_other_versions(world, copy):
    """Without a format, and without a field that came later, they are read; of a later format, not."""
    (copy / "summary.json").unlink()
    for name in ("config.json", "source.json"):
        record = json.loads((copy / name).read_text())
        assert record.pop("format") == 1
        (copy / name).write_text(json.dumps(record))
    record = json.loads((copy / "config.json").read_text())
    del record["data"]["on_bad_row"]
    (copy / "config.json").write_text(json.dumps(record))
    assert train.main(arguments(world, copy)) == 0
    (copy / "config.json").write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(ValueError, match="config.json has format 2; this version of jaxft reads"):
        train.main(arguments(world, copy))
