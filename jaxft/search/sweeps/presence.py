"""Which processes of a study are still there: a lock that the kernel takes away, and a sign of life."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from optuna.storages import BaseStorage

_BEAT_SECONDS = 60.0
# A process of another machine that has given no sign for so long is taken for dead. If it was not, its
# trials are run twice, with the same result. Clocks have to agree to within a minute or two.
_GRACE_SECONDS = 300.0
_SIGN = "alive "


class Presence:
    """This process among those of a study, within a block, and whether others are there.

    Of a process of this machine, whose lock is in the same folder, the kernel knows. Of another one the
    study has a time, set every minute.

    Args:
      folder: of the locks, one file a process; made where it is not there.

    Attributes:
      name: of this process, unlike that of any other.
    """

    def __init__(self, storage: BaseStorage, study: int, folder: Path):
        self._storage, self._study, self._folder = storage, study, folder
        self._host = socket.gethostname().replace("/", "_")
        self.name = f"{self._host}.{os.getpid()}.{secrets.token_hex(4)}"
        self._over = threading.Event()

    def __enter__(self) -> Presence:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self._folder / self.name, "w")  # noqa: SIM115 closed in __exit__
        with contextlib.suppress(OSError):  # a mount without locks: signs of life decide
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._sign()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:  # else trials may be left, of which the file says that nobody runs them
            with contextlib.suppress(OSError):
                (self._folder / self.name).unlink()
        self._file.close()

    def lives(self, name: str) -> bool:
        """Whether the process of this name may still run its trials."""
        if name == self.name:
            return True
        if name.startswith(f"{self._host}."):
            locked = self._is_locked(name)
            if locked is not None:
                return locked
        told = self._storage.get_study_user_attrs(self._study).get(f"{_SIGN}{name}")
        return isinstance(told, int | float) and time.time() - told < _GRACE_SECONDS

    def _is_locked(self, name: str) -> bool | None:
        """None: there is no such file here, or it cannot be locked."""
        try:
            with open(self._folder / name) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        return False

    def _sign(self) -> None:
        self._storage.set_study_user_attr(self._study, f"{_SIGN}{self.name}", time.time())

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            self._sign()
