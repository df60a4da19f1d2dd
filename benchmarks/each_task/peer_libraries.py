"""The peers that are libraries of their own: trl and sentence-transformers."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from settings import Setting, arguments_of, read_rows
from transformers import Trainer

# Their own defaults are those of a GPU; both are exact settings of the same training.
FULL_PRECISION = {"bf16": False, "gradient_checkpointing": False}


def instruction(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """SFTTrainer on prompts and completions, of which the completions are learned (its default)."""
    from trl import SFTConfig, SFTTrainer

    def conversations(path: str) -> Dataset:
        return Dataset.from_list(
            [
                {"prompt": _said("user", row["prompt"]),
                 "completion": _said("assistant", row["completion"])}
                for row in read_rows(Path(path))
            ]
        )  # fmt: skip

    config = SFTConfig(max_length=setting.length, **FULL_PRECISION, **arguments_of(setting, args))
    return SFTTrainer(
        args.model, config, processing_class=tokenizer,
        train_dataset=conversations(args.train), eval_dataset=conversations(args.test),
    )  # fmt: skip


def preference(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """DPOTrainer; the reference is the model that training begins with, and beta 0.1 (its defaults)."""
    from trl import DPOConfig, DPOTrainer

    def pairs(path: str) -> Dataset:
        return Dataset.from_list(
            [
                {"prompt": _said("user", row["prompt"]), "chosen": _said("assistant", row["chosen"]),
                 "rejected": _said("assistant", row["rejected"])}
                for row in read_rows(Path(path))
            ]
        )  # fmt: skip

    config = DPOConfig(max_length=setting.length, **FULL_PRECISION, **arguments_of(setting, args))
    return DPOTrainer(
        args.model, args=config, processing_class=tokenizer,
        train_dataset=pairs(args.train), eval_dataset=pairs(args.test),
    )  # fmt: skip


def embedding(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """MultipleNegativesRankingLoss over (anchor, positive, negative)."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(args.model, device="cpu")
    return SentenceTransformerTrainer(
        model, SentenceTransformerTrainingArguments(**arguments_of(setting, args)),
        train_dataset=Dataset.from_list(read_rows(Path(args.train))),
        eval_dataset=Dataset.from_list(read_rows(Path(args.test))),
        loss=MultipleNegativesRankingLoss(model),
    )  # fmt: skip


def _said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


MAKERS = {each.__name__: each for each in (instruction, preference, embedding)}
