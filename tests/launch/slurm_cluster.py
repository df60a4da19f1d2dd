"""A Slurm cluster of one machine, with all its daemons, files and ports in a folder of a test.

Of Debian: slurmctld slurmd slurm-client munge. It needs root, as slurmd starts tasks as their users.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PROGRAMS = (*DAEMONS, "sbatch", "srun", "scontrol", "scancel", "squeue")
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")


def missing() -> str:
    """Why there can be no cluster here; '' where there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """Commands of a running cluster."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: object, **environment: str) -> str:
        """What a command of Slurm prints."""
        return subprocess.run(
            [str(word) for word in command], check=True, text=True, capture_output=True, timeout=60,
            env={**self.environment, **environment},
        ).stdout  # fmt: skip

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`."""
        words = self.run("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def wait(self, job: str, *states: str, seconds: float = 900) -> str:
        """Until the job is in one of these states."""
        began = time.monotonic()
        while (state := self.field(job, "JobState")) not in states:
            assert time.monotonic() - began < seconds, self.run("scontrol", "show", "job", job)
            time.sleep(0.2)
        return state


@contextlib.contextmanager
def cluster(folder: Path, cpus: int) -> Iterator[Cluster]:
    """A cluster of one node with so many processors, whether the machine has them or not."""
    here, made = socket.gethostname().partition(".")[0], Cluster(folder)
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o600)
    (folder / "slurm.conf").write_text(_conf(folder, here, cpus))
    munge = folder / "munge"
    daemons = [
        # --force: as root, and in a folder below /tmp, it would warn and not start
        ["munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
         f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"],
        ["slurmctld", "-D"], ["slurmd", "-D", "-N", here],
    ]  # fmt: skip
    children = []
    try:
        for command in daemons:
            with open(folder / f"{command[0]}.out", "w") as log:
                children.append(
                    subprocess.Popen(
                        command, env=made.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )  # fmt: skip
            time.sleep(1)
        _wait_until_idle(made)
        yield made
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            made.run("scancel", "--full", "--user=root")
            made.run("scancel", "--signal=KILL", "--user=root")
        for child in reversed(children):
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


def _conf(folder: Path, host: str, cpus: int) -> str:
    controller, node = _free_ports(2)
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
# The port of a run follows from the number of its job, and there may be other clusters on this machine.
FirstJobId={controller}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits for as long as a credential is valid.
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_idle(made: Cluster) -> None:
    for _ in range(120):
        with contextlib.suppress(subprocess.SubprocessError):
            if "State=IDLE" in made.run("scontrol", "show", "node"):
                return
        time.sleep(0.5)
    logs = "\n".join(path.read_text()[-1500:] for path in made.folder.glob("*.out"))
    raise AssertionError(f"the cluster does not come up: {logs}")
