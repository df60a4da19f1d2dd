"""Which task a name means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxft.tasks.classification import Classification
from jaxft.tasks.contract import Configured, Task
from jaxft.tasks.embedding import Embedding
from jaxft.tasks.few_shot import FewShot
from jaxft.tasks.instruction import Instruction
from jaxft.tasks.language_modelling import LanguageModelling, MaskedLanguageModelling
from jaxft.tasks.multi_label import MultiLabel
from jaxft.tasks.multiple_choice import MultipleChoice
from jaxft.tasks.preference import Preference
from jaxft.tasks.question_answering import QuestionAnswering
from jaxft.tasks.regression import Regression
from jaxft.tasks.seq2seq import Seq2Seq
from jaxft.tasks.token_classification import TokenClassification

TASKS: Mapping[str, Task[Any]] = {
    "text_classification": Classification("text"),
    "image_classification": Classification("image"),
    "multi_label": MultiLabel("text"),
    "image_multi_label": MultiLabel("image"),
    "text_regression": Regression("text"),
    "image_regression": Regression("image"),
    "token_classification": TokenClassification(),
    "causal_lm": LanguageModelling(),
    "masked_lm": MaskedLanguageModelling(),
    "embedding": Embedding(),
    "few_shot": FewShot(),
    "multiple_choice": MultipleChoice(),
    "question_answering": QuestionAnswering(),
    "instruction": Instruction(),
    "seq2seq": Seq2Seq(),
    "preference": Preference(),
}


def task_of(name: str, values: Mapping[str, Any]) -> Task[Any]:
    """A task with what a config says of it.

    Args:
      values: of the config's fields, by dotted name.
    """
    task: Any = TASKS[name]
    settings = task.settings if isinstance(task, Configured) else {}
    own = {attribute: values[field] for field, attribute in settings.items()}
    return dataclasses.replace(task, **own) if own else task
