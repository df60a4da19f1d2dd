"""One process at a time writes a run directory.

The kernel's lock where there is one: it is released when the process ends, however it ends. Some network
mounts have none; there a file that names the holder takes its place, and outlives a kill.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK, HOLDER = ".lock", ".lock.holder"  # the files' names
# What a file system without locks answers.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_WRITE_SECONDS = 0.5  # between making the holder's file and having written it, generously


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold `directory/.lock` within the block.

    Where the file system has no locks, a warning is printed, and `.lock.holder` (host, process,
    time) keeps out other processes of this host while the one it names lives. A process of another
    host cannot be asked: the warning names it.

    Raises:
      OSError: EBUSY, another process holds it; or the directory cannot be written.
    """
    with open(directory / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise _busy(directory) from error
            if error.errno not in _NO_LOCKS:
                raise
        else:
            yield
            return
    with _named_holder(directory):
        yield


@contextlib.contextmanager
def _named_holder(directory: Path) -> Iterator[None]:
    path = directory / HOLDER
    warning = f"{directory} is on a file system without locks; start no second process on it"
    while True:
        try:
            with open(path, "x") as file:  # made by one process only, also over a network
                json.dump(_self(), file)
            break
        except FileExistsError:
            holder = _read(path)
            if not holder:  # perhaps just made, and not yet written
                time.sleep(_WRITE_SECONDS)
                holder = _read(path)
            if _lives_here(holder):
                raise _busy(
                    directory, f" (process {holder['pid']}; is that none, remove {path})"
                ) from None
            if holder and holder.get("host") != socket.gethostname():
                warning += (
                    f". Process {holder.get('pid')} on {holder.get('host')} began with it at "
                    f"{holder.get('time')} and did not say that it ended: make sure of it"
                )
            path.unlink(missing_ok=True)
    print(f"jaxft: warning: {warning}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _self() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "time": now}


def _read(path: Path) -> dict[str, Any]:
    """{} when it is not what `_self` gives: cut off by a kill, or foreign."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _lives_here(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or type(pid) is not int or pid < 1:
        return False
    return is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    # Left by an earlier process that had our number: in a container most have number 1.
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _busy(directory: Path, who: str = "") -> OSError:
    return OSError(errno.EBUSY, f"--workdir {directory} is in use by another jaxft process{who}")
