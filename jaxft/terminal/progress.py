"""Progress of a run on the terminal: a bar where there is one, plain lines where there is not.

The only writer of stdout while a run goes on; it belongs to process 0.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Collection, Mapping
from typing import TextIO

from rich import box
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from jaxft.terminal.text import is_fancy, plain, plain_console

_REDRAW_SECONDS = 0.2  # between redraws of the bar; one costs about 2 ms
_SLOW_SECONDS = 5.0  # until a line says how far it is, and between two of them
_LINE_SECONDS = 2.0  # between plain lines, so that fast steps do not flood a log file


class Progress:
    """Bar, tables and messages of one run of `total_steps`.

    Args:
      total_steps: optimizer updates of the whole run.
      stream: where to write; None: stdout. Unless it is a terminal, and without NO_COLOR or
        TERM=dumb, the output is plain lines without colour or cursor control.
    """

    def __init__(self, total_steps: int, *, stream: TextIO | None = None):
        stream = stream or sys.stdout
        # A label name must not end a run on an ASCII terminal.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        self._total = total_steps
        self._fancy = is_fancy(stream)
        self._console = plain_console(stream, fancy=self._fancy)
        self._bar: RichProgress | None = None
        self._status = ""
        self._begun: tuple[int, float] | None = None  # first step seen and when
        self._drawn = float("-inf")

    def advance(self, step: int) -> None:
        """`step` is done. Cheap: redraws a few times a second at most."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (step, now)
        if self._fancy and (now - self._drawn > _REDRAW_SECONDS or step == self._total):
            self._drawn = now
            self._draw(step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Training metrics of a logged step: epoch, loss, learning_rate, examples_per_second."""
        parts = [f"epoch {values['epoch']:.2f}", f"loss {values['loss']:.4f}"]
        rate = f"{number(values['examples_per_second'])} examples/s"
        if self._fancy:
            self._status = "  ".join([*parts, rate])
            if step == self._total:
                self._draw(step)
            return
        now = time.monotonic()
        if now - self._drawn > _LINE_SECONDS or step == self._total:
            self._drawn = now
            parts += [f"lr {values['learning_rate']:.2e}", rate, f"ETA {self._eta(step)}"]
            self.say("  ".join([f"step {step}/{self._total}", *parts]))

    def say(self, text: str) -> None:
        """One message, never wrapped by us."""
        self._console.print(Text("\n".join(map(plain, text.split("\n")))), soft_wrap=True)

    def evaluation(
        self, title: str, values: Mapping[str, float], best: Mapping[str, float],
        *, improved: Collection[str] = (),
    ) -> None:  # fmt: skip
        """A table of metrics beside the best so far.

        Args:
          title: which split, which step.
          values: by metric name, of this evaluation.
          best: the same of all evaluations before; empty at the first.
          improved: names of those that are better than `best`.
        """
        table = Table(box=box.SIMPLE_HEAD if self._fancy else None, pad_edge=False, show_edge=False)
        table.add_column("metric")
        for name in ("value", "best before", "change"):
            table.add_column(name, justify="right")
        for name, value in values.items():
            before, change, style = "-", "-", ""
            if name in best:
                before, change = f"{best[name]:.4f}", f"{value - best[name]:+.4f}"
                style = "green" if name in improved else ""
            table.add_row(plain(name), f"{value:.4f}", before, Text(change, style))
        self._console.print(Text(plain(title), "bold" if self._fancy else ""), soft_wrap=True)
        self._console.print(table)
        self._console.print()

    def close(self) -> None:
        """Leave the bar as it is and give the cursor back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, step: int) -> None:
        if self._bar is None:
            # No refresh thread: it would compete with the batch threads for the interpreter lock.
            self._bar = RichProgress(
                BarColumn(bar_width=max(4, min(40, self._console.width - 72))),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                auto_refresh=False,
            )
            self._bar.add_task("", total=self._total)
            self._bar.start()
        parts = [f"step {step}/{self._total}", self._status, f"ETA {self._eta(step)}"]
        text = "  ".join(part for part in parts if part)
        self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        self._bar.refresh()

    def _eta(self, step: int) -> str:
        """Time left, evaluations and saves so far included."""
        first, begun = self._begun or (step, 0.0)
        if step <= first:
            return "-"
        each = (time.monotonic() - begun) / (step - first)
        return clock(each * (self._total - step))


class Milestones:
    """Lines on what takes long before the first update: at most ten, and none where it is over soon.

    Args:
      what: begins each line.
      total: of whatever `done` counts.
      name: of those.
    """

    def __init__(self, what: str, total: int, name: str):
        self._what, self._total, self._name = what, total, name
        self._begun = self._said = time.monotonic()
        self._tenths = self._done = 0

    def done(self, count: int) -> str:
        """So many more are done; what is to be said of it, '' where nothing is."""
        self._done += count
        now, tenths = time.monotonic(), 10 * self._done // self._total
        if tenths == self._tenths or now - self._said < _SLOW_SECONDS or tenths >= 10:
            return ""
        self._tenths, self._said = tenths, now
        left = (now - self._begun) * (self._total / self._done - 1)
        return f"{self._what}: {self._done:,} of {self._total:,} {self._name}, ETA {clock(left)}"


def clock(seconds: float) -> str:
    """
    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number(value: float) -> str:
    """Three digits below 1000, none after the point above.

    >>> number(12.345), number(0.51234), number(12345.6)
    ('12.3', '0.512', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
