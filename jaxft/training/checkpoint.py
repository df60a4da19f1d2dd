"""Checkpoints of a run by Orbax: saved in the background, complete or absent, latest and best kept.

Saved are the step, the trainable parameters, their optimizer slots, batch statistics that move, and a
small JSON of what the loop itself remembers. What is frozen is not: it is read again from the source
checkpoint, whose fingerprint the run directory holds. Data position and randomness follow from the step.

One process writes (`Checkpoints`), any number may read meanwhile (`CheckpointReader`):

    N/                       a step; becomes visible, complete and with its checksums, by one rename
    N.orbax-checkpoint-tmp/  a step that is being written, or was when its process was killed
    deleted-N/               a step that is being deleted: renamed first, so no reader sees half of it
    damaged-N/               set aside, since it is damaged or at the user's request; never touched again
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxft.training import digests
from jaxft.training.parallel import Parallel
from jaxft.training.reader import CheckpointReader, identity, saved_steps
from jaxft.training.step import TrainState

_DELETED, _DAMAGED = "deleted-", "damaged-"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which here asks nobody whether the run is being preempted.

    The loop asks at every update (train.py), and the distributed service takes the number in the last
    question, from whatever thread, for the update that this process has reached (`ReachedSyncPoint` in
    tsl/distributed_runtime/preemption: it stores it, and compares for equality with the agreed one).
    Orbax asks about the saved step when a save begins and, on process 0 alone, again from a background
    thread when it is complete, by then updates ago. A SIGTERM that arrives between that question and
    the loop's next one would be agreed on without knowing how far process 0 is: the agreed update could
    lie behind it, where it never stops, while the others wait for it in their save. So only the loop
    asks.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints stay when another is complete, besides the best.

    Attributes:
      last: so many of the latest, at least 1.
      every_steps: for good, those of multiples of so many steps; None: none.
      every_hours: for good, the first, and each that was saved so many hours after the one before it
        that stays for this; by the modification times of the files. None: none.
    """

    last: int = 1
    every_steps: int | None = None
    every_hours: float | None = None

    def of(self, saved: Sequence[tuple[int, float]]) -> set[int]:
        """The steps that stay, of (step, time in seconds) with the oldest first."""
        steps = [step for step, _ in saved]
        kept = set(steps[-self.last :])
        if self.every_steps is not None:
            kept |= {step for step in steps if step % self.every_steps == 0}
        if self.every_hours is not None:
            due = -math.inf
            for step, time in saved:
                if time >= due:
                    kept.add(step)
                    due = time + 3600 * self.every_hours
        return kept


