"""Where the examples of step i go: plans, pure functions of (lengths, seed, step).

A training batch is always the same random examples (sampler.py); only their arrangement into rows is chosen
(packing.py), to compute little padding with few compiled programs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxft.data import packing
from jaxft.data.mixture import MixtureSampler
from jaxft.data.packing import Shape
from jaxft.data.pairs import PairLengths, PairSampler
from jaxft.data.sampler import Sampler

# Shapes are chosen from at most this many examples, and from 64 to 256 batches: 0.1 to 1 s.
SAMPLE = 65536

# Standard deviations above the mean that the largest shape holds, in rows: one batch in thirty thousand
# needs more, were their sums of lengths normally distributed.
TAIL = 4.0

# Examples of a group that are packed to see how full its rows become: 1 ms, and within 1 %.
PACKED_SAMPLE = 2048

Lengths = np.ndarray | PairLengths
Draws = MixtureSampler | PairSampler


@dataclasses.dataclass(frozen=True)
class Layout:
    """One batch: slots [rows of all shards, K] int64 are example positions, -1 where empty."""

    length: int
    slots: np.ndarray
    epoch: int


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """Layouts of training steps 0..steps-1.

    shapes: sorted by cost; chosen for batches like those of the run, whatever its seed and length.
    fallback: fits any batch, for one that fits none of the shapes.
    efficiency: real tokens / computed tokens that is to be expected.
    draws: what makes each batch, where it is not all examples in turn.
    multiple: of which batches are padded with rows at their end: those laid out for `shards` serve any.
    """

    lengths: Lengths
    batch_size: int
    steps: int
    seed: int
    shards: int
    pack: bool
    shapes: tuple[Shape, ...]
    fallback: Shape
    efficiency: float
    draws: Draws | None = None
    multiple: int = 1

    def __len__(self) -> int:
        return self.steps

    @property
    def sampler(self) -> Sampler | Draws:
        return self.draws or Sampler(len(self.lengths), self.batch_size, self.seed)

    def layout(self, step: int) -> Layout:
        """The cheapest shape into which the step's examples fit, and their places in it."""
        examples, epoch = self.sampler(step)
        lengths = self.lengths[examples]
        shape = cheapest(self.shapes, lengths, self.shards, self.pack) or self.fallback
        slots = packing.arrange(lengths, examples, shape, self.shards, self.pack)
        return Layout(shape.length, self._padded(slots), epoch)

    def over(self, lengths: np.ndarray, seed: int) -> TrainPlan:
        """The same shapes for other examples, of these lengths [n], in an order by another seed."""
        longest = max(self.fallback.length, packing.row_length(int(lengths.max())))
        fallback = Shape(longest, self.fallback.rows)
        return dataclasses.replace(self, lengths=lengths, seed=seed, fallback=fallback)

    def blank(self, steps: Iterable[int] | None = None) -> list[Layout]:
        """An empty layout of each shape, but for the fallback, which is hardly ever needed.

        steps: only of the shapes that these steps have, the fallback among them if it is needed.
        """
        if steps is not None:
            used = {
                layout.slots.shape + (layout.length,): layout for layout in map(self.layout, steps)
            }
            return [
                Layout(layout.length, np.full_like(layout.slots, -1), epoch=0)
                for layout in used.values()
            ]
        layouts = []
        for length, rows in ((shape.length, shape.rows * self.shards) for shape in self.shapes):
            empty = np.full((rows, packing.slots_per_row(length, self.pack)), -1, np.int64)
            layouts.append(Layout(length, self._padded(empty), epoch=0))
        return layouts

    def _padded(self, slots: np.ndarray) -> np.ndarray:
        return np.pad(slots, ((0, -len(slots) % self.multiple), (0, 0)), constant_values=-1)


def cheapest(shapes: Sequence[Shape], lengths: np.ndarray, shards: int, pack: bool) -> Shape | None:
    """The first of the shapes, sorted by cost, that a batch of these lengths fits."""
    hands = [lengths[hand] for hand in packing.deal(lengths, shards)]
    fullest = max(int(hand.sum()) for hand in hands)
    longest = int(lengths.max())
    for shape in shapes:
        if shape.length >= longest and shape.length * shape.rows >= fullest:
            if packing.rows_needed(hands, shape.length, pack) <= shape.rows:
                return shape
    return None


