"""Several processes call each other before they join, and hear at once when one of them dies.

Process 0 listens at the coordinator's address until all others have called, then leaves the port to JAX's
distributed service. Where a port is taken, a process does not come or two have one number, that service ends
the process by an abort with C++ frames; here each of these is an error of one line.

The connections stay open. The kernel closes those of a process that dies, so that the others need not wait
for missed heartbeats. A machine that is lost closes nothing: that only the heartbeat notices.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from jaxft.terminal.errors import RUN_ERROR, exit_status

_PORT_WAIT = 10.0  # seconds; a process of an earlier run that just ends may still hold the port
_WORD_WAIT = 10.0  # seconds that one line may take to arrive
_SAID_AFTER = 15.0  # seconds of waiting after which process 0 says for whom
_LONGEST = 1000  # bytes of a line
_IDLE = 30  # seconds after which the kernel asks a silent connection for a sign, so that no router forgets it
_WELCOME, _PARTS = {"welcome": True}, {"parts": True}


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another process of this run."""

    number: int
    host: str
    connection: socket.socket

    def __str__(self) -> str:
        return f"process {self.number} on {self.host}"


def call(coordinator: str, number: int, count: int, patience: float) -> list[Peer]:
    """Wait until all processes of the run are there.

    Args:
      coordinator: host:port of process 0.
      number: of this process.
      count: of all processes.
      patience: seconds that they have to come.

    Returns:
      Of process 0 all others, of another process 0.

    Raises:
      ValueError: the port is in use, or the numbers that were given do not fit together; in process 0.
      TimeoutError: not all have come, or process 0 does not answer.
      ConnectionError: a process ended while others were still waited for.
      SystemExit: process 0 raised one of these and has said so.
    """
    host, _, port = coordinator.rpartition(":")
    if number:
        return [_answered(host.strip("[]"), int(port), number, count, patience)]
    peers: dict[int, Peer] = {}
    try:
        with _listening(int(port)) as listener:
            _gather(listener, coordinator, count, patience, peers)
    except Exception as error:
        for peer in peers.values():
            _say(peer.connection, {"status": exit_status(error) or RUN_ERROR})
            peer.connection.close()
        raise
    for peer in peers.values():
        _say(peer.connection, {"all are here": socket.gethostname()})
    return list(peers.values())


def watch(
    peers: Sequence[Peer], number: int, lost: Callable[[str, bool], None]
) -> Callable[[], None]:
    """Hear in a thread of the first death.

    Args:
      peers: from `call`.
      number: of this process.
      lost: called, at most once and in the thread, with who has died and whether it is this process that
        should say so.

    Returns:
      A function to be called when all processes are about to end, as agreed: then nobody dies by ending.
    """
    parted = threading.Event()

    def hear() -> None:
        dead = _first_death(peers)
        if dead is None or parted.is_set():
            return
        if isinstance(dead, Peer):
            for peer in peers:
                _say(peer.connection, {"lost": str(dead)})
            lost(str(dead), number <= 1)  # of process 0's death process 1 speaks
        else:
            lost(dead, False)

    def part() -> None:
        if not parted.is_set():
            parted.set()
            for peer in peers:
                _say(peer.connection, _PARTS)

    threading.Thread(target=hear, name="roll call", daemon=True).start()
    return part


def _first_death(peers: Sequence[Peer]) -> Peer | str | None:
    """Who has died: a peer, or whom process 0 names. None when all have parted."""
    with selectors.DefaultSelector() as heard:
        for peer in peers:
            peer.connection.settimeout(_WORD_WAIT)
            heard.register(peer.connection, selectors.EVENT_READ, peer)
        while heard.get_map():
            for key, _ in heard.select():
                word = _word(key.data.connection)
                if word is None:
                    return key.data
                if "lost" in word:
                    return str(word["lost"])
                heard.unregister(key.fileobj)
    return None


