"""The first thing a command does: from here on Ctrl-C and SIGTERM are one line, not a traceback.

Importing jax takes a second or more, during which an interrupt would be raised somewhere inside an
import. Imports nothing heavy itself.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from jaxft.terminal.allocator import use_huge_pages

_ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_USUAL: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


def begin(*, huge_pages: bool = False) -> None:
    """Until `ready`, end the process at a signal: one line, status 130 or 143.

    Signals that the parent has set to be ignored (nohup) stay ignored.

    Args:
      huge_pages: also start the process anew where malloc gains from it; see `use_huge_pages`.
    """
    for number, usual in _USUAL.items():
        if signal.getsignal(number) is usual:
            signal.signal(number, _end)
    if huge_pages:
        # What arrives while the interpreter starts again waits: the mask is kept by exec.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
        use_huge_pages()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)


def ready() -> bool:
    """Everything is imported: signals are Python's own again, which unwinds the command.

    Returns:
      Whether there was a `begin`; its caller begins again when only Python's own exit is left.
    """
    ours = [number for number in _USUAL if signal.getsignal(number) is _end]
    for number in ours:
        signal.signal(number, _USUAL[number])
    return bool(ours)


def _end(number: int, frame: Any) -> None:
    # Not an exception: an import would be left half done, and some turn it into another error.
    os.write(2, f"jaxft: error: {_ENDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)
