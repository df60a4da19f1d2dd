"""TensorBoard event files by tensorboardX's protocol buffers: neither tensorflow nor torch is needed.

Its SummaryWriter is not used: it writes in a thread and at exit, where a full disk ends in a traceback.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxft.training.rows import unwritable


class EventFile:
    """One new event file in `directory`.

    Args:
      directory: created if missing; TensorBoard reads all event files in it as one run.
      purge_step: what earlier files hold of this step and later ones is void (the run was killed
        and continues from before it).

    Raises:
      OSError: it cannot be written.
    """

    def __init__(self, directory: Path, *, purge_step: int):
        with _without(
            "torch"
        ):  # which tensorboardX imports where it is installed: 1.2 s and 180 MB
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
            from tensorboardX.record_writer import masked_crc32c

        self._event, self._summary, self._checksum = Event, Summary, masked_crc32c
        # The last part tells apart two files begun within one second.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{purge_step}"
        self._path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "wb", buffering=0)  # as in rows.py
        except OSError as error:
            raise unwritable(error, directory) from error
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one step by tag, such as {'train/loss': 0.5}."""
        pairs = [self._summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]
        self._write(step=step, summary=self._summary(value=pairs))

    def close(self) -> None:
        """Nothing is pending: only the file handle is given back."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        """One record: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details"""
        data = self._event(wall_time=time.time(), **fields).SerializeToString()
        size = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", self._checksum(part)) for part in (size, data)]
        record = memoryview(size + sums[0] + data + sums[1])
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError as error:
            raise unwritable(error, self._path) from error


def check_is_folder(directory: Path) -> None:
    """That event files can be put there.

    Raises:
      ValueError: something else than a folder stands there.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(
            f"{directory} is in the way, it is no folder; move it, then give the same command"
        )


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Importing `module` fails in here, as where it is not installed; nothing if it is imported."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
