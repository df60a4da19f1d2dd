"""The peer of the two comparisons: the same fine-tuning by PyTorch and `transformers.Trainer`, one process.

Reads, tokenises, trains, evaluates once and saves, as a user of the Trainer would write it. Prints one
JSON line. Its defaults are left alone: fused AdamW, dynamic padding, no workers.
"""

from __future__ import annotations

import argparse
import csv
import json
import time

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


class Encoded(torch.utils.data.Dataset):
    """Tokenised rows of a CSV file."""

    def __init__(self, path: str, columns: list[str], label: str, names: list[str], tokenizer):
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.encoded = tokenizer(*([row[c] for row in rows] for c in columns), truncation=True)
        self.labels = [names.index(row[label]) for row in rows]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict:
        return {**{k: v[i] for k, v in self.encoded.items()}, "labels": self.labels[i]}


def main() -> None:
    """Train and print {"accuracy", "f1_macro", "train_seconds"}."""
    start = time.perf_counter()
    args = _arguments()
    torch.manual_seed(args.seed)
    columns = args.text.split(",")
    with open(args.train, newline="", encoding="utf-8") as file:
        names = sorted({row[args.label] for row in csv.DictReader(file)})
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.model_max_length = min(tokenizer.model_max_length, 512)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names))
    if args.freeze_below >= 0:
        for part in (model.bert.embeddings, *model.bert.encoder.layer[: args.freeze_below]):
            part.requires_grad_(False)
    train = Encoded(args.train, columns, args.label, names, tokenizer)
    test = Encoded(args.test, columns, args.label, names, tokenizer)
    trainer = make_trainer(args, model, tokenizer, train, test)
    began = time.perf_counter()
    trainer.train()
    trained = time.perf_counter() - began
    logits = np.asarray(trainer.predict(test).predictions)
    trainer.save_model(args.output)
    predicted, labels = logits.argmax(-1), np.array(test.labels)
    result = {
        "accuracy": float((predicted == labels).mean()),
        "train_seconds": trained,
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(result))


def make_trainer(args, model, tokenizer, train, test, *, kind: type[Trainer] = Trainer) -> Trainer:
    """The Trainer of these options, ready to train; `kind` is its class, or one made from it."""
    return kind(
        model,
        TrainingArguments(
            output_dir=args.output,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=64,
            num_train_epochs=args.epochs,
            learning_rate=args.lr,
            warmup_steps=0.1,
            lr_scheduler_type="linear",
            weight_decay=0.01,
            max_grad_norm=1.0,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=args.seed,
            train_sampling_strategy="group_by_length" if args.group_by_length else "random",
        ),
        train_dataset=train,
        eval_dataset=test,
        data_collator=DataCollatorWithPadding(tokenizer),
        optimizers=_optimizer(model, args),
    )


def _optimizer(model, args) -> tuple:
    """(None, None) for the Trainer's own; with --layer_decay, the same AdamW over scaled groups."""
    if args.layer_decay == 1.0:
        return None, None
    depth_of_head = model.config.num_hidden_layers + 1
    groups = []
    for name, value in model.named_parameters():
        if not value.requires_grad:
            continue
        depth = depth_of_head
        if ".embeddings." in name:
            depth = 0
        elif ".layer." in name:
            depth = int(name.split(".layer.")[1].split(".")[0]) + 1
        no_decay = name.endswith("bias") or "LayerNorm" in name
        groups.append(
            {
                "params": [value],
                "lr": args.lr * args.layer_decay ** (depth_of_head - depth),
                "weight_decay": 0.0 if no_decay else 0.01,
            }
        )
    return torch.optim.AdamW(groups, lr=args.lr, fused=True), None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "train", "test", "text", "label", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--layer_decay", type=float, default=1.0)
    parser.add_argument("--freeze_below", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group_by_length", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
