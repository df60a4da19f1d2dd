"""Training on a stream: its blocks one after the other, each batched as any data set is.

The documented exception to "batch i is a pure function of (config, i)": where a block begins is known only
to whoever read those before it. What a run needs to go on is one `Place` a checkpoint.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from jaxft.config import ConfigDict
from jaxft.data.batching import TrainPlan
from jaxft.data.loader import ImageBatches, TextBatches, rows_of
from jaxft.data.stream import Position
from jaxft.data.targets import Batch
from jaxft.experiment.blocks import Blocks
from jaxft.experiment.encoder import Batches, Encoder, Slicing
from jaxft.experiment.split import Split


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a block lies in a run: its number, the step of its first batch, its rows' position."""

    number: int = 0
    first: int = 0
    position: Position = Position()

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, saved: Any) -> Place:
        """What `to_json` gave. ValueError: it is anything else."""
        try:
            number, first, position = (saved[name] for name in ("number", "first", "position"))
            at = Position(position["epoch"], position["row"], position["state"])
            counts = (number, first, at.epoch, at.row)
            right = all(type(n) is int and n >= 0 for n in counts)
            right = right and (at.state is None or isinstance(at.state, Mapping))
        except (TypeError, KeyError):
            right = False
        if not right:
            raise ValueError(
                f"the checkpoint's place in the stream is {saved!r:.80}, which is none; --resume_from=STEP "
                "continues from an earlier checkpoint, 0 begins again"
            )
        return cls(number, first, at)


@dataclasses.dataclass(frozen=True)
class _Block:
    place: Place
    batches: Batches
    end: int
    after: Position
    notes: tuple[str, ...]

    @property
    def next(self) -> Place:
        return Place(self.place.number + 1, self.end, self.after)


class StreamBatches:
    """The batches of a run over a stream; while one block is trained on, the next one is made.

    Steps are to be asked for nearly in their order, as `iterate` does: what lies behind is forgotten.

    made: the batches of the rows of a block, by its number.
    steps: of the run.
    ahead: steps that may be asked for before an earlier one.
    """

    def __init__(
        self,
        blocks: Blocks,
        first: Batches,
        made: Callable[[Split, int], Batches],
        *,
        steps: int,
        ahead: int,
    ):
        self._read, self._made, self._steps, self._ahead = blocks.read, made, steps, ahead
        self._lock = threading.Lock()
        self._begin = _Block(Place(), first, _pass(first), blocks.after, ())
        self._held = [self._begin]
        self._coming: Future[_Block] | None = None
        self._news: list[str] = []

    def __len__(self) -> int:
        return self._steps

    @property
    def first(self) -> Batches:
        """Those of the first block."""
        return self._begin.batches

    @property
    def notes(self) -> tuple[str, ...]:
        """Of the first block."""
        return self.first.notes

    @property
    def plan(self) -> TrainPlan | None:
        """The shapes of every block; None for images."""
        return plan_of(self.first)

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self._steps:
            raise IndexError(f"the run has {self._steps} steps")
        block = self._holding(step)
        return block.batches[step - block.place.first]

    def rows(self, step: int) -> list[int]:
        """What `rows_of` gives, of one of the last steps that were asked for."""
        block = self._holding(step)
        return rows_of(block.batches, step - block.place.first)

    def blank(self, steps: Iterable[int] | None = None, at: int = 0) -> list[Batch]:
        """A batch of padding in each planned shape, or in those of these steps, as far as they are known.

        at: of other batches, those of which step have the same arrays: here of every step.
        """
        with self._lock:
            block = self._held[-1]
        if steps is None:
            return block.batches.blank()
        there = range(block.place.first, block.end)
        return block.batches.blank([n - block.place.first for n in steps if n in there])

    def place(self, step: int) -> dict[str, Any]:
        """What a run that is to begin with the batch of `step` has to know, as JSON values.

        The batch before it has to be among those asked for last.
        """
        with self._lock:
            block = self._find(step)
            return (block.place if block is not None else self._held[-1].next).to_json()

    def go_to(self, saved: Any, step: int) -> None:
        """Begin at `step` with what `place` said of it. ValueError: it is of no use."""
        place = Place.from_json(saved)
        with self._lock:
            if self._find(step) is None:
                self._held, self._coming = [self._loaded(place)], None
            if self._find(step) is None:
                raise ValueError(
                    f"the stream has other rows than when the run was stopped at step {step}: give it back "
                    "as it was, or begin again by --resume_from=0"
                )

    def news(self) -> list[str]:
        """What was noticed in blocks since the last call: rows left out, say."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def _holding(self, step: int) -> _Block:
        with self._lock:
            while (last := self._held[-1]).end <= step:
                coming = self._coming or self._begun(last.next)
                block = coming.result()
                behind = step - self._ahead
                self._held = [*(b for b in self._held if b.end > behind), block]
                self._coming = None
                self._news += block.notes
            if self._coming is None and self._held[-1].end < self._steps:
                self._coming = self._begun(self._held[-1].next)
            found = self._find(step)
        assert found is not None, f"step {step} was asked for too late"
        return found

    def _find(self, step: int) -> _Block | None:
        return next((b for b in self._held if b.place.first <= step < b.end), None)

    def _begun(self, place: Place) -> Future[_Block]:
        """The block there, made in a thread that no end of the process waits for."""
        future: Future[_Block] = Future()

        def work() -> None:
            try:
                future.set_result(self._loaded(place))
            except BaseException as error:  # raised again where the block is needed
                future.set_exception(error)

        threading.Thread(target=work, name="stream", daemon=True).start()
        return future

    def _loaded(self, place: Place) -> _Block:
        if place == self._begin.place:
            return self._begin
        split, after, notes = self._read(place.position)
        batches = self._made(split, place.number)
        return _Block(place, batches, place.first + _pass(batches), after, notes)


# What a run is trained on.
TrainBatches = Batches | StreamBatches


def stream_batches(
    encoder: Encoder, split: Split, blocks: Blocks, config: ConfigDict, steps: int, cut: Slicing
) -> StreamBatches:
    """The batches of a run over a stream whose first block is `split`.

    Every block has an order and corruptions of its own, by the seed and its number.
    """
    in_memory = dataclasses.replace(encoder, cache=None)
    first = in_memory.training(split, config, steps, cut)

    def made(split: Split, number: int) -> Batches:
        own = config.copy_and_resolve_references()
        seeds = np.random.SeedSequence((config.train.seed, number))
        own.train.seed = int(seeds.generate_state(1)[0]) >> 1
        return in_memory.training(split, own, steps, cut, first)

    # As many as `iterate` prepares: the batches in its threads and those behind them.
    ahead = 2 * config.data.workers + 8
    return StreamBatches(blocks, first, made, steps=steps, ahead=ahead)


def plan_of(batches: Batches) -> TrainPlan | None:
    """Of training batches of texts."""
    if isinstance(batches, TextBatches) and isinstance(batches.plan, TrainPlan):
        return batches.plan
    return None


def _pass(batches: Batches) -> int:
    """Steps of one pass over the rows."""
    if isinstance(batches, ImageBatches):
        return batches.sampler.steps_per_epoch
    plan = plan_of(batches)
    assert plan is not None
    return plan.sampler.steps_per_epoch
