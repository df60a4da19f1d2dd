"""From splits to batches: what the checkpoint's inputs are decides how rows become arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.base.nested import flatten
from jaxft.config import ConfigDict
from jaxft.data.batching import Draws, Lengths, TrainPlan, plan_evaluation, plan_training
from jaxft.data.corruption import Corruption
from jaxft.data.images import Augment, Images, Preprocess
from jaxft.data.inputs import KINDS, Kind, Tokenising
from jaxft.data.loader import ImageBatches, PairBatches, TextBatches
from jaxft.data.packing import LONGEST_UNASKED
from jaxft.data.pairs import Pairing, PairLengths, PairSampler
from jaxft.data.targets import Unlabelled
from jaxft.data.tokens import Tokens
from jaxft.experiment import changes
from jaxft.experiment.data import Splits
from jaxft.experiment.split import Split
from jaxft.models import ImageLimits, TextLimits

Batches = TextBatches | ImageBatches


@dataclasses.dataclass(frozen=True)
class Slicing:
    """How batches are cut: over devices, microbatches and processes.

    laid_out: shards for which texts were laid out in rows when the run began; 0: those that are here.
    """

    shards: int = 1
    accumulate: int = 1
    process_index: int = 0
    process_count: int = 1
    laid_out: int = 0


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns splits into batches by what the checkpoint's inputs are.

    Attributes:
      inputs: kind of the task's, see `KINDS`.
      directory: the checkpoint's, for tokenizer or preprocessor files.
      limits: which inputs the model can take.
      columns: input columns.
      max_length: longest text in tokens.
      cache: directory of tokenised text; None: not kept.
      settings: the config fields that tokenising depends on (`Kind.settings`).
      pool: rows of all folds, by which the shapes of batches are chosen where a run has one of them held
        out: so folds, which are of about the same texts, are trained and evaluated by the same programs.
    """

    inputs: str
    directory: str
    limits: TextLimits | ImageLimits
    columns: tuple[str, ...]
    max_length: int
    cache: str | None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pool: Split | None = None

    @property
    def kind(self) -> Kind:
        """Of the inputs."""
        return KINDS[self.inputs]

    @property
    def how(self) -> Tokenising:
        """How texts become tokens."""
        assert isinstance(self.limits, TextLimits)
        return Tokenising(
            self.directory, self.max_length, self.limits.vocabulary, self.cache, self.settings
        )

    def tokens(self, split: Split) -> Tokens:
        """Token ids of a split of texts."""
        assert self.kind.tokens is not None and isinstance(self.limits, TextLimits)
        columns = (*self.columns, split.answers) if split.answers else self.columns
        tokens = self.kind.tokens(split.source, split.targets.rows, columns, self.how)
        return dataclasses.replace(tokens, even=self.limits.alone)

    def corruption(self, seed: int) -> Corruption | None:
        """What happens to the tokens of a batch."""
        return self.kind.corrupt(self.how, seed) if self.kind.corrupt else None

    def noise(self, config: ConfigDict) -> Corruption | None:
        """What is done to the tokens of training texts: what the kind asks for, or noise."""
        if changes.has_noise(config):
            return changes.noise_of(config, self.how)
        return self.corruption(config.train.seed)

    def packs(self, config: ConfigDict) -> bool:
        """Whether several texts share a row."""
        assert isinstance(self.limits, TextLimits)
        return config.data.pack and not self.limits.alone

    def images(self, split: Split, augment: Augment | None, seed: int) -> Images:
        """Decoded images of an image split."""
        limits = self.limits
        assert isinstance(limits, ImageLimits)
        preprocess = Preprocess.from_checkpoint(
            self.directory, image_size=(limits.height, limits.width), channels=limits.channels
        )
        return Images(
            split.source,
            split.targets.rows,
            self.columns[0],
            preprocess,
            augment=augment,
            seed=seed,
        )

    def training(
        self,
        split: Split,
        config: ConfigDict,
        steps: int,
        cut: Slicing,
        like: Batches | None = None,
    ) -> Batches:
        """`steps` batches of the rows in random order, again and again; batch i depends on i alone.

        like: of other rows, for the same shapes; None: shapes are chosen for these texts.
        """
        c, mixture = config.train, split.source.mixture
        here: dict[str, Any] = {
            "process_index": cut.process_index,
            "process_count": cut.process_count,
        }
        if self.kind.model == "image":
            images = self.images(split, changes.augment_of(config), c.seed)
            return ImageBatches(
                images, split.targets, batch_size=c.batch_size, steps=steps, seed=c.seed,
                shards=cut.shards, row_multiple=cut.accumulate, mixture=mixture,
                mixing=changes.mixing_of(config), **here,
            )  # fmt: skip
        tokens = self.tokens(split)
        if isinstance(like, TextBatches) and isinstance(like.plan, TrainPlan):
            tokens = tokens.shaped_like(like.tokens)
            plan = like.plan.over(tokens.room, c.seed)
        elif (pool := self._pool_of(split)) is not None:
            tokens = tokens.shaped_like(pool)
            plan = self._planned(pool.room, None, config, steps, cut).over(tokens.room, c.seed)
        else:
            plan = self._plan(tokens, split, config, steps, cut)
        return TextBatches(
            tokens, split.targets, plan, corrupt=self.noise(config), mixture=mixture, **here
        )

    def pairs(
        self, split: Split, pairing: Pairing, config: ConfigDict, steps: int, cut: Slicing
    ) -> PairBatches:
        """The same of texts in pairs, which are drawn as the pairing of the rows says."""
        tokens, c = self.tokens(split), config.train
        draws = PairSampler(pairing, c.batch_size, c.seed)
        plan = self._planned(PairLengths(tokens.room), draws, config, steps, cut)
        return PairBatches(
            tokens, split.targets, plan, process_index=cut.process_index,
            process_count=cut.process_count,
        )  # fmt: skip

    def _pool_of(self, split: Split) -> Tokens | None:
        """Token ids of all folds, where these are rows of them."""
        same = self.pool is not None and self.pool.source is split.source
        return self._pool_tokens if same else None

    @functools.cached_property
    def _pool_tokens(self) -> Tokens:
        assert self.pool is not None
        return self.tokens(self.pool)

    def _plan(
        self, tokens: Tokens, split: Split, config: ConfigDict, steps: int, cut: Slicing
    ) -> TrainPlan:
        c, mixture, sampler = config.train, split.source.mixture, None
        if mixture is not None:
            rows = split.targets.rows[tokens.example_of(np.arange(len(tokens)))]
            sampler = mixture.sampler(rows, batch_size=c.batch_size, seed=c.seed)
        return self._planned(tokens.room, sampler, config, steps, cut)

    def _planned(
        self, lengths: Lengths, draws: Draws | None, config: ConfigDict, steps: int, cut: Slicing
    ) -> TrainPlan:
        c = config.train
        plan = plan_training(
            lengths, batch_size=c.batch_size, steps=steps, seed=c.seed,
            shards=cut.laid_out or cut.shards, row_multiple=cut.accumulate, pack=self.packs(config),
            max_shapes=config.data.max_shapes, draws=draws,
        )  # fmt: skip
        return dataclasses.replace(plan, multiple=cut.shards * cut.accumulate)

    def evaluation(self, split: Split, config: ConfigDict, cut: Slicing) -> Batches:
        """Every example once. A batch has an example for each device at least."""
        size = max(config.eval.batch_size, cut.shards)
        here: dict[str, Any] = {
            "process_index": cut.process_index,
            "process_count": cut.process_count,
        }
        if self.kind.model == "image":
            images = self.images(split, None, 0)
            return ImageBatches(
                images,
                split.targets,
                batch_size=size,
                steps=None,
                seed=0,
                shards=cut.shards,
                **here,
            )
        tokens, pool = self.tokens(split), self._pool_of(split)
        tokens = tokens if pool is None else tokens.shaped_like(pool)
        plan = plan_evaluation(
            (pool or tokens).room, batch_size=size, shards=cut.shards, pack=self.packs(config)
        )
        if pool is not None:
            plan = plan.over(np.arange(len(tokens)), tokens.room)
        return TextBatches(tokens, split.targets, plan, corrupt=self.corruption(0), **here)

    def unanswered(self, split: Split, config: ConfigDict, cut: Slicing) -> TextBatches:
        """The texts of every example once, each in a row of its own, without what is to be given."""
        rows = split.targets.rows
        targets = Unlabelled(rows, np.arange(len(rows) + 1))
        tokens = self.tokens(Split(split.source, targets))
        plan = plan_evaluation(
            tokens.lengths,
            batch_size=max(config.eval.batch_size, cut.shards),
            shards=cut.shards,
            pack=False,
        )
        return TextBatches(
            tokens, targets, plan, process_index=cut.process_index, process_count=cut.process_count
        )


