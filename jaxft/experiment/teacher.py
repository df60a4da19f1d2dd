"""The teacher that a config names: whether it is of the task, and its labels those of the data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxft.config import ConfigDict
from jaxft.data.files import some
from jaxft.data.inputs import KINDS
from jaxft.experiment.data import Splits
from jaxft.experiment.encoder import Encoder, make_encoder
from jaxft.experiment.existing import Existing, find_existing
from jaxft.models import hf
from jaxft.tasks.contract import Distils, Task
from jaxft.tasks.table import TASKS


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that fits the task and the data; its weights are not read yet.

    Attributes:
      order: which of its outputs is each of the run's; () where they have no names.
    """

    model: Existing
    order: tuple[int, ...]

    @property
    def directory(self) -> str:
        """Of its checkpoint."""
        return str(self.model.path)

    def record(self) -> dict[str, str]:
        """What source.json holds of it: a digest of each part."""
        found = hf.fingerprints(self.directory)
        return {f"teacher {name}": value for name, value in found.items()}

    def encoder(self, splits: Splits, cache: str | None) -> Encoder:
        """What reads rows for it: its own tokenizer or preprocessor, texts as long as it was trained on.

        Raises:
          ValueError: it cannot read the inputs of the run.
        """
        model = self.model
        inputs = TASKS[model.config.task].inputs
        return make_encoder(
            model.config, inputs, self.directory, model.architecture.limits, splits, cache
        )


def find_teacher(config: ConfigDict, task: Task[Any]) -> Existing | None:
    """The model that `config.distill` names; None where nothing is to be learned from one.

    Raises:
      ValueError: there is no such model, it is of another task, or the task learns from none.
    """
    place = config.distill.teacher
    if not place:
        return None
    with _naming(place):
        if not isinstance(task, Distils):
            able = [name for name, other in TASKS.items() if isinstance(other, Distils)]
            raise ValueError(
                f"config.task={config.task!r} learns from no teacher; those that do are {', '.join(able)}"
            )
        if not config.distill.weight:
            return None
        model = find_existing(place)
        if model.config.task != config.task:
            raise ValueError(
                f"it is a model of {model.config.task!r}, and config.task is {config.task!r}; a teacher has "
                "learned the same task"
            )
        model.check_whole(hf.missing(str(model.path), model.architecture))
        return model


def fitting(model: Existing, config: ConfigDict, splits: Splits) -> Teacher:
    """The teacher, once the data of the run are known.

    Raises:
      ValueError: it has other labels, or reads other inputs.
    """
    with _naming(config.distill.teacher):
        kind, task = KINDS[TASKS[config.task].inputs], TASKS[config.task]
        if kind.pairs and model.columns and len(model.columns) != len(splits.columns):
            raise ValueError(
                f"it reads {len(model.columns)} columns ({', '.join(model.columns)}), and the run "
                f"{len(splits.columns)} ({', '.join(splits.columns)}); name as many by config.data.text"
            )
        order = _order(model.names, splits.names) if task.fewest_names else ()
        teacher = Teacher(model, order)
        teacher.encoder(splits, None)
    return teacher


def _order(its: tuple[str, ...], ours: tuple[str, ...]) -> tuple[int, ...]:
    """Where each of our labels is among its own."""
    number = {name: i for i, name in enumerate(its)}
    lacking = [name for name in ours if name not in number]
    more = [name for name in its if name not in ours]
    if lacking or more:
        only = [f"only the data have {some(lacking)}"] * bool(lacking)
        only += [f"only the teacher has {some(more)}"] * bool(more)
        raise ValueError(
            f"its labels are {some(list(its), 8)}, and those of the training data {some(list(ours), 8)}: "
            f"{', '.join(only)}; both need the same names, in any order (id2label in its config.json)"
        )
    return tuple(number[name] for name in ours)


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Says of a mistake in the block that it is about the teacher."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"config.distill.teacher={place!r}: {error}") from None
