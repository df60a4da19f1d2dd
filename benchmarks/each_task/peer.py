"""One run of a peer: the PyTorch recipe of a task, as its documentation has it, in one process.

    python benchmarks/each_task/peer.py --task seq2seq --model DIR --train FILE --test FILE --output OUT

`run_clm` and the like are the examples of transformers, whose ways with the data are these; trl and
sentence-transformers are in `peer_libraries.py`. Batch, epochs, rate, schedule, decay and clipping are those
of jaxft. The checkpoint of the last step is in OUT/best; OUT/metrics.jsonl says when which step was logged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from settings import SETTINGS, Setting, arguments_of, read_rows
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForMultipleChoice,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

Rows = list[dict[str, Any]]


class Rowwise(TrainerCallback):
    """Says when a step was logged, as the rows of jaxft's metrics.jsonl do."""

    def __init__(self, path: Path):
        self._path = path

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in (logs or {}):
            with open(self._path, "a") as file:
                print(json.dumps({"kind": "train", "step": state.global_step, **logs}), file=file)


def finish(trainer: Trainer, tokenizer, output: str) -> None:
    """Train, evaluate once, save."""
    trainer.add_callback(Rowwise(Path(output) / "metrics.jsonl"))
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model(f"{output}/best")
    tokenizer.save_pretrained(f"{output}/best")


def causal_lm(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """run_clm: all tokens in a line, cut into blocks."""

    def blocks(path: str) -> Rows:
        text = Path(path).read_text("utf-8")
        ids = tokenizer(text, truncation=False, verbose=False).input_ids
        starts = range(0, len(ids) - setting.length + 1, setting.length)
        cut = [ids[start : start + setting.length] for start in starts]
        return [{"input_ids": one, "labels": list(one)} for one in cut]

    model = AutoModelForCausalLM.from_pretrained(args.model)
    return _trainer(setting, args, model, blocks, default_data_collator)


def masked_lm(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """run_mlm --line_by_line."""

    def encoded(path: str) -> Rows:
        texts = [row["text"] for row in read_rows(Path(path))]
        found = tokenizer(
            texts, truncation=True, max_length=setting.length, return_special_tokens_mask=True
        )
        return _rows(found)

    model = AutoModelForMaskedLM.from_pretrained(args.model)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    return _trainer(setting, args, model, encoded, collator)


def multi_label(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """run_classification, with several labels."""
    names = sorted({label for row in read_rows(Path(args.train)) for label in row["labels"]})

    def encoded(path: str) -> Rows:
        rows = read_rows(Path(path))
        found = _rows(tokenizer([row["text"] for row in rows], truncation=True, max_length=128))
        for one, row in zip(found, rows, strict=True):
            one["labels"] = [float(name in row["labels"]) for name in names]
        return found

    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, id2label=dict(enumerate(names)), problem_type="multi_label_classification"
    )
    return _trainer(setting, args, model, encoded, DataCollatorWithPadding(tokenizer))


def multiple_choice(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """run_swag."""

    def encoded(path: str) -> Rows:
        found = []
        for row in read_rows(Path(path)):
            both = [row["choice0"], row["choice1"]]
            one = tokenizer([row["question"]] * 2, both, truncation=True, max_length=setting.length)
            found.append({**one, "label": row["label"]})
        return found

    model = AutoModelForMultipleChoice.from_pretrained(args.model)
    return _trainer(setting, args, model, encoded, DataCollatorForMultipleChoice(tokenizer))


def question_answering(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """run_qa, with batches padded to their longest; every context here is one window."""

    def encoded(path: str) -> Rows:
        rows = read_rows(Path(path))
        found = tokenizer(
            [row["question"] for row in rows], [row["context"] for row in rows],
            truncation="only_second", max_length=setting.length, return_offsets_mapping=True,
        )  # fmt: skip
        offsets = found.pop("offset_mapping")
        examples = _rows(found)
        for number, (row, one) in enumerate(zip(rows, examples, strict=True)):
            start = row["answers"]["answer_start"][0]
            end = start + len(row["answers"]["text"][0])
            inside = [
                place for place, part in enumerate(found.sequence_ids(number))
                if part == 1 and offsets[number][place][0] < end and offsets[number][place][1] > start
            ]  # fmt: skip
            one["start_positions"], one["end_positions"] = inside[0], inside[-1]
        return examples

    model = AutoModelForQuestionAnswering.from_pretrained(args.model)
    return _trainer(setting, args, model, encoded, DataCollatorWithPadding(tokenizer))


def seq2seq(setting: Setting, args: argparse.Namespace, tokenizer) -> Trainer:
    """run_summarization."""

    def encoded(path: str) -> Rows:
        rows = read_rows(Path(path))
        limit = {"truncation": True, "max_length": setting.length}
        found = tokenizer([row["question"] for row in rows], **limit)
        found["labels"] = tokenizer(text_target=[r["answer"] for r in rows], **limit)["input_ids"]
        return _rows(found)

    model = AutoModelForSeq2SeqLM.from_pretrained(args.model)
    data: dict[str, Any] = {
        "train_dataset": encoded(args.train),
        "eval_dataset": encoded(args.test),
    }
    return Seq2SeqTrainer(
        model, Seq2SeqTrainingArguments(**arguments_of(setting, args)), **data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )  # fmt: skip


def _trainer(setting: Setting, args, model, encoded: Callable[[str], Rows], collator) -> Trainer:
    return Trainer(
        model, TrainingArguments(**arguments_of(setting, args)), train_dataset=encoded(args.train),
        eval_dataset=encoded(args.test), data_collator=collator,
    )  # fmt: skip


def _rows(columns) -> Rows:
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def main() -> None:
    """Train one and leave it in --output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", required=True, choices=SETTINGS)
    for name in ("model", "train", "test", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    setting = SETTINGS[args.task]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    makers: dict[str, Callable[..., Any]] = {
        each.__name__: each
        for each in (
            causal_lm,
            masked_lm,
            multi_label,
            multiple_choice,
            question_answering,
            seq2seq,
        )
    }
    if args.task not in makers:
        import peer_libraries

        makers = peer_libraries.MAKERS
    finish(makers[args.task](setting, args, tokenizer), tokenizer, args.output)


if __name__ == "__main__":
    main()