def make_encoder(
    config: ConfigDict, inputs: str, directory: str, limits: TextLimits | ImageLimits,
    splits: Splits, cache: str | None,
) -> Encoder:  # fmt: skip
    """The encoder of a run.

    Raises:
      ValueError: data.max_length or data.max_target_length is above what the checkpoint has positions
        for, or there are two text columns and it cannot tell them apart.
    """
    changes.check_changes(config, inputs)
    length = 0
    if isinstance(limits, TextLimits):
        usual = limits.usual or min(limits.positions, LONGEST_UNASKED)
        length = config.data.max_length or usual
        if length > limits.positions:
            raise ValueError(
                f"config.data.max_length={length} is above the {limits.positions} positions of the "
                "checkpoint"
            )
        if KINDS[inputs].answers and config.data.max_target_length > limits.positions:
            raise ValueError(
                f"config.data.max_target_length={config.data.max_target_length} is above the "
                f"{limits.positions} positions of the checkpoint"
            )
        if KINDS[inputs].pairs and len(splits.columns) == 2 and not limits.pairs:
            raise ValueError(
                f"{directory} has no token type for a second text, so it cannot tell two texts apart; "
                f"give one text column in config.data.text, not {', '.join(splits.columns)}"
            )
    settings = settings_of(config, inputs)
    pool = _pool(config, splits)
    return Encoder(inputs, directory, limits, splits.columns, length, cache, settings, pool)


def _pool(config: ConfigDict, splits: Splits) -> Split | None:
    """The rows of all folds, in the order of the source; None where a run is none of several folds."""
    train, held_out = splits.train, splits.eval
    if config.data.folds is None or train.source.mixture is not None:
        return None
    rows = np.sort(np.concatenate([train.targets.rows, held_out.targets.rows]))
    return Split(train.source, Unlabelled(rows, np.arange(len(rows) + 1)), train.answers)


def settings_of(config: ConfigDict, inputs: str) -> dict[str, Any]:
    """The config fields that tokenising inputs of this kind depends on."""
    values = flatten(config)
    return {name: values[name] for name in KINDS[inputs].settings}
