"""Reading a run's checkpoints, also while the run goes on: nothing here writes, renames or deletes.

Orbax's CheckpointManager is unsuitable: its documentation says that it belongs to the process that saves,
and it creates the directory and deletes what is being written there. With read_only=True it does neither,
but it warns on the terminal and remembers steps that have been deleted since. A Checkpointer on one
step's directory does none of that.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxft.training import digests
from jaxft.training.parallel import Parallel
from jaxft.training.step import TrainState

_ITEMS = ("params", "slots", "memory")
_LONGEST = 240  # bytes of what one process tells the others
_STATS = "stats"  # the item of runs whose batch statistics move


class CheckpointGone(ValueError):
    """The checkpoint is not there, or not any more: its run deleted it while it was being read."""


class CheckpointDamaged(ValueError):
    """The checkpoint is there and cannot be used; the message names the newest before it that can."""


class CheckpointReader:
    """Restores states that a run has saved. Every file is held against its checksum first.

    Steps may appear and vanish at any time: a method that is given one raises CheckpointGone when it
    has vanished before all of it was read, and the caller may try the newest.

    Args:
      directory: the run's checkpoints; need not exist.
      parallel: where restored arrays go.
    """

    def __init__(self, directory: Path, parallel: Parallel):
        self._directory = directory
        self._parallel = parallel
        # The step that was just found whole, and its directory: to restore it need not read it twice.
        self._whole: tuple[int, tuple[int, int] | None] | None = None

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints that are there now, oldest first."""
        return saved_steps(self._directory)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def restore(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and memory saved at `step`; `state` gives structure and placement.

        Raises:
          CheckpointDamaged: it is damaged, or not one of this run.
          CheckpointGone: it is gone.
        """
        trees = {
            "params": state.params,
            "slots": {"step": state.step, "opt": state.opt_state},
            **({} if state.stats is None else {_STATS: state.stats}),
        }
        wanted = {
            name: ocp.args.StandardRestore(tree) for name, tree in self._abstract(trees).items()
        }
        saved = self._read(step, **wanted, memory=ocp.args.JsonRestore())
        placed = self._parallel.replicate({name: saved[name] for name in trees})
        restored = dataclasses.replace(
            state,
            step=placed["slots"]["step"],
            params=placed["params"],
            opt_state=placed["slots"]["opt"],
            stats=placed.get(_STATS),
        )
        return restored, saved["memory"]

    def restore_params(self, step: int, params: Any) -> Any:
        """The trainable parameters saved at `step`, without the optimizer's slots.

        Args:
          params: arrays or shapes, not replicated; only shapes and placement matter.
        """
        saved = self._read(step, params=ocp.args.StandardRestore(_shapes(params)))
        return self._parallel.replicate(saved["params"])

    def restore_stats(self, step: int, stats: Any) -> Any:
        """The batch statistics saved at `step`, as `restore_params`; None where none move."""
        if stats is None:
            return None
        saved = self._read(step, stats=ocp.args.StandardRestore(_shapes(stats)))
        return self._parallel.replicate(saved[_STATS])

    def memory(self, step: int) -> Any:
        """Only the JSON saved at `step`."""
        return self._read(step, memory=ocp.args.JsonRestore())["memory"]

    def newest_whole_before(self, step: int) -> int | None:
        """The newest checkpoint before `step` of which nothing is known to be wrong. All must call."""
        earlier = (other for other in reversed(self.steps()) if other < step)
        return next((other for other in earlier if not self.damage(other)), None)

    def damage(self, step: int, parts: Collection[str] | None = None) -> str:
        """What is wrong with the files of `step`, in a few words; '' if nothing is known to be.

        `parts` are items; None: all that were saved.
        In a run of several processes all must call: each reads a share of the files.
        """
        path, share = self._path(step), (jax.process_index(), jax.process_count())
        wanted = _ITEMS if parts is None else parts
        try:
            known = digests.read(path)
            if parts is None and any(name.startswith(f"{_STATS}/") for name in known or ()):
                wanted = (*_ITEMS, _STATS)
            wrong = "" if known is None else digests.check(path, known, wanted, share=share)
        except (ValueError, OSError) as error:
            wrong = str(error)
        wrong = wrong or next((f"{p} is missing" for p in wanted if not (path / p).is_dir()), "")
        if share[1] > 1:
            wrong = _first_of_all(wrong)
        return wrong

    def _read(self, step: int, **items: Any) -> Any:
        """Some items of a step: verified, restored, and still there when the last byte was read."""
        path = self._path(step)
        before = identity(path)
        known, self._whole = self._whole, None
        if known is not None and known[0] == step:  # in all processes, or in none
            before, wrong = known[1], ""
        else:
            wrong = self.damage(step, tuple(items)) if before else ""
        saved, failure = None, None
        if before and not wrong:
            try:
                with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                    saved = checkpointer.restore(path.absolute(), args=ocp.args.Composite(**items))
            except jax.errors.JaxRuntimeError:
                raise  # out of memory, or another process has died
            except Exception as error:  # of many kinds, where a file without checksum is damaged
                failure = error
        # Whatever happened: a step that is gone by now may have been half deleted when it was read.
        if not before or identity(path) != before:
            raise CheckpointGone(f"there is no checkpoint of step {step} in {self._directory} now")
        if failure is not None:
            said = " ".join(str(failure).split()).split(". See full ")[0]
            wrong = f"it cannot be restored: {said[:160] or type(failure).__name__}"
        if wrong:
            raise CheckpointDamaged(self._advice(step, wrong)) from failure
        return saved

    def _advice(self, step: int, wrong: str) -> str:
        """What is wrong with a checkpoint, and the exact way to go on without it."""
        text = f"the checkpoint {self._path(step)} is damaged: {wrong}; it is left as it is"
        if jax.process_count() == 1:
            before = self.newest_whole_before(step) or 0
        else:  # all would have to look together, and this may be said by one of them
            before = max((other for other in self.steps() if other < step), default=0)
        where = f"step {before}" if before else "the beginning"
        return f"{text}. To train on from {where}, give --resume_from={before} to the same command"

    def _path(self, step: int) -> Path:
        return self._directory / str(step)

    def _abstract(self, tree: Any) -> Any:
        """Shapes of one copy of each array of a state."""
        if self._parallel.mode != "pmap":
            return _shapes(tree)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=here), tree
        )


def _shapes(tree: Any) -> Any:
    """Shapes with their placement."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _first_of_all(words: str) -> str:
    """What the first of all processes with any words says. All must call."""
    said = np.zeros(_LONGEST, np.uint8)
    mine = np.frombuffer(words.encode()[:_LONGEST], np.uint8)
    said[: len(mine)] = mine
    found = multihost_utils.process_allgather(said)
    texts = (row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in found)
    return next((text for text in texts if text), "")


def saved_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in a directory, oldest first; [] if it is not there."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.name.isdecimal() and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if name == str(int(name)))


def identity(path: Path) -> tuple[int, int] | None:
    """Of a directory: another one under the same name differs. None without one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
