"""A model that is there already: the best one of a finished run, or a checkpoint in Hugging Face format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxft.config import ConfigDict, default_config
from jaxft.data.inputs import KINDS
from jaxft.data.remote import is_remote
from jaxft.experiment.checkpoint_place import local_checkpoint
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.stored_run import with_best
from jaxft.models import Architecture, load_architecture
from jaxft.models.checkpoint import timm_config
from jaxft.tasks.table import TASKS


@dataclasses.dataclass(frozen=True)
class Existing:
    """What is known of it before its weights are read.

    Attributes:
      path: the folder of its checkpoint.
      names: of its outputs, by number; () where they are numbers.
      columns: that a run was trained on; () for a checkpoint.
      config: of that run; the defaults, with the task, for a checkpoint.
      directory: the run that it is from; None for a checkpoint.
    """

    path: Path
    architecture: Architecture
    names: tuple[str, ...]
    columns: tuple[str, ...]
    config: ConfigDict
    directory: RunDirectory | None

    def check_whole(self, lacking: tuple[str, ...]) -> None:
        """Raises ValueError where its checkpoint lacks parameters: it has not learned its task."""
        if lacking:
            raise ValueError(
                f"{self.path} has no classifier for {self.architecture.num_labels} labels (it lacks "
                f"{', '.join(lacking)}); fine-tune it first"
            )


def open_existing(path: str | Path) -> Existing:
    """DIR of a run, for its DIR/best, or a checkpoint with a classifier; or the address of one in a store.

    Raises:
      ValueError: neither of the two, a run that has not finished, or files that are damaged.
      StoreError: the store cannot be reached.
    """
    directory = RunDirectory(with_best(path))
    raw = directory.read_json("config.json")
    if "model_type" in raw or timm_config.is_timm(raw):
        return _checkpoint(directory.path, raw)
    return open_run(directory)


def find_existing(place: str) -> Existing:
    """The same of a directory, an address or a hub id.

    Raises:
      ValueError: as `open_existing`, or that there is no such directory or id.
    """
    return open_existing(place if is_remote(place) else local_checkpoint(place))


def open_run(directory: RunDirectory, model: Path | None = None) -> Existing:
    """The model of a run: its DIR/best, or what was exported of it to another place.

    Raises:
      ValueError: as `open_existing`.
    """
    config = directory.config()
    if model is None and not directory.best.is_dir():
        raise ValueError(
            f"{directory.path} has no best/ yet: finish the run with the command that began it, "
            f"or write one now with: python -m jaxft.export --run {directory.path} "
            f"--output {directory.best}"
        )
    source, task, place = directory.source(), TASKS[config.task], model or directory.best
    names, columns = source["label names"], source["columns"]
    if not _are_texts(names, task.fewest_names) or not _are_texts(columns, 1):
        raise ValueError(f"{directory.path / 'source.json'} is not what jaxft wrote; restore it")
    architecture = load_architecture(
        str(place), num_labels=len(task.id2label(names)), head=task.head,
        implementation=config.model.implementation,
    )  # fmt: skip
    if architecture.inputs != KINDS[task.inputs].model:
        raise ValueError(f"{place} is not the model of the run: it is of another task")
    return Existing(place, architecture, tuple(names), tuple(columns), config, directory)


def _checkpoint(path: Path, raw: dict[str, Any]) -> Existing:
    config = default_config()
    for name, task in TASKS.items():
        if not task.recognises(raw):
            continue
        try:
            labelled = timm_config.with_labels(raw) if timm_config.is_timm(raw) else raw
            names = task.names_in(labelled)
        except ValueError as error:
            raise ValueError(f"{path / 'config.json'}: {error}") from None
        labels = len(task.id2label(names))
        architecture = load_architecture(str(path), num_labels=labels, head=task.head)
        if architecture.inputs == KINDS[task.inputs].model:
            config.task = name
            return Existing(path, architecture, names, (), config, None)
    raise ValueError(
        f"{path}: problem_type {raw.get('problem_type')!r} of {raw.get('architectures')!r:.80} is not "
        f"implemented; there are {', '.join(TASKS)}"
    )


def _are_texts(value: Any, least: int) -> bool:
    """Whether this is a list of so many different texts, or more."""
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        return False
    return least <= len(value) == len(set(value))
