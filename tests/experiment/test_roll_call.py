"""The calls of several processes, here of several threads."""

from __future__ import annotations

import queue
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from jaxft.experiment import roll_call

SOON = 20.0  # seconds; what is waited for comes at once


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def called(address: str, *callers: tuple[int, int], patience: float = SOON) -> list:
    """What each caller (its number, how many it knows of) gets: peers, or what was raised."""

    def call(caller):
        try:
            return roll_call.call(address, *caller, patience)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(callers)) as threads:
        return list(threads.map(call, callers))


@pytest.fixture
def peers(address):
    """Of each of three processes that have come together."""
    found = called(address, (0, 3), (1, 3), (2, 3))
    yield found
    for known in found:
        die(known)
    for thread in threading.enumerate():
        if thread.name == "roll call":
            thread.join()
    for peer in sum(found, []):
        peer.connection.close()


def listening(peers: list, *numbers: int) -> tuple[list[queue.Queue], list]:
    """What each of these processes hears, and how each parts."""
    heard = [queue.Queue() for _ in numbers]
    parts = [
        roll_call.watch(peers[i], i, lambda *said, ear=ear: ear.put(said))
        for i, ear in zip(numbers, heard, strict=True)
    ]
    return heard, parts


def die(peers: list[roll_call.Peer]) -> None:
    """What the kernel does for a process that is killed."""
    for peer in peers:
        with suppress(OSError):  # the other end has done so
            peer.connection.shutdown(socket.SHUT_RDWR)


def test_all_come_and_nobody_else_counts(address):
    port = int(address.rpartition(":")[2])
    with ThreadPoolExecutor(2) as threads:
        lead = threads.submit(roll_call.call, address, 0, 2, SOON)
        while True:  # a probe of the port, as clusters make
            try:
                with closing(socket.create_connection(("localhost", port))) as probe:
                    probe.sendall(b"GET / HTTP/1.1\r\n")
                break
            except ConnectionRefusedError:
                continue
        (other,) = roll_call.call(address, 1, 2, SOON)
        (one,) = lead.result()
    assert (one.number, other.number) == (1, 0) and one.host == other.host == socket.gethostname()
    one.connection.close(), other.connection.close()
    assert roll_call.call(address, 0, 1, SOON) == []


@pytest.mark.parametrize(("victim", "others"), [(2, (0, 1)), (1, (0, 2)), (0, (1, 2))])
def test_a_death_is_heard_by_all_and_told_by_one(peers, victim, others):
    heard, _ = listening(peers, *others)
    die(peers[victim])
    who = f"process {victim} on {socket.gethostname()}"
    assert [ear.get(timeout=SOON) for ear in heard] == [(who, True), (who, False)]


def test_who_parts_does_not_die(peers):
    heard, parts = listening(peers, 0, 1, 2)
    for part in parts:
        part()
    for known in peers:
        die(known)
    assert all(ear.empty() for ear in heard)


@pytest.mark.parametrize(
    ("callers", "message"),
    [
        ([(0, 3), (1, 3), (1, 3)], "--process_id=1 was given twice, to processes on "),
        ([(0, 2), (1, 3)], "process 1 on .* was given --num_processes=3, and process 0 2"),
    ],
)
def test_numbers_that_do_not_fit_are_said_by_process_0_and_end_all(address, callers, message):
    first, *others = called(address, *callers)
    assert isinstance(first, ValueError) and re.match(message, str(first))
    assert all(isinstance(other, SystemExit) and other.code == 2 for other in others)


def test_who_does_not_come_is_named(address):
    first, second = called(address, (0, 4), (2, 4), patience=0.2)
    assert isinstance(first, TimeoutError)
    assert f"heard at {address} from processes 1, 3 of 4 in 0.2 seconds" in str(first)
    assert isinstance(second, SystemExit) and second.code == 1
    with pytest.raises(
        TimeoutError, match=f"process 0 does not answer at {address} .connection refused"
    ):
        roll_call.call(address, 1, 2, 0.1)
    with pytest.raises(TimeoutError, match="does not answer at nowhere.invalid:1 "):
        roll_call.call("nowhere.invalid:1", 1, 2, 0.1)


def test_who_ends_before_all_have_come_ends_the_others(address):
    with ThreadPoolExecutor(2) as threads:
        lead = threads.submit(called, address, (0, 3))
        port = int(address.rpartition(":")[2])
        while True:
            try:
                caller = socket.create_connection(("localhost", port))
                break
            except ConnectionRefusedError:
                continue
        caller.sendall(b'{"process": 1, "of": 3, "host": "there"}\n')
        assert caller.recv(1)  # it is known, and now it dies
        caller.close()
        (error,) = lead.result()
    assert isinstance(error, ConnectionError)
    assert str(error) == "process 1 on there ended before all processes had come"


def test_a_port_that_is_in_use(address, monkeypatch):
    monkeypatch.setattr(roll_call, "_PORT_WAIT", 0.0)
    port = int(address.rpartition(":")[2])
    with socket.create_server(("", port)):
        with pytest.raises(ValueError, match=f"port {port} of .* is in use; give all processes"):
            roll_call.call(address, 0, 1, SOON)
        with pytest.raises(TimeoutError, match="timed out|something else listens there"):
            monkeypatch.setattr(roll_call, "_WORD_WAIT", 0.1)
            roll_call.call(address, 1, 2, 0.1)
