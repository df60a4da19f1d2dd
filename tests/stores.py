"""Servers of stores on the loopback: moto's of S3, and an emulator of Google's storage."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

GOOGLES = """
import http.server, sys
http.server.HTTPServer = http.server.ThreadingHTTPServer  # its own answers one request at a time
from gcp_storage_emulator.server import create_server
create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""
# By kind: the module that serves it, and how Python is told to, before the port.
SERVERS = {
    "s3": ("moto", ("-m", "moto.server", "-H", "127.0.0.1", "-p")),
    "gs": ("gcp_storage_emulator", ("-c", GOOGLES)),
}


def installed(kind: str) -> bool:
    return importlib.util.find_spec(SERVERS[kind][0]) is not None


def address(kind: str) -> str:
    """Of the bucket; without an account, Google's library first looks for the machine's own for a while."""
    return f"{kind}://{'anonymous@' * (kind == 'gs')}bucket"


@contextmanager
def serving(kind: str) -> Iterator[int]:
    """The port of a server. Of Google's, the bucket is there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, *SERVERS[kind][1], str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()
