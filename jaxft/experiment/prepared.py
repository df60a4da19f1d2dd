"""From a config to what is known before any parameter is read; commands that only look stop here."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxft.base.nearest import nearest
from jaxft.base.nested import flatten
from jaxft.config import ConfigDict
from jaxft.data.inputs import KINDS
from jaxft.data.packing import LENGTH_MULTIPLE
from jaxft.data.tokenizer import load_tokenizer
from jaxft.experiment import stacking
from jaxft.experiment.checkpoint_place import local_checkpoint
from jaxft.experiment.data import Splits, open_splits
from jaxft.experiment.decide import decide
from jaxft.experiment.decisions import Decisions
from jaxft.experiment.encoder import make_encoder
from jaxft.experiment.length import Length, run_length
from jaxft.experiment.model import open_model
from jaxft.experiment.opening import Given
from jaxft.experiment.optimizer import OptimizerOf, learning_rates, numbers
from jaxft.experiment.stacking import Stacking
from jaxft.experiment.teacher import Teacher, find_teacher, fitting
from jaxft.models import Architecture, TextLimits, class_names, has_batch_norms, hf
from jaxft.models.checkpoint import sentence_transformers
from jaxft.optim import Finding, lint, path_map
from jaxft.tasks.contract import Paired, Referring, Task, Varying
from jaxft.tasks.names import METRICS
from jaxft.tasks.table import TASKS, task_of
from jaxft.training.parallel import Parallel
from jaxft.training.step import hyperparameters

# What the trials of one search have in common: the data, the model, the devices.
_SHARED = (
    "task", "model.", "data.", "parallel.", "eval.batch_size", "train.class_weights", "distill.teacher",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is known before any parameter is read.

    Attributes:
      directory: the checkpoint's local directory.
      decisions: what happens to each parameter, and when.
      length: of the run and of an epoch, in optimizer updates.
      hyperparameters: the numbers that the optimizer takes as inputs.
      learning_rates: [steps] of the schedule, before any factor. Read by the loop: calling the
        schedule there would dispatch a dozen tiny programs a step.
      teacher: from which it learns, too; None: from none.
    """

    config: ConfigDict
    directory: str
    architecture: Architecture
    splits: Splits
    decisions: Decisions
    length: Length
    hyperparameters: dict[str, np.ndarray]
    learning_rates: np.ndarray
    teacher: Teacher | None = None

    @functools.cached_property
    def task(self) -> Task[Any]:
        """What is learned. Kept, since the checkpoint may be asked how it pools."""
        return task_at(self.config, self.directory)

    @functools.cached_property
    def stacking(self) -> Stacking:
        """Which blocks a run of it keeps stacked."""
        return stacking.settle(self.config, self.architecture, self.task, self.decisions)

    @property
    def epoch_examples(self) -> int:
        """Of `length.epoch` updates; windows, where texts are read in several."""
        if self.config.data.stream:
            return self.length.epoch * int(self.config.train.batch_size)
        return self.splits.entries

    def inputs(self) -> dict[str, Any]:
        """`TrainState.hparams`, on the host."""
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), 2)
        return jax.tree.map(np.asarray, hyperparameters(key, self.hyperparameters))

    def shardings(self, parallel: Parallel) -> Any:
        """A Sharding for every leaf of the model's tree: as decided; batch statistics are whole."""
        placements, whole = self.decisions.placements, self.architecture.whole
        specs = path_map(lambda path, _: placements.get(path, PartitionSpec()), whole)
        return parallel.shardings(specs)

    def unshared(self, config: ConfigDict) -> tuple[str, ...]:
        """Fields by which another config has other data, another model or other devices."""
        before, after = flatten(self.config), flatten(config)
        return tuple(f for f in before if f.startswith(_SHARED) and before[f] != after[f])

    def trial(self, config: ConfigDict) -> Prepared:
        """The same data and model under another config, of which nothing is read again.

        Raises:
          ValueError: it asks for other data, another model or other devices, or cannot work.
        """
        for field in self.unshared(config):
            raise ValueError(
                f"config.{field}={flatten(config)[field]!r}: trials that share data and model have the "
                f"same, {flatten(self.config)[field]!r}"
            )
        c, trial = config.distill, _settled(config, self.directory, self.architecture, self.splits)
        if c.teacher and c.weight and self.teacher is None:
            raise ValueError(
                f"config.distill.weight={c.weight}: trials that share data were prepared with weight 0, so "
                "without the teacher; prepare them with another weight"
            )
        return dataclasses.replace(trial, teacher=self.teacher if c.weight else None)


