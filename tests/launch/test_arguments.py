"""What the launchers hand on, to a python that only writes down how it was called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.worlds import ROOT

AWKWARD = [
    '--config.a=it\'s "here"',
    "--config.b=$HOME `x` \\n *",
    "--config.c=two\nlines",
    "--d=",
    "ü",
]
# Writes its arguments, then ends as the file `ends` beside it says for its number.
PYTHON = """#!{python}
import json, os, signal, sys, time
here = os.path.dirname(os.path.abspath(__file__))
number = next((a.split("=")[1] for a in sys.argv if a.startswith("--process_id=")), None)
number = number or os.environ.get("CUDA_VISIBLE_DEVICES", "0")
with open(f"{{here}}/called-{{number}}.tmp", "w") as file:
    json.dump([os.getcwd(), sys.argv[1:]], file)
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
os.rename(f"{{here}}/called-{{number}}.tmp", f"{{here}}/called-{{number}}")
end = json.load(open(f"{{here}}/ends")).get(number, 0)
if end == "never":
    time.sleep(600)
sys.exit(end)
"""
SSH = '#!/bin/sh\n[ "$1 $2" = "-o BatchMode=yes" ] || exit 9\nexec sh -c "$4"\n'
GCLOUD = '#!/bin/sh\nfor word; do last=$word; done\nexec sh -c "${last#--command=}"\n'


@pytest.fixture
def bench(tmp_path):
    """A folder with programs that stand for python, ssh and gcloud."""
    programs = {"python": PYTHON.format(python=sys.executable), "ssh": SSH, "gcloud": GCLOUD}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "ends").write_text("{}")
    return tmp_path


def started(bench: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    path = f"{bench}:{os.environ['PATH']}"
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PATH": path, "PYTHON": str(bench / "python"), "GRACE": "0", **environment},
    )  # fmt: skip


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = child.communicate(timeout=60)
    return child.returncode, errors


def called(bench: Path, number: int) -> tuple[str, list[str]]:
    path = bench / f"called-{number}"
    for _ in range(1200):
        if path.exists():
            return json.loads(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} was never written")


def test_ssh_hands_arguments_on_unchanged(bench):
    (bench / "hosts").write_text("# ours\nme@first\n\nsecond # slow\n")
    child = started(bench, "launch/ssh.sh", str(bench / "hosts"), *AWKWARD, DIRECTORY=str(bench))
    assert ended(child) == (0, "")
    for number in (0, 1):
        where, words = called(bench, number)
        assert where == str(bench) and words == [
            "-m", "jaxft.train", *AWKWARD, "--coordinator=first:47700", "--num_processes=2",
            f"--process_id={number}",
        ]  # fmt: skip


def test_ssh_ends_the_others_after_the_first_failure(bench):
    (bench / "ends").write_text('{"0": "never", "1": 3}')
    assert ended(started(bench, "launch/ssh.sh", "a,b"))[0] == 3


@pytest.mark.parametrize("launcher", [("launch/ssh.sh", "a,b"), ("launch/local.sh", "2")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(bench, launcher, number):
    (bench / "ends").write_text('{"0": "never", "1": "never"}')
    child = started(bench, *launcher)
    called(bench, 0), called(bench, 1)
    child.send_signal(number)
    assert ended(child)[0] == 143


def test_the_end_of_the_launcher_stops_what_ssh_started(bench):
    (bench / "ends").write_text('{"0": "never", "1": "never"}')
    child = started(bench, "launch/ssh.sh", "a,b")
    called(bench, 0), called(bench, 1)
    child.kill()
    child.communicate(timeout=60)  # its output is closed when all that write to it have ended


@pytest.mark.parametrize("launcher", [("launch/ssh.sh", ","), ("launch/local.sh", "two")])
def test_a_launcher_says_what_it_needs(bench, launcher):
    status, errors = ended(started(bench, *launcher))
    assert status == 2 and launcher[0] in errors and "usage" in errors


def test_tpu_vm_hands_arguments_on_unchanged(bench):
    child = started(
        bench, "launch/tpu_vm.sh", *AWKWARD, TPU="slice", ZONE="z", DIRECTORY=str(bench)
    )
    assert ended(child) == (0, "")
    assert called(bench, 0) == [str(bench), ["-m", "jaxft.train", "--distributed", *AWKWARD]]
    status, errors = ended(started(bench, "launch/tpu_vm.sh", *AWKWARD, TPU="slice"))
    assert status != 0 and "its zone" in errors


def test_mpi_hands_arguments_on_unchanged(bench):
    ranks = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    assert ended(started(bench, "launch/mpi.sh", *AWKWARD, **ranks)) == (0, "")
    assert called(bench, 1)[1][2:-3] == AWKWARD
    assert "start this with mpirun" in ended(started(bench, "launch/mpi.sh"))[1]


def test_workers_of_a_sweep_do_not_meet_and_each_has_a_gpu(bench):
    (bench / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (bench / "nvidia-smi").chmod(0o755)
    (bench / "ends").write_text('{"0": 3}')
    child = started(bench, "launch/local.sh", "2", *AWKWARD, COMMAND="sweep")
    assert ended(child)[0] == 3
    for gpu in (0, 1):
        assert called(bench, gpu)[1] == ["-m", "jaxft.sweep", *AWKWARD]


def test_a_worker_of_a_sweep_that_fails_does_not_end_the_others(bench):
    (bench / "ends").write_text('{"1": 3, "0": "never"}')
    child = started(
        bench, "launch/local.sh", "2", COMMAND="sweep", GRACE="0", CUDA_VISIBLE_DEVICES="0,1"
    )
    called(bench, 0), called(bench, 1)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(1.5)
    child.send_signal(signal.SIGTERM)
    assert ended(child)[0] == 3


@pytest.mark.parametrize("launcher", ["launch/ssh.sh", "launch/mpi.sh"])
def test_other_launchers_start_workers_of_a_sweep(bench, launcher):
    ranks = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "COMMAND": "sweep"}
    hosts = ["a"] if "ssh" in launcher else []
    assert ended(started(bench, launcher, *hosts, *AWKWARD, **ranks)) == (0, "")
    assert called(bench, 0)[1] == ["-m", "jaxft.sweep", *AWKWARD]
    status, errors = ended(started(bench, launcher, *hosts, **{**ranks, "COMMAND": "swep"}))
    assert status == 2 and "it may be train or sweep" in errors
