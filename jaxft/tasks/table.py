"""Which task a name means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxft.tasks.classification import Classification
from jaxft.tasks.contract import Task
from jaxft.tasks.language_modelling import LanguageModelling, MaskedLanguageModelling
from jaxft.tasks.multi_label import MultiLabel
from jaxft.tasks.regression import Regression
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
}
