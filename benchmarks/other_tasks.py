"""Tags, numbers, several labels: jaxft beside `transformers.Trainer`, on one checkpoint, seed by seed.

    python benchmarks/other_tasks.py --task token_classification --model DIR \
        --train train.conll --test test.conll --seeds 3
    python benchmarks/other_tasks.py --task text_regression --model DIR --train train.csv --test test.csv
    python benchmarks/other_tasks.py --task multi_label --model DIR --train train.csv --test test.csv

The Trainer is set up as in the examples of transformers for these tasks: the first token of a word has its
tag, the others none; one output and the mean squared error for numbers; `problem_type`
'multi_label_classification' for several labels. Batch size, rates, warm-up, decay
and clipping are those of jaxft. Both results are Hugging Face checkpoints of their last step, and one
PyTorch function measures both: entity F1 by seqeval; Pearson and the root of the mean squared error; average
precision and the highest micro F1 that any one threshold gives, by scikit-learn.
Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch
from seqeval.metrics import f1_score
from sklearn.metrics import average_precision_score, precision_recall_curve
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from jaxft import train as jaxft_train

CONFIGS = Path(__file__).parent.parent / "configs"


class Words(torch.utils.data.Dataset):
    """Sentences of a CoNLL file; the first token of a word carries its tag, the others -100."""

    def __init__(self, path: str, tokenizer, names: list[str]):
        blocks = Path(path).read_text("utf-8").strip().split("\n\n")
        pairs = [[line.split("\t") for line in block.split("\n")] for block in blocks]
        self.tags = [[pair[-1] for pair in sentence] for sentence in pairs]
        self.names = names or sorted({tag for tags in self.tags for tag in tags})
        words = [[pair[0] for pair in sentence] for sentence in pairs]
        self.encoded = tokenizer(words, is_split_into_words=True, truncation=True)
        numbers = {name: number for number, name in enumerate(self.names)}
        self.labels = []
        for row, tags in enumerate(self.tags):
            at = self.encoded.word_ids(row)
            first = [
                w is not None and w != before for w, before in zip(at, [None, *at], strict=False)
            ]
            self.labels.append(
                [numbers[tags[w]] if new else -100 for w, new in zip(at, first, strict=True)]
            )

    def __len__(self) -> int:
        return len(self.tags)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**{k: v[i] for k, v in self.encoded.items()}, "labels": self.labels[i]}

    def score(self, logits: list[np.ndarray], names: dict[int, str]) -> dict[str, float]:
        """Entity F1 of logits [T, C] a sentence; `names` are the model's own, each side orders them."""
        found = []
        for row, scores in enumerate(logits):
            chosen = scores.argmax(-1)
            kept = [i for i, label in enumerate(self.labels[row]) if label >= 0]
            tags = [names[int(chosen[i])] for i in kept]
            found.append(tags + ["O"] * (len(self.tags[row]) - len(tags)))  # cut words have none
        return {"f1": float(f1_score(self.tags, found))}


class Numbers(torch.utils.data.Dataset):
    """Texts and numbers of a CSV file with the columns text and score."""

    names = ["LABEL_0"]

    def __init__(self, path: str, tokenizer, names: list[str]):
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.encoded = tokenizer([row["text"] for row in rows], truncation=True)
        self.labels = [float(row["score"]) for row in rows]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**{k: v[i] for k, v in self.encoded.items()}, "labels": self.labels[i]}

    def score(self, logits: list[np.ndarray], names: dict[int, str]) -> dict[str, float]:
        """Pearson correlation and root mean squared error of logits [1] a text."""
        given, true = np.concatenate(logits), np.array(self.labels)
        return {
            "pearson": float(np.corrcoef(given, true)[0, 1]),
            "rmse": math.sqrt(np.mean((given - true) ** 2)),
        }


