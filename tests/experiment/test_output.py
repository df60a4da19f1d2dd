"""Files that commands write where their user says: whole or not at all, with nothing left beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from jaxft.experiment.output import Output
from tests.worlds import ROOT

KILLED = """
import os, signal, sys
from pathlib import Path
from jaxft.experiment.output import Output

with Output(Path(sys.argv[1])) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_leaves_is_removed_by_the_next_and_not_what_is_being_written(tmp_path):
    path = tmp_path / "found.json"
    path.write_text("before")
    ended = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, timeout=120)
    assert ended.returncode == -signal.SIGKILL and path.read_text() == "before"
    assert len(os.listdir(tmp_path)) == 2
    with Output(path) as first, Output(tmp_path / "page.html") as second:
        assert len(os.listdir(tmp_path)) == 3  # the one before, and two that are being written
        first.write(b"one")
        second.write(b"two")
    assert sorted(os.listdir(tmp_path)) == ["found.json", "page.html"]
    assert (path.read_text(), (tmp_path / "page.html").read_text()) == ("one", "two")
