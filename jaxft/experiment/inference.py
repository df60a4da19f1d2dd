"""A model ready to predict: the best one of a finished run, or a checkpoint in Hugging Face format."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxft.base.nearest import nearest
from jaxft.config import ConfigDict
from jaxft.data.sources import Source
from jaxft.experiment.checkpoint_place import local_checkpoint
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.encoder import Batches, Encoder, settings_of
from jaxft.experiment.ensemble import averaged, mean_of_logits, read_ensemble
from jaxft.experiment.evaluation import Evaluation, evaluate, predict, scores
from jaxft.experiment.existing import Existing, open_existing, open_run
from jaxft.experiment.prepared import task_at
from jaxft.experiment.provenance import fingerprint
from jaxft.experiment.references import References
from jaxft.experiment.split import Split
from jaxft.experiment.steps import evaluation_step, slicing
from jaxft.experiment.writing import Writer, make_writer
from jaxft.generation.rereading import without_cache
from jaxft.models import Architecture, TextLimits, hf
from jaxft.models.checkpoint.exported_config import FITTED
from jaxft.tasks.contract import Calibrates, Predicted, Referring, Task, fitted
from jaxft.training.mesh import make_parallel
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs


@dataclasses.dataclass(frozen=True)
class Inference:
    """A model with what it needs to read rows.

    Attributes:
      directory: the run that it is from; None for a checkpoint.
      config: of that run; the defaults for a checkpoint.
      names: of its outputs, by number; () where they are numbers.
      params: placed, replicated under pmap.
      encoder: reads rows; a checkpoint's has no columns before `reading`.
      fitted: numbers that the task takes besides the parameters (see `tasks.contract.Fits`).
      is_calibrated: whether probabilities are at the temperature that was fitted.
      others: parameters of the further members of an ensemble: their logits are averaged with its own.
      writer: of a model that gives texts, whichever encoder it was made with.
    """

    directory: RunDirectory | None
    config: ConfigDict
    architecture: Architecture
    names: tuple[str, ...]
    params: Any
    program: Programs
    parallel: Parallel
    encoder: Encoder
    writer: Writer | None
    fitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_calibrated: bool = False
    others: tuple[Any, ...] = ()

    @property
    def task(self) -> Task[Any]:
        """What it was trained for."""
        task = task_at(self.config, self.encoder.directory)
        task = fitted(task, self.fitted, self.names)
        return task.calibrated() if self.is_calibrated and isinstance(task, Calibrates) else task

    def calibrated(self) -> Inference:
        """The same model, with probabilities at the temperature that was fitted on evaluation data.

        Raises:
          ValueError: none was.
        """
        if not isinstance(self.task, Calibrates):
            raise ValueError(
                "calibrated probabilities are of models of single or several labels, and this is one of "
                f"{self.config.task!r}"
            )
        if "temperature" not in self.fitted:
            raise ValueError(
                "the model has no temperature: one is fitted by a run on its evaluation data, and is in "
                "config.json of its best/ and exports"
            )
        return dataclasses.replace(self, is_calibrated=True)

    def reading(self, source: Source, columns: Sequence[str] = (), label: str = "") -> Inference:
        """The same model, reading these columns of `source`.

        Args:
          columns: input columns; empty: the run's own or, for a checkpoint, found by usual names.
          label: the label column, which is no input; '' where there is none.

        Raises:
          ValueError: `source` has no such column, or the model takes another number of them.
        """
        own, kind = self.encoder.columns, self.encoder.kind
        if kind.alone and not set(own) <= set(source.columns):
            own = ()
        if columns and own and not kind.alone and len(columns) != len(own):
            raise ValueError(
                f"--text names {len(columns)} columns ({', '.join(columns)}), but the model was "
                f"trained on {len(own)} ({', '.join(own)})"
            )
        wanted = tuple(columns) or own
        missing = next((name for name in wanted if name not in source.columns), None)
        if missing is not None:
            raise ValueError(
                f"{source.name} has no column {missing!r}{nearest(missing, source.columns)}; "
                f"it has {', '.join(source.columns)}; name the input by --text"
            )
        if not wanted:
            with named_by_flags():
                wanted = kind.find_columns(source, (), label)
        return dataclasses.replace(self, encoder=dataclasses.replace(self.encoder, columns=wanted))

    @property
    def writing(self) -> Writer | None:
        """What gives texts for those that the encoder reads."""
        return self.writer and dataclasses.replace(self.writer, encoder=self.encoder)

    @property
    def note(self) -> str:
        """What a text costs where no cache is kept; '' where none is written, or one is kept."""
        return "" if self.writer is None else without_cache(self.architecture)

    def predict(self, split: Split) -> Predicted:
        """See `evaluation.predict`; the split's targets are not looked at. Texts are 'written'."""
        if (writer := self.writing) is not None:
            written = writer.texts(self.params, split)
            return {"written": written, "seen": np.ones(len(written), bool)}
        found = self._of_members(split, self._batches(split))
        return mean_of_logits(found) if self.others else found[0]

    def _of_members(self, split: Split, batches: Batches) -> list[Predicted]:
        return [
            predict(
                self.program, params, batches, self.parallel, split.targets, join=self.task.join,
                threads=self.config.data.workers,
            )
            for params in (self.params, *self.others)
        ]  # fmt: skip

    def evaluate(self, split: Split, *, held_out: bool = False) -> Evaluation:
        """Predictions and metrics of a split with targets.

        Args:
          held_out: these are to be the rows that the run has not trained on, found again in its source.

        Raises:
          ValueError: they have changed since, so that some may be rows it has trained on.
        """
        split = self._with_reference(split)
        batches = self._batches(split)
        if held_out:
            self._check_held_out(batches)
        if self.others:
            task = self.task
            mean = averaged(task, split.targets, self._of_members(split, batches))
            return Evaluation(mean, *scores(task, mean, split))
        return evaluate(
            self.task, self.program, self.params, batches, self.parallel, split,
            writer=self.writing, threads=self.config.data.workers,
        )  # fmt: skip

    def _with_reference(self, split: Split) -> Split:
        """With what the model said that the run began with, where its task compares with that.

        Raises:
          ValueError: that model is not there any more, or was never in a file.
        """
        if not isinstance(self.task, Referring):
            return split
        given = self.config.model
        if given.scratch:
            raise ValueError(
                "the run began with random weights, with which nothing can be compared"
            )
        params, _ = hf.read_params(
            local_checkpoint(given.path), self.architecture, key=jax.random.key(0),
            shardings=_whole_on(self.parallel, self.architecture),
        )  # fmt: skip
        references = References(
            self.task, self.architecture, params, self.encoder, self.config, self.parallel, ""
        )
        return references.known_to(split)

    def _check_held_out(self, batches: Batches) -> None:
        assert self.directory is not None
        if "evaluation fingerprint" not in self.directory.source():
            raise ValueError(
                f"{self.directory.path} is of an earlier version of jaxft, which held out other rows: "
                "give --data with rows that it has not trained on"
            )
        self.directory.check_source({"evaluation fingerprint": fingerprint(batches)})

    def _batches(self, split: Split) -> Batches:
        return self.encoder.evaluation(split, self.config, slicing(self.parallel))


