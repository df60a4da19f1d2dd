"""A proxy whose connections fail as they are told.

In a process of its own: pyarrow may wait for an answer with the GIL held, as it closes a file.
"""

from __future__ import annotations

import socket
import threading
import time
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from typing import Any

SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 99\r\n"
    b"Connection: close\r\n\r\n"
    + b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>".ljust(
        99
    )
)


class Proxy:
    """Hands connections on to the server of a port, each in its turn as the faults say; then all of them.

    Faults: '503', 'cut' (in the midst of the answer), 'lost' (the request, half of it), 'silent' (for
    `silence` seconds, then closed).
    """

    def __init__(self, to: int, silence: float):
        self.to, self.silence, self.faults, self.count = to, silence, [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def port(self) -> int:
        return self.listener.getsockname()[1]

    def fail(self, faults: list[str]) -> None:
        self.faults = faults

    def accepted(self) -> int:
        return self.count

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            self.count += 1
            fault = self.faults.pop(0) if self.faults else ""
            threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: str) -> None:
        if fault == "silent":
            time.sleep(self.silence)
        with client:
            if fault == "silent":
                return
            if fault == "503":
                client.recv(1 << 16)
                client.sendall(SLOW_DOWN)
                return
            with socket.create_connection(("127.0.0.1", self.to)) as server:
                up = threading.Thread(
                    target=_pump, args=(client, server, 700 if fault == "lost" else None)
                )
                up.start()
                _pump(server, client, 150 if fault == "cut" else None)


def _pump(source: socket.socket, target: socket.socket, most: int | None) -> None:
    """All bytes, or so many of them, and then the end."""
    try:
        while block := source.recv(1 << 16):
            target.sendall(block if most is None else block[:most])
            if most is not None and (most := most - len(block)) <= 0:
                break
        target.shutdown(socket.SHUT_RDWR if most is not None else socket.SHUT_WR)
    except OSError:
        pass


class _Manager(BaseManager):
    pass


_Manager.register("Proxy", Proxy)


class FaultyProxy:
    """The proxy in its process; see `Proxy`.

    Attributes:
      port: where it listens.
      faults: of the next connections; to be set.
      count: of the connections so far.
    """

    def __init__(self, to: int, silence: float):
        self._manager = _Manager(ctx=get_context("spawn"))
        self._manager.start()
        self._proxy: Any = self._manager.Proxy(to, silence)  # type: ignore[attr-defined]
        self.port = self._proxy.port()

    @property
    def count(self) -> int:
        return self._proxy.accepted()

    @property
    def faults(self) -> None:
        raise AttributeError("faults are set alone")

    @faults.setter
    def faults(self, faults: list[str]) -> None:
        self._proxy.fail(faults)

    def end(self) -> None:
        self._manager.shutdown()
