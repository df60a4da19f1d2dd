"""launch/mpi.sh under Open MPI's mpirun, on this machine: start, USR1, resume, kills."""

from __future__ import annotations

import shutil
import signal
import socket

import pytest

from tests.launch import runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun (Debian: openmpi-bin)"),
]
# mpirun's own settings: root may run it, and more ranks than cores.
SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


@pytest.fixture
def launch(world):
    def start(count, run):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        return runs.launched(
            "mpirun", "-np", count, "launch/mpi.sh", *runs.arguments(world, run),
            COORDINATOR=f"localhost:{port}", **SETTINGS,
        )  # fmt: skip

    return start


@pytest.mark.parametrize("count", [2, 4])
def test_usr1_saves_and_the_same_command_goes_on(launch, folders, count):
    run, undisturbed = folders[count] / "stopped", folders[count] / "undisturbed"
    runs.finish(lambda folder: launch(count, folder), undisturbed)
    with launch(count, run) as started:
        runs.wait_for_step(run, 3)
        started.send_signal(signal.SIGUSR1)
        said = started.communicate(timeout=300)[0]
    assert started.returncode == 143 and "SIGTERM: saved step " in said, said
    runs.finish(lambda folder: launch(count, folder), run)
    runs.assert_as_undisturbed(run, undisturbed)


@pytest.mark.parametrize("count", [2, 4])
def test_kill_9_of_any_rank_at_any_moment(launch, folders, count, request):
    phases, draw = runs.chosen(request)
    runs.survive_kills(
        lambda run: launch(count, run), folders[count], phases, count, draw, bound=60
    )