def load_inference(path: str | Path) -> Inference:
    """Read DIR/best of a run, a checkpoint with a classifier, or what `soup --ensemble` wrote, onto devices.

    Raises:
      ValueError: none of them, a run that has not finished, or files that are damaged.
    """
    ensemble = read_ensemble(Path(path))
    if ensemble is None:
        return _ready(open_existing(path))
    first, *others = [_ready(open_existing(member)) for member in ensemble.members]
    kinds = [(one.names, one.architecture.abstract) for one in (first, *others)]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"the members of {path} are not models of one kind; run soup again")
    return dataclasses.replace(
        first, fitted=ensemble.fitted, others=tuple(one.params for one in others)
    )


def load_run(directory: RunDirectory, model: Path | None = None) -> Inference:
    """The model of a run: its DIR/best, or what was exported of it to another place.

    Raises:
      ValueError: as `load_inference`.
    """
    return _ready(open_run(directory, model))


def column_names(text: str) -> tuple[str, ...]:
    """The columns of `--text a,b`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


@contextlib.contextmanager
def named_by_flags() -> Iterator[None]:
    """Messages about columns say how a command's user names one, which is not by a config field."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("config.data.", "--")) from error


def _ready(found: Existing) -> Inference:
    """Place the parameters and wrap the program."""
    parallel = make_parallel("auto")
    path, architecture, config = str(found.path), found.architecture, found.config
    params, report = hf.read_params(
        path, architecture, key=jax.random.key(0), shardings=_whole_on(parallel, architecture)
    )
    found.check_whole(report.initialised)
    task = task_at(config, path)
    program = evaluation_step(architecture, task.predictions, config.model.dtype, parallel)
    limits = architecture.limits
    positions = limits.usual or limits.positions if isinstance(limits, TextLimits) else 0
    encoder = Encoder(
        task.inputs, path, limits, found.columns, config.data.max_length or positions, None,
        settings_of(config, task.inputs),
    )  # fmt: skip
    fitted = architecture.hf_config.get(FITTED)
    return Inference(
        found.directory, config, architecture, found.names, params, program, parallel, encoder,
        make_writer(architecture, task, encoder, config, parallel),
        fitted if isinstance(fitted, Mapping) else {},
    )  # fmt: skip


def _whole_on(parallel: Parallel, architecture: Architecture) -> Any:
    return parallel.shardings(jax.tree.map(lambda _: PartitionSpec(), architecture.whole))