class Sets(torch.utils.data.Dataset):
    """Texts and labels, joined by '|', of a CSV file with the columns text and label."""

    def __init__(self, path: str, tokenizer, names: list[str]):
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.encoded = tokenizer([row["text"] for row in rows], truncation=True)
        sets = [set(filter(None, row["label"].split("|"))) for row in rows]
        self.names = names or sorted(set().union(*sets))
        self.labels = [[float(name in own) for name in self.names] for own in sets]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**{k: v[i] for k, v in self.encoded.items()}, "labels": self.labels[i]}

    def score(self, logits: list[np.ndarray], names: dict[int, str]) -> dict[str, float]:
        """Of logits [C] a text."""
        truth, scores = np.array(self.labels), np.stack(logits)
        scores = scores[:, [list(names.values()).index(name) for name in self.names]]
        precision, recall, _ = precision_recall_curve(truth.ravel(), scores.ravel())
        return {
            "average_precision_macro": float(average_precision_score(truth, scores)),
            "average_precision_micro": float(
                average_precision_score(truth, scores, average="micro")
            ),
            "f1_micro": float(np.max(2 * precision * recall / (precision + recall + 1e-12))),
        }


KINDS = {
    "multi_label": (Sets, AutoModelForSequenceClassification, DataCollatorWithPadding),
    "token_classification": (
        Words,
        AutoModelForTokenClassification,
        DataCollatorForTokenClassification,
    ),
    "text_regression": (Numbers, AutoModelForSequenceClassification, DataCollatorWithPadding),
}


def main() -> None:
    """One line a run, and the means."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind, model_class, collator = KINDS[args.task]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.model_max_length = min(tokenizer.model_max_length, 512)
    train: Any = kind(args.train, tokenizer, [])
    test: Any = kind(args.test, tokenizer, train.names)
    found: dict[str, list[dict[str, float]]] = {"jaxft": [], "Trainer": []}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for side, run in (("jaxft", _jaxft), ("Trainer", _trainer)):
                start = time.process_time()
                with _quiet():
                    run(args, seed, folder, train, model_class, collator(tokenizer))
                    model = model_class.from_pretrained(f"{folder}/{side}/best").eval()
                scores = test.score(_logits(model, test, tokenizer), model.config.id2label)
                found[side].append(scores)
                print(
                    f"  {side} seed {seed}: {scores}, {time.process_time() - start:.0f} CPU s",
                    flush=True,
                )
    for side, runs in found.items():
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            print(f"{side} {name}: {values.mean():.4f} ± {values.std(ddof=1):.4f}")


def _jaxft(args, seed: int, folder: str, train, model_class, collator) -> None:
    """The weights of the last step: the only evaluation is at the end."""
    fields = {
        "model.path": args.model, "data.train": args.train, "data.eval": args.test,
        "train.seed": seed, "train.batch_size": args.batch_size, "train.epochs": args.epochs,
        "optim.lr": args.lr, "eval.every": "100%", "log.tensorboard": "false",
        "checkpoint.every_steps": 1000000,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = ["train", f"--config={CONFIGS}/{args.task}.py", f"--workdir={folder}/jaxft", *flags]
    assert jaxft_train.main(command) == 0


def _trainer(args, seed: int, folder: str, train, model_class, collator) -> None:
    torch.manual_seed(seed)
    problems = {"text_regression": "regression", "multi_label": "multi_label_classification"}
    own = {"problem_type": problems[args.task]} if args.task in problems else {}
    id2label = dict(enumerate(train.names))
    model = model_class.from_pretrained(args.model, id2label=id2label, **own)
    options = TrainingArguments(
        output_dir=f"{folder}/Trainer", per_device_train_batch_size=args.batch_size,
        num_train_epochs=args.epochs, learning_rate=args.lr, warmup_steps=0.1,
        lr_scheduler_type="linear", weight_decay=0.01, max_grad_norm=1.0, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=seed,
    )  # fmt: skip
    trainer = Trainer(model, options, train_dataset=train, data_collator=collator)
    trainer.train()
    trainer.save_model(f"{folder}/Trainer/best")


@torch.no_grad()
def _logits(model: torch.nn.Module, test, tokenizer) -> list[np.ndarray]:
    """Of each row, in fp32, in the order of the test data: [T, C] for words, else [C] or [1]."""
    order = sorted(range(len(test)), key=lambda i: len(test.encoded["input_ids"][i]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        inputs = [{k: v[i] for k, v in test.encoded.items()} for i in rows]
        logits = model(**tokenizer.pad(inputs, return_tensors="pt")).logits.float().numpy()
        found |= {
            row: scores[: len(one["input_ids"])] if scores.ndim == 2 else scores
            for row, scores, one in zip(rows, logits, inputs, strict=True)
        }
    return [found[row] for row in range(len(test))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True, choices=KINDS)
    for name in ("model", "train", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