def _listening(port: int) -> socket.socket:
    """A socket at this port of all addresses of the machine."""
    deadline = time.monotonic() + _PORT_WAIT
    both = socket.has_dualstack_ipv6()
    while True:
        try:
            return socket.create_server(
                ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            reason = {errno.EADDRINUSE: "in use", errno.EACCES: "not for ordinary users"}
            raise ValueError(
                f"port {port} of {socket.gethostname()} is {reason.get(error.errno or 0, error)}; give "
                "all processes another one in --coordinator=HOST:PORT"
            ) from error


def _gather(
    listener: socket.socket, coordinator: str, count: int, patience: float, peers: dict[int, Peer]
) -> None:
    """Fill `peers` with processes 1 to count - 1."""
    began, said = time.monotonic(), False
    with selectors.DefaultSelector() as ready:
        ready.register(listener, selectors.EVENT_READ)
        while len(peers) < count - 1:
            waited = time.monotonic() - began
            missing = _named([i for i in range(1, count) if i not in peers])
            if waited > patience:
                raise TimeoutError(
                    f"nothing was heard at {coordinator} from {missing} of {count} in {patience:g} "
                    "seconds: is --num_processes right, were all started, and does --coordinator name "
                    "this machine?"
                )
            if waited > _SAID_AFTER and not said:
                print(f"jaxft: waiting at {coordinator} for {missing} of {count}", file=sys.stderr)
                said = True
            for key, _ in ready.select(1.0):
                if key.fileobj is not listener:
                    raise ConnectionError(f"{key.data} ended before all processes had come")
                peer = _greeted(listener, count, peers)
                if peer is not None:
                    peers[peer.number] = peer
                    ready.register(peer.connection, selectors.EVENT_READ, peer)


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", …" if numbers[8:] else "")
    return f"process{'es' if numbers[1:] else ''} {shown}"


def _greeted(listener: socket.socket, count: int, peers: dict[int, Peer]) -> Peer | None:
    """The process that calls; None where it is none of ours, such as a probe of the port."""
    connection, _ = listener.accept()
    connection.settimeout(_WORD_WAIT)
    word = _word(connection) or {}
    number, of, host = word.get("process"), word.get("of"), word.get("host")
    if type(number) is not int or type(of) is not int:
        connection.close()
        return None
    _keep_alive(connection)
    _say(connection, _WELCOME)
    peer = Peer(number, str(host), connection)
    other = peers.get(number)
    if of == count and other is None:
        return peer
    peers[-1 - len(peers)] = peer  # so that it is told, too
    if of != count:
        raise ValueError(f"{peer} was given --num_processes={of}, and process 0 {count}")
    raise ValueError(
        f"--process_id={number} was given twice, to processes on {other and other.host} and {host}"
    )


def _answered(host: str, port: int, number: int, count: int, patience: float) -> Peer:
    """Process 0, once it has heard of all."""
    connection = _reached(host, port, number, count, patience)
    connection.settimeout(None)  # process 0 has its own patience
    answer = _word(connection) or {}
    if "all are here" in answer:
        return Peer(0, str(answer["all are here"]), connection)
    connection.close()
    if type(answer.get("status")) is int:
        raise SystemExit(answer["status"])
    raise ConnectionError("process 0 ended before all processes had come")


def _reached(host: str, port: int, number: int, count: int, patience: float) -> socket.socket:
    """A connection on which process 0 has bidden this one welcome."""
    began, own = time.monotonic(), {"process": number, "of": count, "host": socket.gethostname()}
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=_WORD_WAIT)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        else:
            _say(connection, own)
            if _word(connection) == _WELCOME:
                _keep_alive(connection)
                return connection
            connection.close()
            reason = "something else listens there"  # perhaps what is left of an earlier run
        if time.monotonic() - began > patience:
            raise TimeoutError(
                f"process {number} on {socket.gethostname()}: process 0 does not answer at {host}:{port} "
                f"({reason}): was it started there, and can this machine reach that port?"
            )
        time.sleep(0.2)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _IDLE)


def _say(connection: socket.socket, word: dict[str, Any]) -> None:
    """To one that may have gone."""
    with suppress(OSError):
        connection.sendall(json.dumps(word).encode() + b"\n")


def _word(connection: socket.socket) -> dict[str, Any] | None:
    """One line; None where the connection has ended, or says what is not of ours."""
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _LONGEST:
            part = connection.recv(1)
            if not part:
                return None
            line += part
        word = json.loads(line)
    except (OSError, ValueError):
        return None
    return word if isinstance(word, dict) else None
