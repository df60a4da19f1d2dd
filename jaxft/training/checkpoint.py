"""Checkpoints of a run by Orbax: saved in the background, complete or absent, latest and best kept.

Saved are the step, the trainable parameters, their optimizer slots, and a small JSON of what the
loop itself remembers. Frozen parameters are not: they are read again from the source checkpoint,
whose fingerprint the run directory holds. Data position and randomness follow from the step.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxft.training.parallel import Parallel
from jaxft.training.step import TrainState


@dataclasses.dataclass
class _LatestAndBest:
    """Orbax preservation policy: the last `keep` steps and the one named best.

    Orbax's own BestN breaks ties towards the later step; the loop's best is the earliest.
    """

    keep: int
    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One bool a checkpoint, oldest first."""
        del context
        latest = {info.step for info in checkpoints[-self.keep :]}
        return [info.step in latest or info.step == self.best for info in checkpoints]


class Checkpoints:
    """Saves and restores the state of one run. Use as a context manager: leaving it waits for saves.

    Raises:
      OSError: the disk is full or not writable; the checkpoints saved before are untouched.
    """

    def __init__(self, directory: Path, parallel: Parallel, *, keep: int):
        self._parallel = parallel
        self._policy = _LatestAndBest(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True
        )
        with _clear_errors(directory):
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        self._directory = directory

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.wait()
            self._manager.close()
            return
        with suppress(
            Exception
        ):  # a failed save is raised again: not over the error that ends the run
            self._manager.close()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, memory: dict[str, Any], best: int | None) -> None:
        """Begin to save; the step's arrays may be donated at once.

        Args:
          step: updates done. Saving one that exists does nothing.
          state: placed state.
          memory: JSON values that the loop needs to go on.
          best: the step to keep besides the latest ones; may be `step`.
        """
        if self._manager.latest_step() == step:
            return
        self._policy.best = best
        params, slots = self._portable((state.params, {"step": state.step, "opt": state.opt_state}))
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            slots=ocp.args.StandardSave(slots),
            memory=ocp.args.JsonSave(memory),
        )
        with _clear_errors(self._directory):
            self._manager.save(step, args=items)

    def restore(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and memory saved at `step`; `state` gives structure and placement."""
        params, slots = self._abstract((state.params, {"step": state.step, "opt": state.opt_state}))
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(params),
            slots=ocp.args.StandardRestore(slots),
            memory=ocp.args.JsonRestore(),
        )
        before = ["the beginning", *(f"step {other}" for other in self.steps() if other < step)][-1]
        with self._readable(step, f"remove it, and the same command continues from {before}"):
            saved = self._manager.restore(step, args=items)
        params, slots = self._parallel.replicate((saved["params"], saved["slots"]))
        state = dataclasses.replace(
            state, step=slots["step"], params=params, opt_state=slots["opt"]
        )
        return state, saved["memory"]

    def restore_params(self, step: int, params: Any) -> Any:
        """The trainable parameters saved at `step`, without the optimizer's slots."""
        item = ocp.args.Composite(params=ocp.args.StandardRestore(self._abstract(params)))
        with self._readable(step):
            saved = self._manager.restore(step, args=item)
        return self._parallel.replicate(saved["params"])

    def memory(self, step: int) -> dict[str, Any]:
        """Only the JSON saved at `step`."""
        items = ocp.args.Composite(memory=ocp.args.JsonRestore())
        with self._readable(step):
            return self._manager.restore(step, args=items)["memory"]

    def wait(self) -> None:
        """Until every save begun is complete on disk."""
        with _clear_errors(self._directory):
            self._manager.wait_until_finished()

    @contextmanager
    def _readable(self, step: int, advice: str = "") -> Iterator[None]:
        """Turn what Orbax says of a damaged checkpoint into one line with what to do."""
        try:
            yield
        except (ValueError, KeyError, OSError) as error:
            steps = ", ".join(str(other) for other in self.steps() if other != step)
            raise ValueError(
                f"the checkpoint {self._directory / str(step)} is damaged or incomplete; "
                f"{advice or f'there are those of steps {steps or None}'} ({str(error)[:120]})"
            ) from error

    def _portable(self, tree: Any) -> Any:
        """One copy of each array, in a form that any later placement can restore."""
        tree = self._parallel.unreplicate(tree)
        if self._parallel.mode == "pmap" and jax.process_count() > 1:
            # Orbax refuses arrays local to one host of several; as numpy they count as replicated.
            return jax.tree.map(np.asarray, tree)
        return tree

    def _abstract(self, tree: Any) -> Any:
        def leaf(x: jax.Array) -> jax.ShapeDtypeStruct:
            if self._parallel.mode == "pmap":
                here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
                return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=here)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

        return jax.tree.map(leaf, tree)


@contextmanager
def _clear_errors(directory: Path) -> Iterator[None]:
    """Turn the many forms of a full or read-only disk into one OSError with one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        full = "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text
        if full:
            raise OSError(
                errno.ENOSPC,
                f"no space left to save into {directory}; earlier checkpoints are intact: free some "
                "space, then the same command continues",
            ) from error
        if isinstance(error, PermissionError):
            raise OSError(errno.EACCES, f"cannot write checkpoints into {directory}") from error
        raise
