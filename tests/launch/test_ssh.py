"""launch/ssh.sh with a real sshd on the loopback: two hosts by name, stopped, continued."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.launch import runs

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(SSHD).exists(), reason="no sshd (Debian: openssh-server)"),
]


@pytest.fixture
def ssh(tmp_path):
    """A command that logs in here, and the environment that the server gives to what it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(key, check=True, stdin=subprocess.DEVNULL)
    # As root it wants this folder, which a package makes when its service starts.
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    own = ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "PYTHONPATH", "HF_HUB_OFFLINE")
    given = " ".join(
        f'"{name}={value}"' for name, value in runs.environment().items() if name in own
    )
    (tmp_path / "sshd_config").write_text(f"""
Port {port}
ListenAddress 127.0.0.1
HostKey {tmp_path}/host
AuthorizedKeysFile {tmp_path}/user.pub
StrictModes no
PasswordAuthentication no
PidFile none
SetEnv {given}
""")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "sshd_config"])
    yield (
        f"ssh -F none -p {port} -i {tmp_path}/user -o StrictHostKeyChecking=no -o LogLevel=ERROR "
        "-o UserKnownHostsFile=/dev/null"
    )
    server.terminate()
    server.wait()


def test_two_hosts_stop_and_go_on(ssh, tmp_path):
    world = runs.make_world(tmp_path)
    run, undisturbed = tmp_path / "run of two", tmp_path / "undisturbed"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def launch(run):
        command = ("launch/ssh.sh", "localhost,127.0.0.1", *runs.arguments(world, run))
        return runs.launched(*command, SSH=ssh, PORT=port)

    with launch(run) as started:
        runs.wait_for_step(run, 3)
        started.send_signal(signal.SIGTERM)
        said = started.communicate(timeout=600)[0]
        assert started.returncode == 143 and "SIGTERM: saved step " in said, said
    runs.finish(launch, run)
    local = ("launch/local.sh", 2, *runs.arguments(world, undisturbed))
    runs.finish(lambda _: runs.launched(*local), undisturbed)
    runs.assert_as_undisturbed(run, undisturbed)
