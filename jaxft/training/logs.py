"""What a run says while it goes on: metrics.jsonl, TensorBoard event files, and the terminal.

Not a place for decisions, with one exception: a loss that is not finite ends the run here, since
this is where losses first reach the host.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.terminal.progress import Progress
from jaxft.training.nonfinite import NonFinite
from jaxft.training.rows import Row, RowFile, check_is_file
from jaxft.training.tensorboard import EventFile, check_is_folder
from jaxft.training.window import Fed, Step, Window

# Steps handed in and not yet fetched, at most. With these the device has work queued while the host
# does something else; each of them keeps a batch alive, so more would cost memory.
_IN_FLIGHT = 4
# Seconds of training after which, and the share of them from which, waiting for data is worth a word.
_LONG_ENOUGH, _WAITS = 10.0, 0.1


class Logs:
    """Logs of one process; only the lead process writes anything.

    Use as a context manager: leaving it without an error flushes. To continue, call `resume` first.

    Args:
      directory: the run directory; must exist.
      total_steps, steps_per_epoch: optimizer updates.
      log_every: steps between rows of training metrics.
      tensorboard: also write event files.
      epoch_examples: of an epoch, to tell examples a second; None: the weights of the loss are examples.
      shown: the metrics that an evaluation shows on the terminal, in this order; None: all.
      minimised: the metrics of which less is better; of all others more is.
      when_waiting: what to do where the devices wait for data, said once.
      sources: names of those that are mixed, whose share and loss are written, too.
      parts: names under which the parts of the loss are written.
      nonfinite: what is done about updates that are not finite; None: the first ends the run.
      enabled: False on all processes but the first. They still raise on a non-finite loss, so that
        all processes end at the same step instead of waiting for each other.

    Raises:
      ValueError: something else stands where a file or folder is to be written.
      OSError: a file cannot be written; the message says which and why.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        total_steps: int,
        steps_per_epoch: int,
        log_every: int,
        tensorboard: bool,
        enabled: bool,
        epoch_examples: int | None = None,
        shown: Sequence[str] | None = None,
        minimised: Collection[str] = ("loss",),
        when_waiting: str = "",
        sources: Sequence[str] = (),
        parts: Sequence[str] = (),
        nonfinite: NonFinite | None = None,
    ):
        self.enabled = enabled
        self._shown, self._minimised = shown, minimised
        self._sources, self._parts = sources, parts
        self._nonfinite = nonfinite
        self._epoch_examples = epoch_examples
        self._directory = Path(directory)
        self._steps_per_epoch = steps_per_epoch
        self._log_every = log_every
        self._tensorboard = tensorboard
        self._progress = Progress(total_steps) if enabled else None
        self._rows: RowFile | None = None
        self._events: EventFile | None = None
        self._pending: collections.deque[Step] = collections.deque()
        self._window = Window()
        self._clock: float | None = None  # when the window began; None: no step since a pause
        self._flushed = time.perf_counter()
        self._seconds = 0.0  # of training, in all processes of this run so far
        self._waited = self._waited_before = (
            0.0  # of these for data; the second: what earlier processes did
        )
        self._when_waiting = when_waiting
        self._best: dict[tuple[str, str], float] = {}  # by split and metric
        if enabled:  # before any compute is spent; the files are opened at the first row
            check_is_file(self._directory / "metrics.jsonl")
            check_is_folder(self._directory / "tensorboard")

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def resume(self, step: int, name: str = "resume", message: str = "") -> None:
        """Continue after `step`: rows of later steps, which will be written again, are removed.

        Args:
          name, message: of the event that says so, where it is not a checkpoint that was found.
        """
        self.close()
        self._window, self._clock, self._seconds, self._waited_before = Window(), None, 0.0, 0.0
        if not self.enabled:
            return
        for row in self._open(after=step):
            if row["kind"] == "train":
                self._seconds = row["seconds"]
                self._waited = self._waited_before = row.get("waiting_seconds", 0.0)
            elif row["kind"] == "eval":
                self._note_best(row["split"], _scalars(row))
        self.event(step, name, message or f"continued from the checkpoint of step {step}")

    def train(
        self, step: int, metrics: Mapping[str, jax.Array], learning_rate: float,
        fed: Fed | None = None,
    ) -> None:  # fmt: skip
        """Take the metrics of `step` without waiting for the device.

        A row is written every `log_every` steps and at each flush. Its loss is the mean over the
        examples, its grad_norm the mean over the steps, since the row before.

        Args:
          step: updates done.
          metrics: scalars 'loss' (mean), 'weight' (examples), 'grad_norm', and 'tokens' if known; and
            sums of losses and weights: 'sources' [S, 2] of a mixture, 'parts' [P, 2] of the loss.
          learning_rate: of this update, before any scale per parameter.
          fed: how full its batch was, and how long batches were waited for.

        Raises:
          FloatingPointError, RollBack: loss or gradient of an earlier step is not finite.
        """
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append(Step(step, metrics, learning_rate, time.perf_counter(), fed))
        # Processes that go back do so together, after the same step, whenever each has its numbers.
        early = self._nonfinite is None or self._nonfinite.how != "rollback"
        while self._pending and (
            len(self._pending) > _IN_FLIGHT or (early and self._pending[0].is_ready())
        ):
            self._fetch(self._pending.popleft())

    def left_out(self, step: int, learning_rate: float, fed: Fed | None = None) -> None:
        """Take note of a step whose update was not made; arguments as of `train`."""
        self._pending.append(Step(step, {}, learning_rate, time.perf_counter(), fed))

    def flush(self) -> None:
        """Wait for every step handed in, and write them. To be called before an evaluation or save.

        After it the clock stands still until the next step: pauses do not count as training.

        Raises:
          FloatingPointError, RollBack: see `train`; the parameters are spoilt, the last checkpoint is not.
        """
        while self._pending:
            self._fetch(self._pending.popleft())
        self._write_window()
        self._clock = None
        self._flushed = time.perf_counter()

    def evaluation(
        self, step: int, split: str, metrics: Mapping[str, Any], *, best: bool,
        seconds: float | None = None,
    ) -> None:  # fmt: skip
        """Write and show the metrics of a split.

        Args:
          step: updates done.
          split: 'eval' or 'test'.
          metrics: those of the task.
          best: whether this is the best step so far; shown for 'eval'.
          seconds: what it took; None: the time since the last flush.
        """
        if self._progress is None:
            return
        seconds = time.perf_counter() - self._flushed if seconds is None else seconds
        head = {"kind": "eval", "split": split, "step": step, "epoch": self._epoch(step)}
        self._write({**head, **metrics, "seconds": round(seconds, 3)})
        scalars = _scalars(metrics)
        self._write_scalars(step, split, scalars)
        names = scalars if self._shown is None else self._shown
        shown = {name: scalars[name] for name in names if name in scalars}
        before = {name: self._best[split, name] for name in shown if (split, name) in self._best}
        title = f"{split} after step {step}, epoch {self._epoch(step):.2f}"
        title += ", the best so far" if best and split == "eval" else ""
        improved = {n for n in before if self._is_better(n, shown[n], before[n])}
        self._progress.evaluation(title, shown, before, improved=improved)
        self._note_best(split, scalars)

    @property
    def seconds(self) -> float:
        """Of training up to the last row, in all processes of this run so far, without pauses."""
        return self._seconds

    @property
    def waited(self) -> float:
        """Of these seconds those for which the devices waited for data."""
        return self._waited

    def event(self, step: int, name: str, message: str) -> None:
        """Write and show that something happened: a resume, an early stop, SIGTERM."""
        if self.enabled:
            self._write({"kind": "event", "step": step, "name": name, "message": message})
            self.say(message)

    def say(self, text: str) -> None:
        """Show a message."""
        if self._progress is not None:
            self._progress.say(text)

    def close(self) -> None:
        """Close files and the bar, without waiting for steps."""
        self._pending.clear()
        for part in (self._progress, self._events, self._rows):
            if part is not None:
                part.close()
        self._events = self._rows = None

    def _fetch(self, step: Step) -> None:
        arrays = {name: np.asarray(value) for name, value in step.metrics.items()}
        leaves = arrays.pop("leaves", None)
        names = [name for name in ("sources", "parts") if name in arrays]
        tallies: dict[str, np.ndarray] = {name: arrays.pop(name) for name in names}
        values = {name: float(value) for name, value in arrays.items()}
        made = bool(values) and self._is_finite(step.number, values, leaves)
        if self._progress is None:
            return
        self._clock = step.handed_in if self._clock is None else self._clock
        if made:
            self._window.add(step, values, tallies)
        else:
            self._window.add_left_out(step)
        if step.number % self._log_every == 0:
            self._write_window()
        self._progress.advance(step.number)

    def _is_finite(self, step: int, values: Mapping[str, float], leaves: np.ndarray | None) -> bool:
        """A gradient that is not finite counts too: its update has spoilt the parameters, if it was made."""
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if finite and not values.get("nonfinite"):
            return True
        nonfinite = self._nonfinite or NonFinite(self._directory, writes=self.enabled)
        try:
            self.event(step, "not finite", nonfinite.found(step, values, leaves))
        except FloatingPointError as error:
            self._write_window()
            if self.enabled:
                self._write(
                    {"kind": "event", "step": step, "name": "not finite", "message": str(error)}
                )
            raise
        return False

    def _write_window(self) -> None:
        """One row of training metrics, if there was a step since the last one."""
        window, last = self._window, self._window.last
        if last is None or self._clock is None or self._progress is None or not window.steps:
            return
        now = time.perf_counter()
        elapsed = max(now - self._clock, 1e-9)
        self._window, self._clock, self._seconds = Window(), now, self._seconds + elapsed
        examples = window.weight
        if self._epoch_examples is not None:
            examples = window.steps * self._epoch_examples / self._steps_per_epoch
        values = {
            "epoch": self._epoch(last.number),
            "loss": window.loss / max(window.weight, 1e-9),
            "learning_rate": last.learning_rate,
            "grad_norm": window.grad_norm / window.steps,
            "examples_per_second": round(examples / elapsed, 2),
        }
        if window.tokens:
            values["tokens_per_second"] = round(window.tokens / elapsed, 1)
        if window.places:
            values["padding"] = round(1 - window.filled / window.places, 4)
        for name, loss, weight in window.tally("parts", self._parts):
            values[name] = loss / max(weight, 1e-9)
        for name, loss, weight in window.tally("sources", self._sources):
            values[f"share/{name}"] = weight / max(window.weight, 1e-9)
            if weight > 1e-6:  # a difference of sums, so that none is not exactly 0
                values[f"loss/{name}"] = loss / weight
        row = {"kind": "train", "step": last.number, **values, "seconds": round(self._seconds, 6)}
        if self._nonfinite is not None and self._nonfinite.how != "stop":
            row["nonfinite"] = self._nonfinite.count(last.number)
        if last.fed is not None:
            self._waited = self._waited_before + last.fed.waited
            row["waiting_seconds"] = round(self._waited, 6)
        self._write(row)
        self._write_scalars(last.number, "train", values)
        self._progress.log(last.number, values)
        self._advise()

    def _advise(self) -> None:
        """Once: that the devices wait for data, and what to do."""
        share = self._waited / self._seconds
        if self._when_waiting and self._seconds >= _LONG_ENOUGH and share >= _WAITS:
            self.say(f"the devices wait for data {share:.0%} of the time: {self._when_waiting}")
            self._when_waiting = ""

    def _epoch(self, step: int) -> float:
        return round(step / self._steps_per_epoch, 4)

    def _note_best(self, split: str, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            known = self._best.get((split, name))
            if known is None or self._is_better(name, value, known):
                self._best[split, name] = value

    def _is_better(self, name: str, value: float, than: float) -> bool:
        return value < than if name in self._minimised else value > than

    def _write(self, row: Row) -> None:
        if self._rows is None:
            self._open(after=-1)  # fresh: rows of an attempt that died before its first save go
        assert self._rows is not None
        self._rows.write(row)

    def _write_scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        if self._events is not None:
            self._events.scalars(step, {f"{prefix}/{name}": v for name, v in values.items()})

    def _open(self, *, after: int) -> list[Row]:
        """Open the files, without what they hold of later steps; returns the rows that stay."""
        self._rows = RowFile(self._directory / "metrics.jsonl", after=after)
        if self._rows.copy is not None:
            self.say(
                f"warning: metrics.jsonl held lines that are no rows of this run; they are left out, "
                f"and the file as it was is {self._rows.copy}"
            )
        if self._tensorboard:
            self._events = EventFile(self._directory / "tensorboard", purge_step=after + 1)
        return self._rows.kept


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, float)}
