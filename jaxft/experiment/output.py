"""Files and exports that a command writes where its user says: over nothing else, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jaxft.experiment.lock import is_alive
from jaxft.models.checkpoint.checkpoint_files import COMPANIONS

# A file's name, and whether an existing one is an earlier output of the command.
Earlier = tuple[str, Callable[[Path], bool]]

# What jaxft writes into a run directory (directory.py), and the folders that are jaxft's alone.
_RUN_PARTS = frozenset(
    """
    .lock best cache checkpoints config.json metrics.jsonl parameters.json predictions report.html
    source.json summary.json tensorboard
    """.split()
)
_CHECKPOINT_FILES = frozenset(("config.json", "model.safetensors.index.json", *COMPANIONS))


def check_output(
    given: str, *, reads: Mapping[str, str], earlier: Callable[[Path], bool], written_by: str
) -> Path:
    """The file that `--output GIVEN` names, if writing it can harm nothing.

    Args:
      given: as on the command line.
      reads: flag -> path or data set name of what the command reads.
      earlier: whether an existing file is an earlier output of this command.
      written_by: the command's name, for the message.

    Returns:
      The file itself: a link is followed, so that the link stays.

    Raises:
      ValueError: no such directory; a directory; something else than a file; what is read; a file of
        a run or of a checkpoint; an existing file that this command did not write.
    """
    path = Path(os.path.realpath(os.path.expanduser(given)))
    if not path.parent.is_dir():
        raise ValueError(f"--output {given}: no such directory {path.parent}")
    if path.is_dir():
        raise ValueError(f"--output {given} is a directory; give a file in it")
    for flag, read in reads.items():
        for one in (read, *read.split(",")):  # of several files each
            if path.exists() and os.path.exists(one) and path.samefile(one):
                raise ValueError(f"--output {given} is the {flag}; give another file")
    if owner := _owner(path):
        raise ValueError(f"--output {given} would be a file of {owner}; give another file")
    if not path.exists():
        return path
    if not path.is_file():
        raise ValueError(f"--output {given} is no regular file; give another")
    if path.stat().st_size and not earlier(path):
        raise ValueError(
            f"--output {given} exists and is no earlier output of {written_by}, so it is left as it "
            "is; give another file"
        )
    return path


def check_pair(
    folder: Path, first: Earlier, second: Earlier, *, reads: Mapping[str, str], written_by: str
) -> tuple[Path, Path]:
    """Two files of a folder, each as `check_output` has it; the folder is made.

    Raises:
      ValueError: as there; or there can be no such folder, or nothing written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder} cannot be a folder: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--output {folder} cannot be written by this user; give another folder")
    one, two = (
        check_output(str(folder / name), reads=reads, earlier=earlier, written_by=written_by)
        for name, earlier in (first, second)
    )
    return one, two


def check_export(given: str, run: Path, source: str) -> Path:
    """The directory that `--output GIVEN` of an export names, which is replaced as a whole.

    Args:
      run: directory of the run.
      source: the checkpoint that it began from.

    Raises:
      ValueError: something else than a checkpoint; a place that is the run, the source or theirs, or
        holds one of them; a place below a file.
    """
    output = Path(given)
    if output.exists() and not (output / "config.json").exists():
        raise ValueError(f"--output {output} exists and is not a checkpoint; it is left as it is")
    target, run = output.resolve(), run.resolve()
    for place, what in ((run, "run"), (Path(source).resolve(), "checkpoint that it began from")):
        if target == place or target in place.parents:
            verb = "is" if target == place else "holds"
            raise ValueError(f"--output {output} {verb} the {what}; give a directory of its own")
    # An export is what best/ holds, also before the run itself has written one.
    if run in target.parents and target.relative_to(run).parts[0] in _RUN_PARTS - {"best"}:
        raise ValueError(
            f"--output {output} belongs to the run, which writes there; give a directory of its own"
        )
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"--output {output}: {above} is a file, not a directory")
    return output


def _owner(path: Path) -> str:
    """Whose file `path` is, or would be taken for; '' for nobody's."""
    for folder in path.parents:
        if not (folder / "config.json").exists():
            continue
        if (folder / "source.json").exists() and path.relative_to(folder).parts[0] in _RUN_PARTS:
            return f"the run {folder}"
        # A checkpoint may hold files that are nobody's, but none that would be read as its own.
        own = path.name in _CHECKPOINT_FILES or path.suffix == ".safetensors"
        if folder == path.parent and own and any(folder.glob("*.safetensors*")):
            return f"the checkpoint {folder}"
    return ""


class Output:
    """A file being written beside `path`, under a name of its own, that takes its place at the end.

    A context manager. Entering it makes the file, so that a folder that cannot be written is found
    before any work. Leaving it normally puts the file on the disk and in its place; leaving it by an
    error removes it, and what was at `path` stays. What a kill has left is removed by the next that writes
    into that folder. It is unbuffered: a buffer that could not be
    written would raise once more when it is closed.

    Raises:
      OSError: naming `path`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._own = f".jaxft-{socket.gethostname()}-"
        name = f"{self._own}{os.getpid()}-{secrets.token_hex(8)}.tmp"
        self._beside = path.with_name(name)

    def __enter__(self) -> Output:
        with self._named():
            self._remove_what_kills_left()
            # By `open`, not by tempfile: the file gets the rights that its user gives new files.
            self._file = open(self._beside, "xb", buffering=0)  # noqa: SIM115 closed in __exit__
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._named(), self._file:
                if kind is None:
                    self._file.truncate()
                    os.fsync(self._file.fileno())
            if kind is None:
                with self._named():
                    if self.path.exists():
                        os.chmod(self._beside, stat.S_IMODE(self.path.stat().st_mode))
                    os.replace(self._beside, self.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._beside)

    def reserve(self, size: int) -> None:
        """Ask the disk for `size` bytes now, where the file system can say whether it has them."""
        if not size or not hasattr(os, "posix_fallocate"):
            return
        with self._named():
            try:
                os.posix_fallocate(self._file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
                    raise

    def write(self, data: bytes) -> int:
        """All of `data`."""
        left = memoryview(data)
        with self._named():
            while left:
                left = left[self._file.write(left) :]
        return len(data)

    # What pyarrow asks of a file.

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is pending."""

    def close(self) -> None:
        """Left to `__exit__`, which knows whether all went well."""

    @property
    def closed(self) -> bool:
        return self._file.closed

    def _remove_what_kills_left(self) -> None:
        for left in self.path.parent.glob(f"{glob.escape(self._own)}*.tmp"):
            number = left.name.removeprefix(self._own).partition("-")[0]
            own = number == str(os.getpid())  # of another file that is being written
            if number.isdecimal() and not own and not is_alive(int(number)):
                left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the file that the user gave; a write, unlike an open, names none."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path)
            raise
