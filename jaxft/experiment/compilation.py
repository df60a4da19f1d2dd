"""What is compiled before the first step, and the cache that makes the next run start faster."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import os
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import jax

from jaxft.experiment.streaming import TrainBatches
from jaxft.training.parallel import Parallel

_WRITER = ".writer-"  # and the number of a process: it may be writing entries
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def use_compilation_cache(directory: str) -> None:
    """Keep compiled programs in `directory` ('' = do not). A program is found by what it computes."""
    if not directory:
        return
    path = Path(directory).expanduser()
    _mend(path)
    jax.config.update("jax_compilation_cache_dir", str(path))
    # The default skips programs that compile within a second; a run has some hundred of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _mend(cache: Path) -> None:
    """Remove entries that a killed process left half written, and note that this one may write some.

    JAX writes an entry in place, and neither replaces nor removes one that is there: a torn one would
    be compiled again, with a warning, in every later run.
    """
    with contextlib.suppress(
        OSError
    ):  # no such rights, no locks on this file system, or noted before
        cache.mkdir(parents=True, exist_ok=True)
        for note in cache.glob(f"{_WRITER}*"):
            with contextlib.suppress(OSError), open(note, "rb") as file:
                # Taken only if its process has ended; and it would have removed the note, but was killed.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_torn(cache, since=os.fstat(file.fileno()).st_mtime)
                note.unlink()
        own = open(cache / f"{_WRITER}{os.getpid()}", "ab")  # noqa: SIM115 held until the process ends
        try:
            fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            own.close()
            return
        atexit.register(_forget, own)


def _remove_torn(cache: Path, *, since: float) -> None:
    for entry in cache.glob("*-cache"):
        if entry.stat().st_mtime >= since and not _is_whole(entry.read_bytes()):
            entry.unlink()


def _forget(note: BinaryIO) -> None:
    with contextlib.suppress(OSError):
        os.unlink(note.name)
    note.close()


def _is_whole(entry: bytes) -> bool:
    """Whether a compressed entry is complete; True for a compression that is not zlib's."""
    if entry[:4] == _ZSTANDARD:
        return True
    try:
        stream = zlib.decompressobj()
        stream.decompress(entry)
        return stream.eof
    except zlib.error:
        return False


def batch_shapes(
    batches: TrainBatches, parallel: Parallel, steps: Iterable[int] | None = None, at: int = 0
) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Every planned shape of a batch, or those that the batches of `steps` have, as on the devices.

    at: a step whose batch has the same arrays.
    """
    return [parallel.abstract_batch(batch) for batch in batches.blank(steps, at)]


def release_free_memory() -> None:
    """Give back to the system what malloc keeps for later; only where the C library is glibc.

    The compiler's own, mostly: 340 of 1,170 MB resident after compiling for a 6-block BERT.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
