"""The tasks by name, with their metrics: what may be said in a config, known without importing jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Direction = Literal["max", "min"]

_CLASSIFICATION: Mapping[str, Direction] = {
    "accuracy": "max",
    "f1_macro": "max",
    "f1_micro": "max",
    "mcc": "max",
    "loss": "min",
}
_LANGUAGE: Mapping[str, Direction] = {
    "loss": "min",
    "perplexity": "min",
    "accuracy": "max",
}
_MULTI_LABEL: Mapping[str, Direction] = {
    "average_precision_macro": "max",
    "average_precision_micro": "max",
    "label_ranking_average_precision": "max",
    "f1_micro": "max",
    "f1_macro": "max",
    "f1_micro_tuned": "max",
    "f1_macro_tuned": "max",
    "subset_accuracy": "max",
    "subset_accuracy_tuned": "max",
    "hamming_loss": "min",
    "loss": "min",
}
_REGRESSION: Mapping[str, Direction] = {
    "loss": "min",
    "rmse": "min",
    "mae": "min",
    "pearson": "max",
    "spearman": "max",
    "r2": "max",
}
# Of texts that are generated.
WRITTEN: Mapping[str, Direction] = {
    "rougeL": "max",
    "rouge1": "max",
    "rouge2": "max",
    "bleu": "max",
    "chrf": "max",
    "exact_match": "max",
}
# task -> the metrics that may choose its best checkpoint, and whether more or less of each is better
METRICS: Mapping[str, Mapping[str, Direction]] = {
    "text_classification": _CLASSIFICATION,
    "image_classification": _CLASSIFICATION,
    "few_shot": _CLASSIFICATION,
    "multi_label": _MULTI_LABEL,
    "image_multi_label": _MULTI_LABEL,
    "text_regression": _REGRESSION,
    "image_regression": _REGRESSION,
    "embedding": {
        "spearman": "max",
        "pearson": "max",
        "recall_at_1": "max",
        "recall_at_5": "max",
        "recall_at_10": "max",
        "mrr": "max",
        "loss": "min",
    },
    "multiple_choice": {"accuracy": "max", "loss": "min"},
    "question_answering": {
        "f1": "max",
        "exact_match": "max",
        "has_answer_f1": "max",
        "has_answer_exact_match": "max",
        "no_answer_accuracy": "max",
        "loss": "min",
    },
    "token_classification": {
        "f1": "max",
        "f1_macro": "max",
        "precision": "max",
        "recall": "max",
        "accuracy": "max",
        "loss": "min",
    },
    "causal_lm": _LANGUAGE,
    "instruction": _LANGUAGE,
    "masked_lm": _LANGUAGE,
    "seq2seq": {**_LANGUAGE, **WRITTEN},
    "preference": {"accuracy": "max", "margin": "max", "loss": "min"},
}
# Tasks whose inputs may be more than two columns.
MANY_COLUMNS = ("embedding", "instruction", "multiple_choice", "preference")


def minimised(task: str) -> tuple[str, ...]:
    """The metrics of a task of which less is better."""
    return tuple(name for name, direction in METRICS[task].items() if direction == "min")
