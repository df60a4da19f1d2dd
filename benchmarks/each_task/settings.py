"""What each task is fine-tuned with, on both sides."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """One task beside its peer.

    Attributes:
      start: the checkpoint that both begin with, a name of `prepare.py`.
      recipe: whose documented recipe the peer is.
      metric: by which the two are compared; one of those that `score.py` gives.
      higher: more of it is better.
      length: tokens of a text, of a block or window, or of both sides of an example.
      log_every: steps between two rows of the log, from which the speed of the loop is told.
      flags: fields of jaxft's config beyond those that every task is given.
    """

    start: str
    recipe: str
    metric: str
    higher: bool
    batch_size: int
    epochs: float
    lr: float
    length: int = 128
    log_every: int = 10
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)


SETTINGS = {
    "causal_lm": Setting(
        "decoder", "run_clm", "loss", False, 8, 1.0, 3e-3, flags={"data.sample_by": "document"}
    ),
    "preference": Setting("tuned", "trl DPOTrainer", "accuracy", True, 16, 1.0, 3e-4),
    "instruction": Setting("decoder", "trl SFTTrainer", "loss", False, 8, 1.0, 3e-3, length=512),
    "multiple_choice": Setting("minilm", "run_swag", "accuracy", True, 16, 2.0, 2e-4),
    "question_answering": Setting("minilm", "run_qa", "f1", True, 16, 2.0, 3e-4, length=384),
    "seq2seq": Setting(
        "t5", "run_summarization", "loss", False, 16, 1.0, 3e-3, length=256,
        flags={"data.max_target_length": 256, "eval.generate": 0},
    ),
    "masked_lm": Setting("minilm", "run_mlm, line by line", "loss", False, 16, 1.0, 5e-4),
    "embedding": Setting(
        "minilm", "sentence-transformers", "mrr", True, 64, 1.0, 1e-4, log_every=2
    ),
    "multi_label": Setting(
        "minilm", "run_classification", "average_precision_macro", True, 16, 2.0, 5e-4
    ),
}  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def data_file(work: Path, task: str, split: str) -> Path:
    """Where `prepare.py` writes 'train' or 'test' of a task."""
    suffix = "txt" if task == "causal_lm" else "jsonl"
    return work / "data" / task / f"{split}.{suffix}"


def arguments_of(setting: Setting, args: argparse.Namespace) -> dict[str, Any]:
    """What every kind of the peer's TrainingArguments is given: the numbers of jaxft's config."""
    return {
        "output_dir": args.output, "per_device_train_batch_size": setting.batch_size,
        "per_device_eval_batch_size": 64, "num_train_epochs": setting.epochs,
        "learning_rate": setting.lr, "warmup_steps": 0.1, "lr_scheduler_type": "linear",
        "weight_decay": 0.01, "max_grad_norm": 1.0, "logging_steps": setting.log_every,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": args.seed,
        "use_cpu": True,
    }  # fmt: skip