def task_at(config: ConfigDict, directory: str) -> Task[Any]:
    """The task of a config, for the checkpoint in a directory.

    Raises:
      ValueError: the checkpoint pools its tokens in a way that is not implemented.
    """
    values = flatten(config)
    if values["model.pooling"] == "auto":
        values["model.pooling"] = sentence_transformers.pooling_of(directory) or "mean"
    if values["model.normalize"] == "auto":
        unit = sentence_transformers.normalizes(directory)
        values["model.normalize"] = "yes" if unit else "no"
    return task_of(config.task, values)


def prepare(config: ConfigDict, cache: str | None = None, given: Given | None = None) -> Prepared:
    """Open checkpoint and data, settle labels, depth and rates of every parameter.

    Args:
      cache: folder in which what is found in large tables is kept; None: nowhere.
      given: sources in memory; see `open_named`.

    Raises:
      ValueError: anything in the config, checkpoint or data that cannot work; one line.
    """
    if not config.model.path:
        raise ValueError("config.model.path is empty: give a checkpoint directory or a hub id")
    directory = local_checkpoint(config.model.path)
    task = task_at(config, directory)
    names, model = class_names(directory), find_teacher(config, task)
    splits = open_splits(config, task, names, cache, given)
    teacher = None if model is None else fitting(model, config, splits)
    _check_metric(config, task, splits)
    prepared = settle(config, directory, splits, cache)
    # By the headers alone: a checkpoint without weights, or with others, is refused here.
    fresh = () if config.model.scratch else hf.missing(directory, prepared.architecture)
    decisions = prepared.decisions.knowing(fresh)
    return dataclasses.replace(prepared, decisions=decisions, teacher=teacher)


def _check_metric(config: ConfigDict, task: Task[Any], splits: Splits) -> None:
    """Raises ValueError where the evaluation data do not have what is to choose the checkpoint."""
    lacking = task.lacking(splits.eval.targets) if isinstance(task, Varying) else ()
    if config.eval.metric in lacking:
        there = [name for name in METRICS[config.task] if name not in lacking]
        raise ValueError(
            f"config.eval.metric={config.eval.metric!r} is not among the metrics of such evaluation data as "
            f"{splits.eval.source.name}, which are {', '.join(there)}{nearest(config.eval.metric, there)}"
        )


def settle(
    config: ConfigDict, directory: str, splits: Splits, cache: str | None = None
) -> Prepared:
    """The rest of `prepare`, which reads no row but to count windows or pairs that are not counted yet: else
    only names and numbers of `splits` count."""
    task, kind = TASKS[config.task], KINDS[TASKS[config.task].inputs]
    names, labels = class_names(directory), len(task.id2label(splits.names))
    architecture = open_model(
        config,
        directory,
        name=config.model.path,
        num_labels=labels,
        dropout=config.model.dropout,
        stochastic_depth=config.model.stochastic_depth,
        new_head=bool(labels and names) and tuple(names) != splits.names,
        vocabulary=needed_vocabulary(config, task, directory),
    )
    if kind.windowed and splits.windows is None and not config.data.stream:
        encoder = make_encoder(config, kind.name, directory, architecture.limits, splits, cache)
        splits = dataclasses.replace(splits, windows=len(encoder.tokens(splits.train)))
    own = task_at(config, directory)
    if isinstance(own, Paired) and splits.pairs is None:
        splits = dataclasses.replace(splits, pairs=own.pairing(splits.train.targets).count)
    return _settled(config, directory, architecture, splits)


