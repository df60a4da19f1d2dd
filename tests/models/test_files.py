"""A checkpoint directory is replaced as a whole: killed or failing at any moment, nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxft.models.checkpoint import checkpoint_files
from jaxft.models.checkpoint.checkpoint_files import replacing

# Ends with status 9 just before one of the calls that change the disk; does without jax.
KILLED = """
import importlib.util, os, shutil, sys, tempfile
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
output, at = sys.argv[2], int(sys.argv[3])
calls = 0

def deadly(module, name):
    call = getattr(module, name)
    def counted(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            os._exit(9)
        return call(*arguments, **options)
    setattr(module, name, counted)

for module, name in (
    (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"),
    (shutil, "rmtree"), (tempfile, "mkdtemp"),
):
    deadly(module, name)
with files.replacing(output, lambda path: None) as new:
    with open(os.path.join(new, "weights"), "w") as file:
        file.write("new")
"""


def contents(directory: Path) -> str:
    return (directory / "weights").read_text() if directory.is_dir() else "-"


def earlier(tmp_path: Path) -> Path:
    """An export, and a user's own directories of names that could be taken for leftovers."""
    for name in ("out", "out.old", "out.writing", "out.exporting-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    return tmp_path / "out"


def fill(output: Path, check: Callable[[str], None] = lambda path: None) -> None:
    with replacing(str(output), check) as new:
        Path(new, "weights").write_text("new")


def test_a_kill_at_any_call_leaves_the_earlier_export_or_both(tmp_path):
    seen = set()
    for at in range(1, 50):
        place = tmp_path / str(at)
        place.mkdir()
        output = earlier(place)
        command = [sys.executable, "-c", KILLED, checkpoint_files.__file__, str(output), str(at)]
        status = subprocess.run(command).returncode
        holders = set(place.glob("out.exporting-*")) - {place / "out.exporting-mine"}
        kept = contents(output)
        if kept == "-":
            [holder] = holders
            kept = f"{contents(holder / 'previous')} and {contents(holder / 'new')}"
        seen.add(kept)
        assert {"out.old", "out.writing", "out.exporting-mine"} == {
            contents(path) for path in place.iterdir() if path not in {output, *holders}
        }
        fill(output)  # what was left is in nobody's way, and stays
        assert contents(output) == "new" and all(holder.exists() for holder in holders)
        if status == 0:
            break
        assert status == 9
    assert status == 0 and seen == {"out", "out and new", "new"}


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("error", [Stop(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_at_any_rename_puts_the_earlier_export_back(
    error, at, when, tmp_path, monkeypatch
):
    output, calls, rename = earlier(tmp_path), 0, os.rename

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at and when == "before":
            raise error
        rename(*arguments)
        if calls == at and when == "after":
            raise error

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(type(error)) as raised:
        fill(output)
    assert contents(output) == ("new" if (at, when) == (2, "after") else "out")
    if isinstance(error, OSError):
        assert raised.value.filename == str(output) and raised.value.errno == errno.EIO
    own = {"out", "out.old", "out.writing", "out.exporting-mine"}
    left = set(os.listdir(tmp_path)) - own
    assert len(left) == ((at, when) == (2, "after"))  # done, but not yet tidied up


def test_what_cannot_be_put_back_is_named(tmp_path, monkeypatch):
    output, rename = earlier(tmp_path), os.rename

    def failing(source: str, target: str) -> None:
        if target == str(output):
            output.mkdir(exist_ok=True)  # somebody else's, meanwhile
            (output / "theirs").touch()
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match=r"what was there is now in .*/out\.exporting-\w+/previous"):
        fill(output)
    [holder] = set(tmp_path.glob("out.exporting-*")) - {tmp_path / "out.exporting-mine"}
    assert contents(holder / "previous") == "out" and os.listdir(output) == ["theirs"]


def test_what_is_put_there_meanwhile_is_not_deleted(tmp_path):
    output = earlier(tmp_path)

    def check(path: str) -> None:
        if len(os.listdir(path)) > 1:
            raise ValueError("holds more")

    with pytest.raises(ValueError, match="holds more"):
        with replacing(str(output), check) as new:
            Path(new, "weights").write_text("new")
            (output / "thesis.tex").touch()
    assert sorted(os.listdir(output)) == ["thesis.tex", "weights"] and contents(output) == "out"
    assert len(os.listdir(tmp_path)) == 4


def test_the_directory_has_the_rights_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        fill(tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    earlier(tmp_path / "disk")
    link = tmp_path / "best"
    link.symlink_to(tmp_path / "disk" / "out")
    fill(link)
    assert link.is_symlink() and contents(tmp_path / "disk" / "out") == "new"
    assert sorted(os.listdir(tmp_path)) == ["best", "disk"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_where_nothing_can_be_written_the_output_is_named(number, tmp_path, monkeypatch):
    def refused(*_: Any, **__: Any) -> str:
        raise OSError(number, os.strerror(number), str(tmp_path / "out.exporting-abc"))

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(OSError) as error:
        fill(tmp_path / "out")
    assert error.value.filename == str(tmp_path / "out") and error.value.errno == number


def test_a_long_name_and_bytes_that_are_no_utf8(tmp_path):
    for name in ("x" * 255, "é" * 127, os.fsdecode(b"caf\xe9")):
        fill(tmp_path / name)
        fill(tmp_path / name)
        assert contents(tmp_path / name) == "new"
        assert os.listdir(tmp_path) == [name]
        shutil.rmtree(tmp_path / name)
