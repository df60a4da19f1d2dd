"""launch/slurm.sbatch on a cluster of one machine: start, TERM, requeue, resume, kills."""

from __future__ import annotations

import json

import pytest

from tests.launch import runs, slurm_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing()),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("cluster"), cpus=4) as made:
        yield made


@pytest.fixture
def launch(cluster, world):
    """Submit the shipped file as it is, with the flags of a machine without GPUs, and wait for the job."""

    def submit(count, run, *flags):
        log = run.parent / f"{run.name}.log"
        return runs.launched(
            "sbatch", "--wait", "--parsable", f"--ntasks-per-node={count}", "--gpus-per-node=0",
            "--cpus-per-task=1", f"--output={log}", *flags, "launch/slurm.sbatch",
            *runs.arguments(world, run), SLURM_CONF=str(cluster.folder / "slurm.conf"),
        )  # fmt: skip

    return submit


@pytest.mark.parametrize("count", [2, 4])
def test_term_saves_and_the_job_queues_itself_again_and_goes_on(cluster, launch, folders, count):
    run, undisturbed = folders[count] / "stopped", folders[count] / "undisturbed"
    runs.finish(lambda folder: launch(count, folder), undisturbed)
    assert json.loads((undisturbed / runs.FINISHED).read_text())
    with launch(count, run) as submitted:
        job = submitted.stdout.readline().strip()
        runs.wait_for_step(run, 3)
        # What --signal=B:USR1 does before the time limit: the script gets it, not the tasks.
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        submitted.wait(900)
        assert cluster.wait(job, *slurm_cluster.ENDED) == "COMPLETED"
        log = (folders[count] / "stopped.log").read_text()
        assert cluster.field(job, "Restarts") == "1", log
    assert "SIGTERM: saved step " in log and "continued from the checkpoint of step " in log
    runs.assert_as_undisturbed(run, undisturbed)


@pytest.mark.parametrize("count", [2, 4])
def test_kill_9_of_any_task_at_any_moment(launch, folders, count, request):
    phases, draw = runs.chosen(request)
    runs.survive_kills(
        lambda run: launch(count, run), folders[count], phases, count, draw, bound=90
    )
