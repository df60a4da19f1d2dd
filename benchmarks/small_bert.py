"""Pretrain a small BERT from texts of your own, so that `same_result.py` has something to fine-tune.

    python benchmarks/small_bert.py --output small_bert goemotions.csv:text snli.csv:text_a,text_b

Each argument is a CSV or JSONL file with one or two text columns, or a .txt file whose paragraphs are
its texts. WordPiece, masked words and "do these two belong together" as in Devlin et al. (2019), by
PyTorch; 4 blocks of width 128 and 8,000 word pieces, 2 million parameters. Saved as a Hugging Face
BertModel with its pooler. The loss of words that were guessed is printed; better than chance is all
that it has to be.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForPreTraining, BertTokenizer

Pair = tuple[str, str]
LENGTH = 64  # tokens of a pair; the rest is cut
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4


def main() -> None:
    """Tokenizer, pretraining, checkpoint."""
    args = _arguments()
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    pairs = [pair for spec in args.texts for pair in read_pairs(spec)]
    tokenizer = _tokenizer(pairs, args.vocabulary)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=args.width, num_hidden_layers=args.blocks,
        num_attention_heads=args.width // 32, intermediate_size=4 * args.width,
        max_position_embeddings=256,
    )  # fmt: skip
    model = BertForPreTraining(config)
    print(f"{len(pairs)} pairs, {model.num_parameters()} parameters", flush=True)
    _pretrain(model, tokenizer, pairs, args)
    model.bert.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


def read_pairs(spec: str) -> list[Pair]:
    """Two texts that belong together, from each row: its two columns, or the halves of its one."""
    path, _, columns = spec.partition(":")
    names = columns.split(",")
    with open(path, newline="", encoding="utf-8") as file:
        if path.endswith(".txt"):
            rows = [[paragraph] for paragraph in file.read().split("\n\n")]
        else:
            table = map(json.loads, file) if path.endswith(".jsonl") else csv.DictReader(file)
            rows = [[row[name] for name in names] for row in table]
    return [_halves(row[0]) if len(row) == 1 else (row[0], row[1]) for row in rows]


def _halves(text: str) -> Pair:
    words = text.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def _tokenizer(pairs: list[Pair], vocabulary: int) -> BertTokenizer:
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(
        (text for pair in pairs for text in pair), vocab_size=vocabulary, special_tokens=SPECIAL,
        show_progress=False,
    )  # fmt: skip
    return BertTokenizer(tokenizer_object=trained._tokenizer, model_max_length=256)


def _pretrain(model, tokenizer, pairs: list[Pair], args: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps)
    began, words = time.perf_counter(), 0.0
    for step in range(1, args.steps + 1):
        encoded, apart, hidden = _batch(tokenizer, pairs, args.batch_size)
        tokens, pooled = model.bert(**encoded["inputs"])[:2]
        scores = model.cls.predictions(tokens[hidden])  # of the hidden words alone: half the work
        guess = torch.nn.functional.cross_entropy(scores, encoded["words"][hidden])
        belong = torch.nn.functional.cross_entropy(model.cls.seq_relationship(pooled), apart)
        optimizer.zero_grad()
        (guess + belong).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        words += (guess.item() - words) / min(step, 50)
        if step % 50 == 0:
            seconds = time.perf_counter() - began
            print(f"step {step}: words {words:.3f}, {seconds:.0f} s", flush=True)


def _batch(tokenizer, pairs: list[Pair], size: int) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Inputs and words; 1 where the second text is another pair's; where words are to be guessed."""
    chosen = random.choices(pairs, k=size)
    apart = torch.tensor([random.random() < 0.5 for _ in chosen]).long()
    seconds = [
        random.choice(pairs)[1] if other else second
        for other, (_, second) in zip(apart, chosen, strict=True)
    ]
    inputs = tokenizer(
        [first for first, _ in chosen], seconds, truncation=True, max_length=LENGTH, padding=True,
        return_tensors="pt",
    )  # fmt: skip
    words = inputs["input_ids"]
    chance = torch.rand(words.shape)
    hidden = (words >= len(SPECIAL)) & (torch.rand(words.shape) < 0.15)
    masked = torch.where(hidden & (chance < 0.8), SPECIAL.index("[MASK]"), words)
    other = torch.randint(len(SPECIAL), len(tokenizer), words.shape)
    inputs["input_ids"] = torch.where(hidden & (chance >= 0.9), other, masked)
    return {"inputs": inputs, "words": words}, apart, hidden


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("texts", nargs="+", help="FILE:COLUMN[,COLUMN]")
    parser.add_argument("--output", required=True)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