class Checkpoints(CheckpointReader):
    """Saves the state of one run, and restores it. Use as a context manager: leaving it waits for saves.

    There may be one at a time for a directory, in all processes of one run: whoever makes one must
    hold the run directory's lock, since what earlier processes left unfinished is deleted here.

    Raises:
      OSError: the disk is full or not writable; the checkpoints saved before are untouched.
    """

    def __init__(self, directory: Path, parallel: Parallel, *, keep: Keep):
        super().__init__(directory, parallel)
        self._keep = keep
        self._saving = 0
        self._after: threading.Thread | None = None
        self._failure: Exception | None = None
        if jax.process_index() == 0:
            for leftover in directory.glob(f"{_DELETED}[0-9]*"):
                shutil.rmtree(leftover, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._add_digests),
            # No policy: Orbax keeps all. Old steps are deleted in `_complete`, by a rename, and not
            # before the new one is known to be whole.
        )
        with _clear_errors(directory):
            self._manager = _Manager(directory.absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.wait()
            self._manager.close()
            return
        # A failed save is raised again here: not over the error that ends the run.
        with suppress(Exception):
            self._manager.close()
        self._join()

    def save(self, step: int, state: TrainState, memory: dict[str, Any], best: int | None) -> None:
        """Begin to save; the step's arrays may be donated at once.

        Steps that are neither `best` nor among those to keep are deleted once this one is complete.

        Args:
          step: updates done. Saving one that exists does nothing.
          state: placed state.
          memory: JSON values that the loop needs to go on.
          best: the step to keep besides the latest ones; may be `step`.

        Raises:
          OSError: this save cannot begin, or the one before it failed; nothing was deleted then.
        """
        if self._manager.latest_step() == step:
            return
        self._join()
        self._saving = step
        params, slots = self._portable((state.params, {"step": state.step, "opt": state.opt_state}))
        items = {
            "params": ocp.args.StandardSave(params),
            "slots": ocp.args.StandardSave(slots),
            "memory": ocp.args.JsonSave(memory),
        }
        if state.stats is not None:
            items["stats"] = ocp.args.StandardSave(self._portable(state.stats))
        with _clear_errors(self._directory):
            self._raise_failure()
            self._manager.save(step, args=ocp.args.Composite(**items), custom_metadata=digests.MARK)
        if jax.process_index() == 0:
            self._after = threading.Thread(target=self._complete, args=(step, best))
            self._after.start()

    def wait(self) -> None:
        """Until every save begun is complete on disk, and what it replaces is deleted."""
        with _clear_errors(self._directory):
            self._manager.wait_until_finished()
            self._join()
            self._raise_failure()

    def newest_usable(self) -> tuple[int | None, str]:
        """The step to go on from, and a word where it is not the newest. All processes must call.

        Where the newest is damaged it is that before it, of those that are whole; later ones are set
        aside. Where none before it is whole nothing happens: to restore the newest says what is wrong, and
        only the user can decide to begin again. A step that is whole is restored without being held against
        its checksums once more.
        """
        latest = self.latest_step()
        if latest is None:
            return None, ""
        self._whole = (latest, identity(self._path(latest)))
        if not (wrong := self.damage(latest)):
            return latest, ""
        self._whole = None
        before = self.newest_whole_before(latest)
        if before is None:
            return latest, ""
        self._whole = (before, identity(self._path(before)))
        aside = ", ".join(map(str, self.set_aside_after(before)))
        return before, (
            f"warning: the checkpoint of step {latest} is damaged: {wrong}; the run goes on from the one "
            f"of step {before}, and nothing is deleted"
            + (f": set aside as {aside}" if aside else "")
        )

    def set_aside_after(self, step: int) -> list[Path]:
        """Rename every checkpoint later than `step`, so that the run continues from `step`.

        All processes must call. Nothing is deleted: N becomes damaged-N, which nothing here reads.

        Args:
          step: a saved one, or 0: the run begins again.

        Returns:
          The new paths, in the first process; elsewhere [].

        Raises:
          ValueError: there is no checkpoint of `step`.
        """
        check_resume_step(self._directory, step)
        renamed = []
        if jax.process_index() == 0:
            for later in [other for other in self.steps() if other > step]:
                renamed.append(_free_name(self._directory, f"{_DAMAGED}{later}"))
                os.rename(self._directory / str(later), renamed[-1])
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints set aside")
        self._manager.reload()
        return renamed

    def _add_digests(self) -> None:
        """Called by Orbax in one process, in its thread, when all is written and nothing visible yet."""
        (folder,) = self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        digests.write(folder)

    def _complete(self, step: int, best: int | None) -> None:
        """After the save of `step`, in a thread: make sure of it, then delete what it replaces."""
        try:
            self._manager.wait_until_finished()
        except Exception:
            return  # raised again where the run waits
        try:
            missing = digests.seal(self._directory / str(step))
            if missing:
                raise OSError(
                    errno.EIO,
                    f"the checkpoint {self._directory / str(step)} has just been saved, and {missing}; "
                    "earlier ones are kept",
                )
            saved = [(other, _saved_at(self._directory / str(other))) for other in self.steps()]
            kept = {best, *self._keep.of(saved)}
            for other in [other for other, _ in saved if other not in kept]:
                gone = _free_name(self._directory, f"{_DELETED}{other}")
                os.rename(self._directory / str(other), gone)
                shutil.rmtree(gone, ignore_errors=True)  # what is left goes at the next start
        except Exception as error:
            self._failure = error

    def _join(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _portable(self, tree: Any) -> Any:
        """One copy of each array, in a form that any later placement can restore."""
        tree = self._parallel.unreplicate(tree)
        if self._parallel.mode == "pmap" and jax.process_count() > 1:
            # Orbax refuses arrays local to one host of several; as numpy they count as replicated.
            return jax.tree.map(np.asarray, tree)
        return tree


def check_resume_step(directory: Path, step: int) -> None:
    """That a run can be made to continue from `step`. Reads nothing but names.

    Raises:
      ValueError: neither 0 nor a saved step.
    """
    steps = saved_steps(directory)
    if step and step not in steps:
        there = f"there are {', '.join(map(str, steps))}, or 0" if steps else "there is none"
        raise ValueError(f"no checkpoint of step {step} in {directory}; {there} to begin again")


def _saved_at(folder: Path) -> float:
    """When this step was saved, in seconds: a file of it, since the folder may be renamed or copied."""
    try:
        return (folder / digests.NAME).stat().st_mtime
    except OSError:  # of an earlier version, or damaged
        return folder.stat().st_mtime


def _free_name(directory: Path, name: str) -> Path:
    number, path = 1, directory / name
    while path.exists():
        number, path = number + 1, directory / f"{name}-{number + 1}"
    return path


@contextmanager
def _clear_errors(directory: Path) -> Iterator[None]:
    """Turn the many forms of a full or read-only disk into one OSError with one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        full = "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text
        if full:
            # Writes that the library had not begun are reported by Python at its exit, after our line.
            never = r"coroutine '.*' was never awaited"
            warnings.filterwarnings("ignore", message=never, category=RuntimeWarning)
            raise OSError(
                errno.ENOSPC,
                f"no space left to save into {directory}; earlier checkpoints are intact: free some "
                "space, then the same command continues",
            ) from error
        # The library that writes arrays says it in a ValueError of several lines.
        refused = ("PERMISSION_DENIED", "Permission denied", "Read-only file system")
        if isinstance(error, PermissionError) or any(words in text for words in refused):
            raise OSError(errno.EACCES, f"cannot write checkpoints into {directory}") from error
        raise
