"""Several processes as one run: they join, go on only together, and none dies unnoticed.

A process that stops while the others wait for it in a collective leaves them waiting. So whatever can
stop one of them is either agreed on (`agreement`) or ends it at once (`in_step`); a death ends the others,
noticed by their open connections (`roll_call.py`) or, where a machine is lost or with --distributed, by the
distributed service. Work that is not in a checkpoint by then is done again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from jaxft.config import ConfigDict, override, to_json
from jaxft.experiment import roll_call
from jaxft.terminal.errors import RUN_ERROR, USER_ERROR, describe, exit_status
from jaxft.terminal.flags import Flag

FLAGS = (
    Flag("coordinator", "host:port of process 0, for several processes without a cluster manager"),
    Flag("num_processes", "number of processes, with --coordinator", default=1),
    Flag("process_id", "this process's number, with --coordinator", default=0),
    Flag("distributed", "find the other processes from Slurm, MPI, Kubernetes or the TPU", False),
    Flag("heartbeat", "seconds of silence after which a process is dead and the others end", 60),
    Flag("join_timeout", "seconds that all processes have to come at the start", 300),
)
# Folders of a config that each machine may have under a name of its own.
_OWN = ("data.cache", "train.compile_cache")
_LOST = re.compile(r"heartbeat timeout|CoordinationService|Gloo|NCCL|Connection (reset|closed)")
_MARK = ".seen-by-all-"
_SEEN_WITHIN = 20.0  # seconds until a new file is seen by other machines, generously
_LOST_ADVICE = (
    "has ended or fallen silent; see what it printed last. "
    "The same command continues from the last checkpoint"
)
_DEFINE: dict[type, Any] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer}


_said_on_parting: Callable[[], None] | None = None  # set where there are connections to say it on


def join(argv: Sequence[str]) -> None:
    """Find the other processes, if there are any. To be called before the config is read.

    Only what can talk can agree on who prints an error, so of `argv` this looks at its own flags alone.

    Raises:
      ValueError: flags that do not go together, or --distributed without a cluster.
      ValueError, TimeoutError, ConnectionError, SystemExit: see `roll_call.call`.
    """
    own = _own_flags(argv)
    _check_seconds(own)
    timeouts = {
        "initialization_timeout": own["join_timeout"],
        "heartbeat_timeout_seconds": own["heartbeat"],
        # Processes that end normally do so within moments: see `together`.
        "shutdown_timeout_seconds": own["heartbeat"],
    }
    if own["coordinator"]:
        _check(own["coordinator"], own["num_processes"], own["process_id"])
        _call(own["coordinator"], own["process_id"], own["num_processes"], own["join_timeout"])
        jax.distributed.initialize(
            own["coordinator"],
            own["num_processes"],
            own["process_id"],
            # Else a cluster's variables, if there are any, would leave this process one device.
            cluster_detection_method="deactivate",
            **timeouts,
        )
    elif own["distributed"]:
        try:
            jax.distributed.initialize(**timeouts)
        except ValueError as error:
            raise ValueError(
                "--distributed finds no cluster here (Slurm, Open MPI, Kubernetes, TPU); "
                "give --coordinator, --num_processes and --process_id"
            ) from error
    elif own["num_processes"] > 1 or own["process_id"]:
        raise ValueError("--num_processes and --process_id need --coordinator=HOST:PORT")


def part() -> None:
    """To be called when all processes are about to end: the end of one is then no death to the others."""
    if _said_on_parting is not None:
        _said_on_parting()


def _call(coordinator: str, number: int, count: int, patience: float) -> None:
    global _said_on_parting
    peers = roll_call.call(coordinator, number, count, patience)
    _said_on_parting = roll_call.watch(peers, number, _end)


def _end(who: str, speaks: bool) -> None:
    """End this process, whatever it does: it would wait for one that is no more."""
    if speaks:
        print(f"jaxft: error: {who} {_LOST_ADVICE}", file=sys.stderr, flush=True)
    os._exit(RUN_ERROR)


def several() -> bool:
    """Whether this run has more than one process. Does not start a backend where it need not."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lead() -> bool:
    """Whether this is the process that prints and writes."""
    return not several() or jax.process_index() == 0


def common(config: ConfigDict) -> dict[str, Any]:
    """What of the config all processes must have been given alike, as JSON."""
    return to_json(override(config, dict.fromkeys(_OWN, "")))


