"""The model of a checkpoint, with the head that the task of a config needs."""

from __future__ import annotations

from jaxft.config import ConfigDict
from jaxft.data.inputs import KINDS
from jaxft.models import Architecture, NoHeadError, load_architecture
from jaxft.tasks.table import TASKS

# What may be learned in place of a task for which a model type has no class, the nearest first, and how.
_INSTEAD = {
    "question_answering": (
        ("seq2seq", "whose target is the answer"),
        ("instruction", "whose assistant says the answer"),
    ),
    "multiple_choice": (
        ("text_classification", "of one row for each choice, right or wrong"),
        ("causal_lm", "whose predict gives the perplexity of each choice"),
    ),
}


def open_model(
    config: ConfigDict, directory: str, *, name: str, num_labels: int,
    dropout: float | None = None, stochastic_depth: float | None = None, new_head: bool,
    vocabulary: int,
) -> Architecture:  # fmt: skip
    """The architecture of the checkpoint in `directory`; no weights are touched.

    Args:
      name: of the checkpoint in messages.
      num_labels, dropout, stochastic_depth, new_head, vocabulary: see `models.load_architecture`.

    Raises:
      ValueError: as `models.load_architecture`; a model that the task cannot use, with the tasks that can.
    """
    task = TASKS[config.task]
    try:
        architecture = load_architecture(
            directory,
            num_labels=num_labels,
            head=task.head,
            dropout=dropout,
            new_head=new_head,
            implementation=config.model.implementation,
            depths=tuple((pattern, depth) for pattern, depth in config.model.depths),
            vocabulary=vocabulary,
            stochastic_depth=stochastic_depth,
        )
    except NoHeadError as error:
        can = _tasks_of(error.has)
        instead = (
            f"{other}, {how}" for other, how in _INSTEAD.get(config.task, ()) if other in can
        )
        nearest = next((f"; nearest is {said}" for said in instead), "")
        raise ValueError(
            f"config.task={config.task!r} is not for {name}: {error.what}; it can be trained by "
            f"{', '.join(can)}{nearest}"
        ) from None
    model = KINDS[task.inputs].model
    if architecture.inputs != model:
        raise ValueError(
            f"config.task={config.task!r} needs a model of {model}, but {name} is "
            f"{architecture.model_type!r}, a model of {architecture.inputs}"
        )
    return architecture


def _tasks_of(heads: tuple[str, ...]) -> list[str]:
    """The tasks for models with these kinds of heads."""
    classifies = {"text": "sequence", "image": "image"}
    return [
        name
        for name, task in TASKS.items()
        if (task.head or classifies[KINDS[task.inputs].model]) in heads
    ]
