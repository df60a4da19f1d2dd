"""Launchers that start workers of one sweep: one is killed, all are stopped, every trial is run."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.test_sweep import SPACE
from tests.launch import runs, slurm_cluster

pytestmark = pytest.mark.slow
TRIALS = 16


@pytest.fixture
def search(world, tmp_path):
    """Arguments of a sweep whose trials end in a second or two."""
    (tmp_path / "space.py").write_text(SPACE)
    return [
        *runs.arguments(world, tmp_path / "sweep")[:-1], f"--space={tmp_path / 'space.py'}",
        f"--trials={TRIALS}", "--at_once=2", "--config.eval.metric=loss",
    ]  # fmt: skip


def ended(run: Path) -> int:
    return len(list(run.glob("trials/*.json")))


def wait_for_trials(run: Path, count: int) -> None:
    began = time.monotonic()
    while ended(run) < count:
        assert time.monotonic() - began < 600, f"never came to {count} trials"
        time.sleep(0.02)


def workers(run: Path) -> list[int]:
    """Numbers of the operating system."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        words = runs.text_of(folder / "cmdline").split("\0")
        if words[1:3] == ["-m", "jaxft.sweep"] and f"--workdir={run}" in words:
            found.append(int(folder.name))
    return found


def assert_whole(run: Path) -> None:
    rows = json.loads((run / "sweep.json").read_text())["rows"]
    assert [row["number"] for row in rows] == list(range(TRIALS))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}


def test_a_worker_of_three_is_killed_and_the_others_do_its_trials(search, tmp_path):
    run = tmp_path / "sweep"
    with runs.launched("launch/local.sh", 3, *search, COMMAND="sweep") as started:
        wait_for_trials(run, 4)
        os.kill(workers(run)[0], signal.SIGKILL)
        said = started.communicate(timeout=900)[0]
    assert started.returncode == 137 and "page:" in said, said
    assert_whole(run)


def test_term_stops_all_workers_and_the_same_command_goes_on(search, tmp_path):
    run = tmp_path / "sweep"
    with runs.launched("launch/local.sh", 2, *search, COMMAND="sweep") as started:
        wait_for_trials(run, 2)
        started.send_signal(signal.SIGTERM)
        said = started.communicate(timeout=300)[0]
    assert started.returncode == 143 and not workers(run), said
    before = ended(run)
    with runs.launched("launch/local.sh", 2, *search, COMMAND="sweep") as started:
        said = started.communicate(timeout=900)[0]
    assert started.returncode == 0 and before < TRIALS, said
    assert_whole(run)


@pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())
def test_slurm_stops_workers_at_its_signal_and_queues_them_again(search, tmp_path):
    run, log, folder = tmp_path / "sweep", tmp_path / "log", tmp_path / "cluster"
    folder.mkdir()
    with slurm_cluster.cluster(folder, cpus=2) as cluster:
        submit = runs.launched(
            "sbatch", "--wait", "--parsable", "--ntasks-per-node=2", "--gpus-per-node=0",
            "--cpus-per-task=1", f"--output={log}", "launch/slurm.sbatch", *search,
            SLURM_CONF=str(cluster.folder / "slurm.conf"), COMMAND="sweep",
        )  # fmt: skip
        with submit as submitted:
            job = submitted.stdout.readline().strip()
            wait_for_trials(run, 2)
            cluster.run("scancel", "--batch", "--signal=USR1", job)
            submitted.wait(900)
            assert cluster.wait(job, *slurm_cluster.ENDED) == "COMPLETED", log.read_text()
            assert cluster.field(job, "Restarts") == "1", log.read_text()
    assert_whole(run)