def plan_training(
    lengths: Lengths,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    shards: int = 1,
    row_multiple: int = 1,
    pack: bool = True,
    max_shapes: int = 4,
    compile_batches: float = 10.0,
    draws: Draws | None = None,
) -> TrainPlan:
    """Plans a run over examples of these lengths: [n] int32, or of pairs of them.

    The shapes depend on the lengths and the batch size, not on the seed, and on the number of steps
    only in powers of four: programs that were compiled for one run serve the next.

    shards: equal parts of a batch's rows, one per data-parallel device.
    row_multiple: each shard's rows are a multiple of it (gradient accumulation splits them).
    pack: several examples in a row; otherwise one in each, as usual.
    max_shapes: at most so many programs compiled ahead. One more, that any batch fits, is compiled if a
      batch turns up that fits none of them.
    compile_batches: a compilation is worth this many average batches: a shape that saves less over
      the run is not used. 10 is a few seconds on a CPU, where a small BERT's step takes 0.3 to 1 s.
    draws: which examples make each batch, where they are of several sources, or pairs.
    """
    _check(lengths, batch_size, shards)
    batches = _typical_batches(lengths, batch_size, draws)
    allowed = _row_lengths(lengths, pack)
    needs = _needs(batches, allowed, shards, row_multiple, pack)
    real = sum(int(batch.sum()) for batch in batches)
    cost = compile_batches * real / len(batches) / shards
    most = _round_up(math.ceil(batch_size / shards), row_multiple)
    weight = 4.0 ** math.ceil(math.log(steps, 4)) / len(batches)
    whole = np.array([len(batch) == batch_size for batch in batches])
    tail = _tail(needs, whole, row_multiple, most)
    shapes = packing.choose_shapes(needs, allowed, tail, max_shapes, weight, cost)
    used = [cheapest(shapes, batch, shards, pack) for batch in batches]
    computed = sum(shape.length * shape.rows * shards for shape in used if shape)
    fallback = Shape(allowed[-1], most)
    return TrainPlan(
        lengths, batch_size, steps, seed, shards, pack, tuple(shapes), fallback, real / computed,
        draws,
    )  # fmt: skip