@contextmanager
def agreement(about: str) -> Iterator[list[Any]]:
    """All processes leave the block normally, or none does.

    Where it fails, the first process that failed raises its error and the others SystemExit with the
    same status and without a word. The block must not contain collectives.

    Args:
      about: what the facts are, for the message.

    Yields:
      A list for JSON values that must be equal in all processes: the block may append to it.

    Raises:
      ValueError: the facts differ; in one process.
    """
    facts: list[Any] = []
    failure: Exception | None = None
    try:
        yield facts
    except SystemExit:  # all were given --help
        part()
        raise
    except Exception as error:
        if not several():
            raise
        failure = error
    if not several():
        return
    status = (exit_status(failure) or RUN_ERROR) if failure else 0
    digest = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    own = np.array([status, digest], np.uint32)
    statuses, digests = multihost_utils.process_allgather(own).T
    if not statuses.any():
        statuses = np.where(digests == digests[0], 0, USER_ERROR)
        failure = ValueError(f"{about} in this process is not the same as in process 0")
    if not statuses.any():
        return
    part()
    speaker = int(np.flatnonzero(statuses)[0])
    if jax.process_index() != speaker or failure is None:
        raise SystemExit(int(statuses[speaker]))
    if speaker > 0:
        print(f"jaxft: in process {speaker} on {socket.gethostname()}:", file=sys.stderr)
    raise failure


def check_shared(directory: Path) -> None:
    """That what the lead writes into `directory`, which exists there, is seen by all processes.

    Raises:
      ValueError: in one process, SystemExit in the others: it is another directory there, or none.
    """
    if not several():
        return
    # A name that nobody has looked up before: a network mount may remember for a minute that there is none.
    chosen = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    mark = directory / f"{_MARK}{int(chosen)}"
    try:
        with agreement("the run directory"):
            if is_lead():
                for left in directory.glob(f"{_MARK}*"):  # by a kill
                    left.unlink()
                mark.touch()
        with agreement("the run directory"):
            _wait_for(mark)
    finally:
        if is_lead():
            mark.unlink(missing_ok=True)


def _wait_for(mark: Path) -> None:
    deadline = time.monotonic() + _SEEN_WITHIN
    while not mark.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"--workdir {mark.parent} is not the directory that process 0 writes to: give all processes "
                "the same one, on storage that their machines share"
            )
        time.sleep(0.1)


@contextmanager
def in_step() -> Iterator[None]:
    """For the part of a run in which the processes wait for each other: an error ends this one at once.

    Python's normal exit would first wait for the others, and they wait for this one.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not several():
            raise
        # All see a loss that is not finite; the lead's word is enough.
        if isinstance(error, FloatingPointError):
            part()
        if is_lead() or not isinstance(error, FloatingPointError):
            print(_report(error), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_status(error) or RUN_ERROR)


def lead_says(value: int) -> int:
    """The lead's number, or its yes or no, in every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if several() else value


def together(name: str) -> None:
    """Wait until all processes are here, however long the lead still writes."""
    if several():
        multihost_utils.sync_global_devices(name)


def _report(error: BaseException) -> str:
    where = "" if is_lead() else f"process {jax.process_index()}: "
    if _is_lost_peer(error):
        return f"jaxft: error: {where}another process {_LOST_ADVICE}"
    if exit_status(error) is None:
        return "".join(traceback.format_exception(error)).rstrip()
    return f"jaxft: error: {where}{describe(error)}"


def _is_lost_peer(error: BaseException | None) -> bool:
    """Collectives and barriers say so in several ways, the checkpoint writer in a TimeoutError."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            return True
        error = error.__cause__
    return False


def _own_flags(argv: Sequence[str]) -> dict[str, Any]:
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # or the file of `--config FILE` would end the flags
    for flag in FLAGS:
        define = _DEFINE.get(type(flag.default), flags.DEFINE_string)
        define(flag.name, flag.default, flag.help, flag_values=values)
    try:
        values(argv, known_only=True)
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from error
    return {flag.name: values[flag.name].value for flag in FLAGS}


def _check_seconds(own: dict[str, Any]) -> None:
    for name in ("heartbeat", "join_timeout"):
        if own[name] < 1:
            raise ValueError(f"--{name}={own[name]} must be at least 1 (seconds)")


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator={coordinator!r} is not HOST:PORT")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id={process_id} must be at least 0 and below --num_processes={num_processes}"
        )