def needed_vocabulary(config: ConfigDict, task: Task[Any], directory: str) -> int:
    """With `model.resize_vocabulary`, how many token ids the checkpoint's tokenizer has; else 0.

    Raises:
      ValueError: there is none, or the new rows would be of no use to the task.
    """
    if not config.model.resize_vocabulary:
        return 0
    if KINDS[task.inputs].model != "text":
        raise ValueError(
            f"config.model.resize_vocabulary is for models of text, and config.task={config.task!r} is of "
            f"{KINDS[task.inputs].model}s; leave it False"
        )
    if isinstance(task, Referring):
        raise ValueError(
            f"config.task={config.task!r} compares with the model that the run begins with, whose new "
            "rows would be random; use config.model.resize_vocabulary in a run of another task, and "
            "begin with its best/"
        )
    return 1 + max(load_tokenizer(directory).get_vocab(with_added_tokens=True).values())


def _settled(
    config: ConfigDict, directory: str, architecture: Architecture, splits: Splits
) -> Prepared:
    if config.model.batch_stats == "train" and not has_batch_norms(architecture):
        raise ValueError(
            f"config.model.batch_stats='train', but {config.model.path} is "
            f"{architecture.model_type!r}, which has no batch statistics; leave it 'frozen'"
        )
    _check_axes(config, architecture)
    length = run_length(config, splits.entries)
    decisions = decide(config, architecture, length)
    h = numbers(config, decisions, length)
    prepared = Prepared(
        config, directory, architecture, splits, decisions, length, h,
        learning_rates(h, config, length),
    )  # fmt: skip
    _ = prepared.stacking  # refused here, before anything is read
    return prepared


def findings(prepared: Prepared) -> list[Finding]:
    """What `jaxft.optim.lint` has against the optimizer of this run."""
    config, decisions, rates = prepared.config, prepared.decisions, prepared.learning_rates
    return lint(
        OptimizerOf(config, decisions).base(prepared.hyperparameters),
        prepared.architecture.abstract,
        frozen={row.path: not row.trains for row in decisions},
        patterns=[*config.optim.frozen, *(pattern for pattern, _ in config.optim.lr_mult)],
        plan=decisions.plan,
        groups=decisions.depths if decisions.plan else None,
        schedule=lambda step: rates[min(int(step), len(rates) - 1)],
    )


def _check_axes(config: ConfigDict, architecture: Architecture) -> None:
    """Raises ValueError for an axis of the mesh over which nothing of this model can be cut."""
    tensor, context = config.parallel.tensor, config.parallel.context
    if tensor > 1 and not architecture.tensor_rules:
        raise ValueError(
            f"config.parallel.tensor={tensor}, but no matrix product of "
            f"{architecture.exports} is shared: neither bridged models nor convolutional networks "
            "have a tensor axis; leave it 1 and set config.parallel.fsdp"
        )
    if context == 1:
        return
    limits = architecture.limits
    if not (isinstance(limits, TextLimits) and limits.cut):
        raise ValueError(
            f"config.parallel.context={context}, but rows of {architecture.exports} are not cut: bridged "
            "models, DeBERTa and models of images have no context axis; leave it 1 and "
            "set config.parallel.fsdp"
        )
    if LENGTH_MULTIPLE % context:
        fitting = [n for n in range(2, LENGTH_MULTIPLE + 1) if LENGTH_MULTIPLE % n == 0]
        near = min(fitting, key=lambda n: (abs(n - context), n))
        raise ValueError(
            f"config.parallel.context={context} does not divide the lengths of rows, which are multiples of "
            f"{LENGTH_MULTIPLE}; the nearest that does is {near}"
        )
