"""Readers beside a live run: a real training process, commands that read what it saves, the same bits."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import evaluate, export, predict, train
from jaxft.experiment import exporting
from jaxft.terminal.errors import run_command
from tests import worlds
from tests.worlds import ROOT

# Training whose saves stand still when all is written and nothing is visible yet, until the file GATE/N
# is there, N being the number of the save. "N.here" says that one has arrived.
GATED = """
import sys, time
from pathlib import Path
import orbax.checkpoint as ocp
from jaxft import train
from jaxft.terminal.errors import run_command

gate, finalize, count = Path(sys.argv.pop(1)), ocp.CompositeCheckpointHandler.finalize, [0]

def wait(self, directory):
    count[0] += 1
    (gate / f"{count[0]}.here").touch()
    while not (gate / str(count[0])).exists():
        time.sleep(0.01)
    finalize(self, directory)

ocp.CompositeCheckpointHandler.finalize = wait
sys.exit(run_command(train.main, sys.argv))
"""
# What one reader does, as often as its first argument says, and where it says that it has.
READER = """
import sys
from pathlib import Path
from jaxft import export
from jaxft.terminal.errors import run_command

times, done, argv = int(sys.argv[1]), Path(sys.argv[2]), ["export", *sys.argv[3:]]
for number in range(times):
    status = run_command(export.main, argv)
    if status:
        sys.exit(status)
    (done / f"{Path(sys.argv[4]).name}-{number}").touch()
"""


def arguments(world: Path, workdir: Path, steps: int) -> list[str]:
    return worlds.arguments(
        world, workdir, f"--config.train.steps={steps}", "--config.eval.every=1 steps",
        "--config.checkpoint.every_steps=1", "--config.checkpoint.keep=1", "--config.eval.metric=loss",
    )  # fmt: skip


def start(world: Path, folder: Path, steps: int) -> subprocess.Popen[str]:
    (folder / "gate").mkdir()
    command = [sys.executable, "-c", GATED, str(folder / "gate")]
    return subprocess.Popen(
        [*command, *arguments(world, folder / "run", steps)[1:]],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def undisturbed(world: Path, folder: Path, steps: int) -> dict[str, np.ndarray]:
    assert train.main(arguments(world, folder / "alone", steps)) == 0
    return worlds.weights(folder / "alone")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


def stop(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def assert_undisturbed(folder: Path, expected: dict[str, np.ndarray]) -> None:
    found = load_file(folder / "run/best/model.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert not [row for row in rows if row["kind"] == "event"]


@pytest.fixture(scope="module")
def watched(world, tmp_path_factory):
    """The folder of a finished run that commands read while it trained; of each, its status and errors.

    Each came amid a save, with one earlier checkpoint; evaluate and predict read what export wrote.
    """
    folder = tmp_path_factory.mktemp("watched")
    run, gate, said = folder / "run", folder / "gate", []
    few = f"{world}/few.csv"

    def command(main, *flags: str) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as err:
            status = run_command(main, ["command", f"--run={run}", *flags])
        said.append((status, err.getvalue()))

    process = start(world, folder, steps=4)
    try:
        for save in range(1, 5):
            wait_for(gate / f"{save}.here", process)
            before = sorted(p.name for p in (run / "checkpoints").iterdir())
            assert any("tmp" in name for name in before)
            command(export.main, f"--output={run}/best")
            if save == 3:
                command(export.main, f"--output={run}/best", "--step=90")
            if save == 4:
                command(evaluate.main, f"--data={few}")
                command(predict.main, f"--input={few}", f"--output={folder}/labels.csv")
            assert sorted(p.name for p in (run / "checkpoints").iterdir()) == before
            (gate / str(save)).touch()
        _, err = process.communicate()
        assert process.returncode == 0 and not err, err
    finally:
        stop(process)
    return folder, said


def test_commands_beside_a_run_disturb_nothing(world, watched, tmp_path):
    folder, said = watched
    first, *others = said
    assert first[0] == 2 and "the run has no complete checkpoint yet" in first[1]
    refused = [(status, err) for status, err in others if status or err]
    assert len(others) == 6 and len(refused) == 1 and refused[0][0] == 2
    assert "--step=90 is not kept; there are " in refused[0][1]
    assert (folder / "labels.csv").exists()
    assert_undisturbed(folder, undisturbed(world, tmp_path, steps=4))


def test_export_needs_no_data_and_writes_nothing_into_the_run(
    watched, tmp_path, monkeypatch, capsys
):
    def unavailable(*_, **__):
        raise AssertionError("export reads data")

    monkeypatch.setattr("jaxft.experiment.opening.open_source", unavailable)
    run = watched[0] / "run"

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in run.rglob("*")}

    before = files()
    assert run_command(export.main, ["export", f"--run={run}", f"--output={tmp_path}/out"]) == 0
    ours, theirs = (load_file(p / "model.safetensors") for p in (tmp_path / "out", run / "best"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    capsys.readouterr()
    for output in (
        run,
        run / "checkpoints",
        run / "checkpoints/x",
        run / "predictions/x",
        run.parent,
    ):
        assert run_command(export.main, ["export", f"--run={run}", f"--output={output}"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert files() == before


def test_a_checkpoint_may_go_between_any_two_reads_of_it(watched, tmp_path, monkeypatch, capsys):
    shutil.copytree(watched[0] / "run", tmp_path / "run")
    best, away = min((tmp_path / "run/checkpoints").iterdir()), tmp_path / "away"
    original, calls = exporting.best_weights, []

    def goes_after(*given):
        calls.append(given)
        if away.exists():
            away.rename(best)
            return original(*given)
        found = original(*given)
        best.rename(away)
        return found

    monkeypatch.setattr(exporting, "best_weights", goes_after)
    command = ["export", f"--run={tmp_path}/run", f"--output={tmp_path}/out"]
    assert run_command(export.main, command) == 0, capsys.readouterr().err
    assert len(calls) == 2


@pytest.mark.slow
def test_200_readers_and_50_saves(world, tmp_path):
    """Ten processes of twenty exports each; every save waits until four more readers are done."""
    run, gate, done = tmp_path / "run", tmp_path / "gate", tmp_path / "done"
    done.mkdir()
    process = start(world, tmp_path, steps=50)
    readers = []
    try:
        wait_for(gate / "1.here", process)
        (gate / "1").touch()
        wait_for(run / "checkpoints/1", process)
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, "20", str(done), f"--run={run}",
                 f"--output={tmp_path}/reader{number}"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            )
            for number in range(10)
        ]  # fmt: skip
        for save in range(2, 51):
            while len(os.listdir(done)) < 4 * (save - 1):
                assert process.poll() is None, process.stderr and process.stderr.read()
                failed = [r for r in readers if r.poll()]
                assert not failed, failed[0].stderr and failed[0].stderr.read()
                time.sleep(0.01)
            (gate / str(save)).touch()
        said = [reader.communicate() for reader in readers]
        assert [reader.returncode for reader in readers] == [0] * 10, said
        errors = [err for _, err in said if err]
        assert not errors, errors[0]
        assert len(os.listdir(done)) == 200
        steps = re.findall(r"step (\d+) of", "".join(out for out, _ in said))
        print(f"{len(steps)} exports of {len(set(steps))} different steps")
        _, err = process.communicate()
        assert process.returncode == 0 and not err, err
        assert_undisturbed(tmp_path, undisturbed(world, tmp_path, steps=50))
        for number in range(10):
            assert load_file(tmp_path / f"reader{number}" / "model.safetensors")
    finally:
        stop(process, *readers)
