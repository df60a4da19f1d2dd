"""Processes that share a study take trials of it in turns, wherever they run.

Without that two of them, asked in the same instant, would both begin trials at the end of the same list: more
than there are to be, and of two batches mixed.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, RDBStorage

Turn = Callable[[], AbstractContextManager[None]]
_NAME = "jaxft sweep {}"


def turns(storage: BaseStorage, study: int, directory: Path) -> Turn:
    """What makes the turn of this process, within a block; it waits for those of others.

    By a lock of the database, which PostgreSQL and MySQL (MariaDB) have and which ends with the connection,
    so that each process may have a directory of its own; by a file beside one of SQLite; and for anything
    else by a file in the directory, which processes then have to share.

    Args:
      study: its number in the storage.
      directory: of the sweep.
    """
    if not isinstance(storage, RDBStorage):
        return lambda: _file_turn(directory / ".lock")
    engine, kind = storage.engine, storage.engine.dialect.name
    if kind == "postgresql":
        return lambda: _postgresql_turn(engine, study)
    if kind in ("mysql", "mariadb"):
        return lambda: _mysql_turn(engine, study)
    file = engine.url.database
    if kind == "sqlite" and file and not re.match(r":memory:|file:", file):
        path = Path(file)
        return lambda: _file_turn(path.with_name(f".{path.name}.lock"))
    return lambda: _file_turn(directory / ".lock")


@contextlib.contextmanager
def _file_turn(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        # A mount without locks: two processes that begin in the same instant may run a trial twice.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _postgresql_turn(engine: Any, study: int) -> Iterator[None]:
    from sqlalchemy import text

    # Of the transaction and not of the session, which a pooler may hand to somebody else.
    with engine.begin() as connection:
        name = {"name": _NAME.format(study)}
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), name)
        yield


@contextlib.contextmanager
def _mysql_turn(engine: Any, study: int) -> Iterator[None]:
    from sqlalchemy import text

    with engine.connect() as connection:
        name = {"name": _NAME.format(study)}
        # A negative time waits for ever; MariaDB takes it for 0, so it is a day.
        connection.execute(text("SELECT GET_LOCK(:name, 86400)"), name)
        try:
            yield
        finally:
            connection.execute(text("SELECT RELEASE_LOCK(:name)"), name)
