"""The arrays of step i for this process, and reading ahead: batches are made while others run.

`TextBatches` and `ImageBatches` are pure functions of the step: starting at step s gives what
counting up to s gives. Each process makes only its own contiguous rows of the global batch.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, Self, TypeVar

import grain
import numpy as np

from jaxft.data.batching import EvalPlan, Layout, TrainPlan
from jaxft.data.corruption import Corruption
from jaxft.data.filling import fill_answers, fill_kept, fill_text
from jaxft.data.images import Images
from jaxft.data.kept import Kept, Schedule
from jaxft.data.mixing import Mixing, mixed_targets
from jaxft.data.mixture import Mixture, MixtureSampler
from jaxft.data.sampler import Sampler
from jaxft.data.targets import Batch, Targets, places
from jaxft.data.tokens import Tokens

T = TypeVar("T")


class Batches(Protocol):
    """What `iterate` reads: a batch for each step in range(len)."""

    def __len__(self) -> int: ...
    def __getitem__(self, step: int) -> Batch: ...


class TextBatches:
    """Packed text: rows of L tokens with up to K examples each.

    A batch has, for R rows: input_ids, segment_ids (1..K, 0 is padding), positions (from 0 in each
    text), token_type_ids and whatever else `Tokens.extra` says of tokens, such as words (-1 for none):
    [R, L] int32; starts (column of a text's first token), index (row in the source, -1 is empty):
    [R, K] int32; and what the targets fill in: with one target an example, labels [R, K] and weight (0
    is empty) [R, K] float32.

    Of examples of G texts, slots hold G each: segment_ids are 1..K * G, starts [R, K * G]. Where an
    example is several windows, each is in a slot of its own, and window [R, K] is its number.

    Where texts are to be given (`Tokens.answers`), what `fill_answers` says, in as many rows. Where
    something is kept of a frozen prefix, `fill_kept`.

    corrupt: changes the inputs, before the targets see them; by the epoch of a training batch, and as in
      epoch 0 where every example is read once.
    mixture: of training batches of several sources; source [R, K] is then the number of each one's.
    """

    def __init__(
        self,
        tokens: Tokens,
        targets: Targets,
        plan: TrainPlan | EvalPlan,
        *,
        corrupt: Corruption | None = None,
        mixture: Mixture | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        assert tokens.examples == len(targets)
        self.tokens, self.targets, self.plan = tokens, targets, plan
        self.corrupt, self.mixture = corrupt, mixture
        self.process_index, self.process_count = process_index, process_count
        self.kept = Schedule()

    def __len__(self) -> int:
        return len(self.plan)

    def with_kept(self, kept: Schedule) -> Self:
        """The same batches, with what is kept of a frozen prefix."""
        found = copy.copy(self)
        found.kept = kept
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the texts is not read, for the terminal."""
        notes, answers = [], self.tokens.answers
        if self.tokens.cut:
            longest, what = int(self.tokens.lengths.max()), self.tokens.cut_things
            notes.append(
                f"{self.tokens.cut} {what} beyond {longest} tokens of their text are not read"
            )
        if answers is not None:
            full = int((answers.tokens.lengths == answers.longest).sum())
            notes += [
                f"{full} of {len(answers.tokens)} texts to be given have {answers.longest} tokens, where "
                "longer ones are cut"
            ] * (full > 0)
        return tuple(notes)

    def __getitem__(self, step: int) -> Batch:
        return self.fill(self.plan.layout(step), self.kept.at(step))

    def blank(self, steps: Iterable[int] | None = None, at: int = 0) -> list[Batch]:
        """A batch of padding in each planned shape, or in those that these steps have.

        at: a step that has the same arrays.
        """
        return [self.fill(layout, self.kept.at(at)) for layout in self.plan.blank(steps)]

    def _own(self, rows: int) -> slice:
        """This process's part of the rows of a batch."""
        return _own_rows(rows, self.process_index, self.process_count)

    def fill(self, layout: Layout, kept: Kept | None) -> Batch:
        """The arrays of examples that lie like this, with what is kept of a frozen prefix."""
        slots = layout.slots[self._own(len(layout.slots))]
        tokens = self.tokens
        inputs = fill_text(tokens, slots, layout.length)
        if kept is not None:
            inputs |= fill_kept(kept, tokens, slots, layout.length)
        if tokens.answers is not None:
            inputs |= fill_answers(tokens.answers, slots, layout.length)
        if self.corrupt is not None:
            inputs = self.corrupt(inputs, slots, layout.epoch)
        if tokens.windows is not None:
            examples = np.where(slots >= 0, tokens.example_of(slots), -1)
            number = slots - tokens.windows[examples]
            inputs["window"] = np.where(slots >= 0, number, 0).astype(np.int32)
            slots = examples
        return _filled(self.targets, slots, inputs, self.mixture)


class PairBatches(TextBatches):
    """Packed texts in pairs, which do not see each other; the plan's slots [R, K] hold pairs.

    A batch is as of `TextBatches` for examples of two texts: segment_ids are 1..2K, starts [R, 2K]. Its
    labels [R, K] float32 are 1 where both texts have the same label, else 0; index is the row of the first.
    """

    def fill(self, layout: Layout, kept: Kept | None) -> Batch:
        slots = layout.slots[self._own(len(layout.slots))]
        real = slots >= 0
        both = np.stack(np.divmod(np.where(real, slots, 0), len(self.targets)), axis=-1)
        texts = np.where(real[..., None], both, -1)
        entries = texts.reshape(len(slots), -1)
        inputs = fill_text(self.tokens, entries, layout.length)
        if kept is not None:
            inputs |= fill_kept(kept, self.tokens, entries, layout.length)
        ids = self.targets.strata()[both]
        labels = np.where(real, ids[..., 0] == ids[..., 1], 0).astype(np.float32)
        return inputs | {"labels": labels, **places(self.targets.rows, texts[..., 0])}


class ImageBatches:
    """Images: pixel_values [B, H, W, C] float32; index [B] int32; and what the targets fill in.

    steps: of the run; None is one pass in the source's order (evaluation). The batch is padded
    with zero images of weight 0 to a multiple of shards * row_multiple.
    mixture: as of `TextBatches`; source [B].
    mixing: of each image with the next of the global batch; targets are then those of both, see
      `mixed_targets`. source and index are the image's own.
    """

    def __init__(
        self,
        images: Images,
        targets: Targets,
        *,
        batch_size: int,
        steps: int | None,
        seed: int,
        shards: int = 1,
        row_multiple: int = 1,
        mixture: Mixture | None = None,
        mixing: Mixing | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        assert len(images) == len(targets)
        if not len(targets):
            raise ValueError("there are no examples to make batches of")
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {batch_size}")
        self.images, self.targets = images, targets
        self.mixture, self.mixing = mixture, mixing
        self.sampler: Sampler | MixtureSampler = (
            Sampler(len(targets), batch_size, None if steps is None else seed)
            if mixture is None
            else mixture.sampler(targets.rows, batch_size=batch_size, seed=seed)
        )
        self.steps = self.sampler.steps_per_epoch if steps is None else steps
        multiple = shards * row_multiple
        self.rows = -(-batch_size // multiple) * multiple
        self.process_index, self.process_count = process_index, process_count
        self.kept = Schedule()

    def __len__(self) -> int:
        return self.steps

    def with_kept(self, kept: Schedule) -> Self:
        """The same batches, with what is kept of a frozen prefix in place of the pixels."""
        found = copy.copy(self)
        found.kept = kept
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing of an image is left out."""
        return ()

    def __getitem__(self, step: int) -> Batch:
        examples, epoch = self.sampler(step)
        slots = self._own(examples)
        if (kept := self.kept.at(step)) is not None:
            return _filled(self.targets, slots, fill_kept(kept, None, slots), self.mixture)
        own, pixels = slots[slots >= 0], self._no_pixels()
        found = self.images.pixels(own, epoch)
        nexts, shares = None, np.ones(len(slots), np.float32)
        if self.mixing:
            nexts = self._own(np.roll(examples, -1))
            if len(own):
                shares[: len(own)] = self._mix(found, own, nexts[len(own) - 1], epoch)
        pixels[: len(own)] = found
        return self._with_targets(pixels, slots, nexts, shares)

    def _own(self, examples: np.ndarray) -> np.ndarray:
        """This process's slots of the global batch, -1 where empty: after all others."""
        slots = np.full(self.rows, -1, np.int64)
        slots[: len(examples)] = examples
        return slots[_own_rows(self.rows, self.process_index, self.process_count)]

    def _no_pixels(self) -> np.ndarray:
        return np.zeros((self.rows // self.process_count, *self.images.shape), np.float32)

    def _mix(self, pixels: np.ndarray, own: np.ndarray, after: int, epoch: int) -> np.ndarray:
        """Mixes the images of `own` in place, the last with that of the example `after`."""
        assert self.mixing is not None
        alone = after == own[0]  # the whole batch is here
        last = pixels[0].copy() if alone else self.images.pixels(np.array([after]), epoch)[0]
        return self.mixing.mix(pixels, last, self.targets.rows[own], epoch)

    def blank(self, steps: Iterable[int] | None = None, at: int = 0) -> list[Batch]:
        """A batch of padding in the one shape that there is, whatever the steps; with the arrays of `at`."""
        slots = np.full(self.rows // self.process_count, -1, np.int64)
        if (kept := self.kept.at(at)) is not None:
            return [_filled(self.targets, slots, fill_kept(kept, None, slots), self.mixture)]
        shares = np.ones(len(slots), np.float32)
        return [
            self._with_targets(self._no_pixels(), slots, slots if self.mixing else None, shares)
        ]

    def _with_targets(
        self, pixels: np.ndarray, slots: np.ndarray, nexts: np.ndarray | None, shares: np.ndarray
    ) -> Batch:
        """nexts: the slots of the images that these are mixed with; None: they are not mixed."""
        inputs = {"pixel_values": pixels}
        batch = _filled(self.targets, slots, inputs, self.mixture)
        if nexts is None:
            return batch
        return mixed_targets(batch, self.targets.fill(nexts, inputs), shares)


def _filled(targets: Targets, slots: np.ndarray, inputs: Batch, mixture: Mixture | None) -> Batch:
    batch = inputs | targets.fill(slots, inputs)
    return batch if mixture is None else batch | {"source": mixture.source_of(batch["index"])}


def _own_rows(rows: int, process_index: int, process_count: int) -> slice:
    if rows % process_count:
        raise ValueError(f"a batch of {rows} rows cannot be divided over {process_count} processes")
    own = rows // process_count
    return slice(process_index * own, (process_index + 1) * own)


def filled(batch: Batch) -> tuple[int, int]:
    """(places of a batch that hold a token or an image, places that are computed), of this process."""
    held = batch["segment_ids"] > 0 if "segment_ids" in batch else batch["index"] >= 0
    return int(held.sum()), held.size


def rows_of(batches: TextBatches | ImageBatches, step: int) -> list[int]:
    """Numbers of the source's rows in the batch of a step, of all processes; of pairs the first's."""
    whole = copy.copy(batches)
    whole.process_index, whole.process_count = 0, 1
    index = whole[step]["index"]
    return np.unique(index[index >= 0]).tolist()


def iterate(
    batches: Batches,
    start: int = 0,
    stop: int | None = None,
    *,
    put: Callable[[Batch], T],
    threads: int = 2,
    ahead: int = 2,
) -> Generator[T]:
    """put(batches[start]), put(batches[start + 1]), … up to stop, made ahead in threads.

    put: places a batch on the devices; it is called here, in order, `ahead` batches before the one
      that is given out, so that copying (asynchronous in JAX) overlaps with the step.
    An exception while making a batch is raised here as it was. Closing the generator, or leaving
    it by an exception, stops the threads.
    """
    chosen = grain.MapDataset.source(batches)[start : len(batches) if stop is None else stop]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
    iterator: Any = iter(chosen.to_iter_dataset(options))
    waiting: collections.deque[T] = collections.deque()
    try:
        for batch in iterator:
            waiting.append(put(batch))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        iterator.close()
