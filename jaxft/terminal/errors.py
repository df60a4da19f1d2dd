"""One clear line for what a user can correct, a traceback for what is our fault."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from jaxft.terminal.start import begin, ready
from jaxft.terminal.text import plain

# (logger, part of a message): what libraries say that is false or of no use to a user of a command.
# Everything else they say is shown.
_NOISE = (
    # transformers says so at import where torch is not installed; jaxft does not need it.
    ("transformers", "PyTorch was not found"),
    # Of a damaged checkpoint, which is then either read all the same or an error of its own.
    ("absl", "Failed to json parse Metadata file"),
    ("absl", "Metadata file does not exist"),
    # A save that failed in the background: logged with its traceback by each of Orbax's threads, and
    # then raised where the run waits for it.
    ("absl", "_SignalingThread.run() raised an exception"),
    ("absl", "Handler Commit operations or the Commit callback in background save thread"),
    ("absl", "Save Finalize thread (save_finalize) failed"),
    ("absl", "No space left on device"),
    ("asyncio", "exception was never retrieved"),
    # Said of the first long text, before jaxft cuts it to data.max_length.
    ("transformers.tokenization_utils_base", "Token indices sequence length is longer than"),
    # Once on each machine, by the first report, and over before anyone could act on it.
    ("matplotlib.font_manager", "building the font cache"),
)
# Errors of the operating system that follow from what was asked for: the path and its rights.
_USER_ERRNOS = frozenset(
    (
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EROFS,
    )
    + (errno.EBUSY, errno.ENAMETOOLONG)
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
USER_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Run a command's `main(argv)`; returns its exit status.

    Expected errors become `jaxft: error: …` on stderr: status 2 for a user's mistake (ValueError,
    a path or its rights), 1 for a run that failed (full disk, non-finite loss, out of memory), 130
    for Ctrl-C. Any other error is a bug and keeps its traceback; `--debug` in argv keeps all.
    """
    began = ready()
    _silence_noise()
    _print_anything()
    try:
        return main(argv) or 0
    except BrokenPipeError:
        # The reader of our output has gone (`… | head`). Python flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUN_ERROR
    except (Exception, KeyboardInterrupt) as error:
        status = exit_status(error)
        if status is None or "--debug" in argv:
            raise
        print(f"jaxft: error: {describe(error)}", file=sys.stderr, flush=True)
        return status
    finally:
        if began:  # an interrupt of Python's exit would print a traceback of its threads
            begin()


def exit_status(error: BaseException) -> int | None:
    """Status of an expected error; None for one that should not happen."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if _is_disk_full(error) or is_out_of_memory(error) or isinstance(error, FloatingPointError):
        return RUN_ERROR
    if isinstance(error, OSError):
        return USER_ERROR if error.errno in _USER_ERRNOS else RUN_ERROR
    return USER_ERROR if isinstance(error, ValueError) else None


def describe(error: BaseException) -> str:
    """The message of an expected error: one line, and below it the indented lines of a list."""
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted {error}".rstrip()
    if _is_disk_full(error) and not isinstance(error, OSError):
        return f"no space left on device: {_first_sentence(error)}"
    if is_out_of_memory(error):
        return (
            f"out of memory: {_first_sentence(error)}; a smaller train.batch_size, a larger "
            "train.accumulate, model.remat or parallel.fsdp need less"
        )
    text = _os_message(error) if isinstance(error, OSError) else str(error)
    lines = _join_lines(text) or [type(error).__name__]
    origin = _library_of(error) if isinstance(error, ValueError) else ""
    if origin:  # not one of our own messages, so it may say little about what to change
        lines[0] += f" ({type(error).__name__} from {origin}; --debug shows where)"
    return "\n".join(map(plain, lines))


def _join_lines(text: str) -> list[str]:
    """Lines that start with a space are a list and stay; others continue the line before them."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        if line[:1].isspace() and line.strip():
            lines.append(line.rstrip())
        elif lines and line.strip():
            lines[-1] += " " + line.strip()
        elif line.strip():
            lines.append(line.strip())
    return lines


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE and reason == os.strerror(error.errno):
        reason += "; free some space, then give the same command again"
    if error.filename is None:
        return reason
    return f"{os.fsdecode(error.filename)}: {reason[:1].lower()}{reason[1:]}"


def _is_disk_full(error: BaseException) -> bool:
    """Also when a library reports it as an error of its own, as the checkpoint writer does."""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return True
    return os.strerror(errno.ENOSPC).lower() in str(error).lower()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had not the memory for what was asked of it."""
    # jaxlib's error is a RuntimeError; its message begins with the status of the runtime.
    device = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return device or isinstance(error, MemoryError)


def _first_sentence(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:300]


def _library_of(error: BaseException) -> str:
    """Package that raised the error; empty when jaxft itself or a user's file did."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = frames[-1].filename.split(os.sep) if frames else []
    if "site-packages" not in parts:
        return ""
    package = parts[parts.index("site-packages") + 1].removesuffix(".py")
    return "" if package == "jaxft" else package


def _print_anything() -> None:
    """A name that the terminal's encoding does not have must not end a command: it is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence_noise() -> None:
    for name, part in _NOISE:
        logging.getLogger(name).addFilter(_Without(part))
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _unraisable(raised: Any) -> None:
    """As Python's, without what tensorstore's threads tell an event loop that an error has ended.

    Nor the further arrays of a checkpoint that was deleted while it was read: the first is an error of
    its own, after which another checkpoint is read.
    """
    said = str(raised.exc_value)
    if said != "Event loop is closed" and not said.startswith(
        "Encountered error while reading array"
    ):
        sys.__unraisablehook__(raised)


class _Without(logging.Filter):
    """Drops records whose message contains `part`."""

    def __init__(self, part: str):
        super().__init__()
        self._part = part

    def filter(self, record: logging.LogRecord) -> bool:
        return self._part not in record.getMessage()
