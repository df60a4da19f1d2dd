"""What frozen first blocks give for each example, computed once and kept beside the tokens.

It follows from the weights of those blocks, the inputs and the dtype, of which the names of its files are a
hash, so a run with another seed, rate, head or length finds it. Rows that are trained on and rows that are
held out of the same source are kept together: the folds of a cross-validation share it, too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxft.config import ConfigDict
from jaxft.data import kept as kept_files
from jaxft.data.batching import EvalPlan
from jaxft.data.filling import places_of
from jaxft.data.kept import Kept
from jaxft.data.loader import ImageBatches, TextBatches, iterate
from jaxft.data.sources import Source
from jaxft.data.targets import Unlabelled, offsets_of
from jaxft.experiment.encoder import Batches, Encoder
from jaxft.experiment.prefix_cost import Cost, size
from jaxft.experiment.provenance import inputs_fingerprint
from jaxft.experiment.split import Split
from jaxft.experiment.steps import slicing
from jaxft.models import Architecture, Pass, by_path, hf
from jaxft.models.prefix import Prefix, hidden_after
from jaxft.terminal.progress import Milestones
from jaxft.training.parallel import Parallel, gathered
from jaxft.training.programs import Programs
from jaxft.training.step import eval_step

_VERSION = 1  # of what the files hold
_SPARE = 1.05  # of the room that is needed: the run writes other files, too


class NoRoomError(ValueError):
    """The disk has no room for what is to be kept."""


@dataclasses.dataclass(frozen=True, eq=False)
class PrefixCache:
    """What is kept of the rows of one model, by depth.

    Attributes:
      cache: folder of its files; None: it is in memory.
      splits: rows that are read, such as those for training and those for evaluation.
      readers: trials that will read about these rows, this one among them: folds of the same data.
      costs: that were counted, by depth and shapes.
      varies: what is computed may differ between trials that share this, as the weights of the prefix do.
    """

    architecture: Architecture
    directory: str
    encoder: Encoder
    config: ConfigDict
    parallel: Parallel
    cache: str | None
    splits: tuple[Split, ...]
    varies: bool
    readers: int = 1
    costs: dict[tuple[Any, ...], Cost] = dataclasses.field(default_factory=dict)
    _found: dict[Prefix, tuple[Kept, ...]] = dataclasses.field(default_factory=dict)

    def of(self, prefix: Prefix, params: Any) -> tuple[Kept, ...]:
        """For each of `splits` what is kept of a prefix. All processes call.

        Args:
          params: the whole tree, placed and not replicated.

        Raises:
          FloatingPointError: a hidden state is not finite.
          NoRoomError: the disk is too full; nothing was computed.
          OSError: of the disk.
        """
        if self.varies or prefix not in self._found:
            found = dict(self._of_sources(prefix, params))
            self._found[prefix] = tuple(found[number] for number in range(len(self.splits)))
        return self._found[prefix]

    def _of_sources(self, prefix: Prefix, params: Any) -> Iterator[tuple[int, Kept]]:
        """(number of the split, what is kept of it)."""
        weights, program = _digest(self.architecture, params, prefix.depth), self._program(prefix)
        given = self.parallel.replicate(params)
        sources: list[Source] = []
        for split in self.splits:
            if not any(split.source is known for known in sources):
                sources.append(split.source)
        for source in sources:
            own = [n for n, split in enumerate(self.splits) if split.source is source]
            rows = np.unique(np.concatenate([self.splits[n].targets.rows for n in own]))
            split = Split(
                source, Unlabelled(rows, np.arange(len(rows) + 1)), self.splits[own[0]].answers
            )
            batches = self.encoder.evaluation(split, self.config, slicing(self.parallel))
            whole = _Filling(prefix, batches, self.parallel, self.config.data.workers).kept(
                self._path(prefix, batches, weights),
                functools.partial(program, given),
            )
            for number in own:
                positions = np.searchsorted(rows, self.splits[number].targets.rows)
                yield number, whole.take(entries_of(batches, positions))

    def _program(self, prefix: Prefix) -> Programs:
        how = Pass(dtype=jnp.dtype(prefix.dtype))

        def forward(params: Any, batch: Any, key: Any) -> dict[str, jax.Array]:
            return {"hidden": hidden_after(self.architecture, params, batch, prefix.depth, how)}

        step = functools.partial(
            eval_step, forward=forward, predictions=lambda outputs, batch: outputs,
            axis_name=self.parallel.axis_name,
        )  # fmt: skip
        return self.parallel.compile_eval(step)

    def _path(self, prefix: Prefix, batches: Batches, weights: str) -> Path | None:
        """Without the number of the file."""
        if self.cache is None:
            return None
        files = hf.fingerprints(self.directory, weights=False)
        plan = getattr(batches, "plan", None)
        made_of = [
            _VERSION, weights, files, self.architecture.head, prefix.depth, prefix.space, prefix.unit,
            str(np.dtype(prefix.dtype)), inputs_fingerprint(batches), jax.__version__,
            # What may change the last bits: a run does not depend on which other one was first.
            self.parallel.summary, self.config.eval.batch_size, list(map(str, plan.shapes if plan else ())),
        ]  # fmt: skip
        if isinstance(batches, TextBatches):
            tokens = batches.tokens
            answers = "" if tokens.answers is None else tokens.answers.tokens.fingerprint
            digest = hashlib.blake2b(np.ascontiguousarray(tokens.offsets).data, digest_size=16)
            made_of += [tokens.texts, answers, digest.hexdigest()]
        name = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=16).hexdigest()
        return Path(self.cache) / f"{name}.prefix"


@dataclasses.dataclass(frozen=True)
class _Filling:
    """How a prefix is computed for all rows of some batches, each of which has every row once."""

    prefix: Prefix
    batches: Batches
    parallel: Parallel
    threads: int

    def kept(self, path: Path | None, program: Any) -> Kept:
        """Of all entries: from the files, as far as they are there, else computed and written.

        Args:
          path: of the files, without their numbers; None: in memory.
          program: `batch ->` 'hidden' of the global batch.
        """
        prefix, counts = self.prefix, units_of(self.batches, self.prefix.space)
        dtype = np.dtype(prefix.dtype)
        empty = Kept(
            prefix.depth, prefix.name, prefix.space, prefix.unit, dtype, offsets_of(counts)[:-1]
        )
        each = kept_files.unit_bytes(prefix.unit, dtype)
        ranges = kept_files.shards(counts, each)
        sizes = [int(counts[own.start : own.stop].sum()) for own in ranges]
        paths = [None if path is None else Path(f"{path}.{n:05}.npy") for n in range(len(ranges))]
        parts: list[Any] = [
            None if file is None else kept_files.read_part(file, units, prefix.unit, dtype)
            for file, units in zip(paths, sizes, strict=True)
        ]
        there = _everywhere(np.array([part is not None for part in parts]))
        if path is not None:
            _check_room(
                path.parent, sum(s for s, ok in zip(sizes, there, strict=True) if not ok) * each
            )
        missing = sum(len(own) for own, ok in zip(ranges, there, strict=True) if not ok)
        said = Milestones("the frozen prefix is computed", missing, self._name)
        for number, (own, file) in enumerate(zip(ranges, paths, strict=True)):
            if there[number]:
                continue
            part = self._part(empty, own, sizes[number], program, said)
            if file is not None:
                kept_files.write_part(file, part)
                mapped = kept_files.read_part(file, sizes[number], prefix.unit, dtype)
                part = part if mapped is None else mapped  # as when somebody emptied the folder
            parts[number] = part
        return kept_files.with_parts(empty, parts)

    def _part(
        self, kept: Kept, own: range, units: int, program: Any, said: Milestones
    ) -> np.ndarray:
        """[units, *unit] of consecutive entries."""
        found = np.zeros((units, *kept.unit), kept.dtype)
        first = int(kept.starts[own.start])
        batches, slots = self._of_entries(own)
        waiting: list[tuple[Any, np.ndarray, int]] = []

        def take(out: Any, slots: np.ndarray, length: int) -> None:
            hidden = np.asarray(out["hidden"])
            at = places_of(kept, self._tokens, slots, length)
            assert hidden.shape[: len(at.shape)] == at.shape, (hidden.shape, at.shape)
            here = (at.units >= first) & (at.units < first + units)  # images: a batch of two files
            found[at.units[here] - first] = hidden.reshape(-1, *kept.unit)[at.target[here]]
            if (line := said.done(int((slots >= 0).sum()))) and jax.process_index() == 0:
                print(line, flush=True)

        fed = iterate(batches, put=self.parallel.put, threads=self.threads)
        for batch, (where, length) in zip(fed, slots, strict=True):
            out = self.parallel.unreplicate(program(batch))
            if waiting:
                take(*waiting.pop())
            waiting.append((out, where, length))
        if waiting:
            take(*waiting.pop())
        if not np.isfinite(found).all():
            raise FloatingPointError(
                f"the hidden states of block {self.prefix.depth} are not finite"
            )
        return found

    @property
    def _name(self) -> str:
        return "texts" if isinstance(self.batches, TextBatches) else "images"

    @property
    def _tokens(self) -> Any:
        return self.batches.tokens if isinstance(self.batches, TextBatches) else None

    def _of_entries(self, own: range) -> tuple[Any, list[tuple[np.ndarray, int]]]:
        """Batches of some consecutive entries, and of each its global slots and length."""
        batches = self.batches
        if isinstance(batches, ImageBatches):
            size = batches.sampler.batch_size
            steps = range(own.start // size, -(-own.stop // size))
            slots = [np.full(batches.rows, -1, np.int64) for _ in steps]
            for step, row in zip(steps, slots, strict=True):
                examples, _ = batches.sampler(step)
                row[: len(examples)] = examples
            return _Some(batches, steps), [(row, 0) for row in slots]
        assert isinstance(batches.plan, EvalPlan)
        plan = batches.plan
        if len(own) < len(batches.tokens):
            plan = plan.over(np.arange(own.start, own.stop), batches.tokens.room)
        layouts = [plan.layout(step) for step in range(len(plan))]
        some = TextBatches(
            batches.tokens, batches.targets, plan, process_index=batches.process_index,
            process_count=batches.process_count,
        )  # fmt: skip
        return some, [(layout.slots, layout.length) for layout in layouts]


@dataclasses.dataclass(frozen=True)
class _Some:
    """Some steps of batches."""

    batches: Batches
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.batches[self.steps[number]]


def units_of(batches: Batches, space: str) -> np.ndarray:
    """[n] of each entry of some batches, see `Prefix.space`."""
    if isinstance(batches, ImageBatches):
        return np.ones(len(batches.targets), np.int64)
    tokens = batches.tokens
    if space == "texts":
        return np.full(len(tokens), tokens.texts, np.int64)
    if space == "answers":
        assert tokens.answers is not None
        tokens = tokens.answers.tokens
    return np.diff(tokens.offsets)


def entries_of(batches: Batches, positions: np.ndarray) -> np.ndarray:
    """The entries of some examples, one after the other: their windows, where they have several."""
    windows = batches.tokens.windows if isinstance(batches, TextBatches) else None
    if windows is None:
        return positions
    counts = np.diff(windows)[positions]
    ends = offsets_of(counts)
    return np.repeat(windows[positions] - ends[:-1], counts) + np.arange(ends[-1])


def _everywhere(here: np.ndarray) -> np.ndarray:
    """What is so in every process."""
    if jax.process_count() == 1:
        return here
    return np.logical_and.reduce(np.asarray(multihost_utils.process_allgather(here)), axis=0)


def _check_room(folder: Path, needed: int) -> None:
    """NoRoomError in every process, if one has too little."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if not _everywhere(np.array([free > needed * _SPARE])).all():
        raise NoRoomError(
            f"{folder} has {size(free)} left, and what is kept of the frozen prefix takes {size(needed)}"
        )


def _digest(architecture: Architecture, params: Any, depth: int) -> str:
    """Of the parameters and statistics up to a block. All processes call."""
    depths = {**architecture.depths, **architecture.statistics}
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in sorted(by_path(params).items()):
        if depths[path] <= depth:
            array = np.ascontiguousarray(gathered(leaf))
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(array.view(np.uint8).data)
    return digest.hexdigest()