def _typical_batches(lengths: Lengths, batch_size: int, draws: Draws | None) -> list[np.ndarray]:
    """The examples' lengths in each of some random batches, the same for every run.

    Drawn by epochs like those of a run, so that the partial batch at the end of one is among them.
    """
    count = min(max(64, SAMPLE // batch_size), 256)
    if draws is not None:
        same = dataclasses.replace(draws, seed=0)
        return [lengths[same(step)[0]] for step in range(count)]
    random = np.random.default_rng(0)
    batches: list[np.ndarray] = []
    while len(batches) < count:
        # Of a long epoch only as much as is looked at.
        wanted = min(len(lengths), (count - len(batches)) * batch_size)
        epoch = lengths[random.choice(len(lengths), wanted, replace=False)]
        batches += np.split(epoch, range(batch_size, len(epoch), batch_size))
    return batches


def _tail(needs: np.ndarray, whole: np.ndarray, multiple: int, most: int) -> np.ndarray:
    """Rows that hold nearly every batch of a run, at each row length; 0 where some do not fit.

    The batches looked at are few, so what they need at most is too little for the others. `whole` says
    which are not the partial ones at the end of an epoch, which would spread the others' needs.
    """
    needed = needs[whole] if whole.any() else needs
    tail = np.ceil(needed.mean(0) + TAIL * needed.std(0)).astype(np.int64)
    tail = np.maximum(_round_up(tail, multiple), needed.max(0) + multiple)
    return np.where((needs > 0).all(0), np.minimum(tail, most), 0)


def _check(lengths: Lengths, batch_size: int, shards: int) -> None:
    if not len(lengths):
        raise ValueError("there are no examples to make batches of")
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    if batch_size < shards:
        raise ValueError(f"a batch of {batch_size} cannot be divided over {shards} devices")


def _row_lengths(lengths: Lengths, pack: bool) -> list[int]:
    shortest = packing.row_length(int(lengths.min()))
    longest = packing.row_length(int(lengths.max()))
    if pack:
        longest = max(longest, packing.PACKED_LENGTH)
    return [length for length in packing.ROW_LENGTHS if shortest <= length <= longest]


def _needs(
    batches: Sequence[np.ndarray], allowed: Sequence[int], shards: int, multiple: int, pack: bool
) -> np.ndarray:
    """Rows that each batch needs at each row length [batches, lengths]; 0 where it does not fit."""
    needs = np.zeros((len(batches), len(allowed)), np.int64)
    for b, batch in enumerate(batches):
        hands = [batch[hand] for hand in packing.deal(batch, shards)]
        longest = int(batch.max())
        for column, length in enumerate(allowed):
            if length >= longest:
                needs[b, column] = packing.rows_needed(hands, length, pack)
    return -(-needs // multiple) * multiple


def _round_up(number: Any, multiple: int) -> Any:
    """The next multiple of a number, or of each in an array."""
    return -(-number // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """Layouts that hold every example exactly once, those of shorter rows first.

    slots: for each shape, [batches, rows of all shards, K].
    """

    shapes: tuple[Shape, ...]
    slots: tuple[np.ndarray, ...]
    efficiency: float

    def __len__(self) -> int:
        return sum(map(len, self.slots))

    def layout(self, step: int) -> Layout:
        for shape, slots in zip(self.shapes, self.slots, strict=True):
            if step < len(slots):
                return Layout(shape.length, slots[step], epoch=0)
            step -= len(slots)
        raise IndexError(f"the plan has {len(self)} steps")

    def over(self, entries: np.ndarray, lengths: np.ndarray) -> EvalPlan:
        """In those of the same shapes that are needed some of the entries [m], of these lengths [n]."""
        by_length = entries[np.argsort(lengths[entries], kind="stable")]
        groups = dict(_groups(lengths[by_length], [shape.length for shape in self.shapes]))
        old, slots = dict(zip(self.shapes, self.slots, strict=True)), []
        for shape in (used := [shape for shape in self.shapes if shape.length in groups]):
            own, (_, height, count) = by_length[groups[shape.length]][::-1], old[shape].shape
            rows = packing.pack_dataset(lengths[own], shape.length, count)
            full = _round_up(int(rows.max()) + 1, height)
            slots.append(packing.place(own, rows, full, count).reshape(-1, height, count))
        return dataclasses.replace(self, shapes=tuple(used), slots=tuple(slots))

    def blank(self, steps: Iterable[int] | None = None) -> list[Layout]:
        """An empty layout of each shape, all of which are used: `steps` changes nothing."""
        pairs = zip(self.shapes, self.slots, strict=True)
        return [Layout(shape.length, np.full_like(slots[0], -1), epoch=0) for shape, slots in pairs]


def plan_evaluation(
    lengths: np.ndarray,
    *,
    batch_size: int,
    shards: int = 1,
    row_multiple: int = 1,
    pack: bool = True,
    max_shapes: int = 3,
    compile_batches: float = 5.0,
) -> EvalPlan:
    """Plans one pass over all examples; a batch has about as many tokens as batch_size examples.

    Order does not matter here, so examples are packed over the whole dataset, in up to max_shapes
    groups by length: nearly every row is full. `index` in a batch says where each example is.
    Arguments as in `plan_training`; a forward pass compiles faster, so a shape is worth less.
    """
    _check(lengths, batch_size, shards)
    by_length = np.argsort(lengths, kind="stable")
    tokens = batch_size * float(lengths.mean())
    # Each group ends in a batch that is half empty on average.
    group_cost = (compile_batches + 0.5) * tokens
    allowed = _row_lengths(lengths, pack)
    cuts = _best_cuts(lengths[by_length], allowed, max_shapes, pack, group_cost)
    shapes, slots = [], []
    for length, group in _groups(lengths[by_length], cuts):
        examples = by_length[group][::-1]
        count = packing.slots_per_row(length, pack)
        rows = packing.pack_dataset(lengths[examples], length, count)
        most = tokens / length if pack else batch_size
        per_shard, batches = _divide(int(rows.max()) + 1, most, shards, row_multiple)
        placed = packing.place(examples, rows, batches * shards * per_shard, count)
        shapes.append(Shape(length, per_shard))
        slots.append(placed.reshape(batches, shards * per_shard, count))
    computed = sum(s.shape[0] * s.shape[1] * c.length for c, s in zip(shapes, slots, strict=True))
    return EvalPlan(tuple(shapes), tuple(slots), float(lengths.sum() / computed))


def _divide(rows: int, most: float, shards: int, multiple: int) -> tuple[int, int]:
    """Rows per shard and number of batches, all about equally full, for a number of rows."""
    per_shard = _round_up(max(1, round(most / shards)), multiple)
    batches = math.ceil(rows / (per_shard * shards))
    return _round_up(math.ceil(rows / (batches * shards)), multiple), batches


def _best_cuts(
    ascending: np.ndarray, allowed: Sequence[int], most: int, pack: bool, group_cost: float
) -> tuple[int, ...]:
    """The row lengths, at most `most` of the allowed ones, that need the least work."""

    @functools.cache
    def work(length: int, start: int, stop: int) -> float:
        # How well a group packs is tried on some of it: rows of 48 hold one text of 26, not two.
        sample = ascending[start:stop][:: -max(1, (stop - start) // PACKED_SAMPLE)].tolist()
        rows = max(packing.pack_rows(sample, length, packing.slots_per_row(length, pack))) + 1
        return group_cost + rows * (stop - start) / len(sample) * Shape(length, 1).cost

    def total(cuts: tuple[int, ...]) -> float:
        return sum(work(length, g.start, g.stop) for length, g in _groups(ascending, cuts))

    *shorter, longest = allowed
    choices = (c for n in range(most) for c in itertools.combinations(shorter, n))
    return min(((*choice, longest) for choice in choices), key=total)


def _groups(ascending: np.ndarray, cuts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """The non-empty stretches of ascending lengths that go into rows of each length."""
    start = 0
    for length in cuts:
        stop = int(np.searchsorted(ascending, length, side="right"))
        if stop > start:
            yield length, slice(start, stop)
        start = stop
