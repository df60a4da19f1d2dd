"""What a checkpoint does on the test data of a task, by one PyTorch function for both sides.

    python benchmarks/each_task/score.py --task seq2seq --checkpoint DIR --start DIR --test FILE

Prints one JSON object. In fp32, in evaluation mode; tokens are made by the tokenizer of --start, the
checkpoint that training began with. Losses are nats a token (of completions, of what is to be given, of
masked tokens).
"""

from __future__ import annotations

import argparse
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from settings import SETTINGS, read_rows
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch.nn.functional import cross_entropy

Scores = dict[str, float]
Rows = list[dict[str, Any]]
BATCH = 32


def causal_lm(checkpoint: str, start: str, path: Path) -> Scores:
    """Of blocks of 128 tokens, of which the first is only read."""
    model, tokenizer = _load("CausalLM", checkpoint, start)
    ids = tokenizer(path.read_text("utf-8"), truncation=False, verbose=False).input_ids
    length = SETTINGS["causal_lm"].length
    blocks = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    losses = [
        cross_entropy(model(part).logits[:, :-1].flatten(0, 1), part[:, 1:].flatten())
        * part[:, 1:].numel()
        for part in blocks.split(BATCH)
    ]
    loss = sum(losses).item() / blocks[:, 1:].numel()
    return {"loss": loss, "perplexity": float(np.exp(loss))}


def masked_lm(checkpoint: str, start: str, path: Path) -> Scores:
    """Of every seventh token, all of them masked at once."""
    model, tokenizer = _load("MaskedLM", checkpoint, start)
    total, count, right = 0.0, 0, 0
    for rows in _batches(read_rows(path)):
        batch = tokenizer(
            [row["text"] for row in rows], truncation=True, max_length=128, padding=True,
            return_tensors="pt", return_special_tokens_mask=True,
        )  # fmt: skip
        places = torch.arange(batch.input_ids.shape[1]) - torch.arange(len(rows))[:, None]
        chosen = (places % 7 == 0) & (batch.pop("special_tokens_mask") == 0)
        labels = batch.input_ids[chosen]
        batch.input_ids[chosen] = tokenizer.mask_token_id
        logits = model(**batch).logits[chosen]
        total += cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return {"loss": total / count, "accuracy": right / count}


def instruction(checkpoint: str, start: str, path: Path) -> Scores:
    """Of the completions, the token that ends them included."""
    model, tokenizer = _load("CausalLM", checkpoint, start)
    total, count = 0.0, 0
    for rows in _batches(read_rows(path)):
        pairs = [_conversation(tokenizer, row["prompt"], row["completion"]) for row in rows]
        found, counts = _answers(model, pairs)
        total -= float(found.sum())
        count += int(counts.sum())
    return {"loss": total / count}


def preference(checkpoint: str, start: str, path: Path) -> Scores:
    """Rewards of DPO, beta 0.1: how much likelier an answer became. `likelier`: without the reference."""
    rows = read_rows(path)
    found = {}
    for name, directory in (("tuned", checkpoint), ("first", start)):
        model, tokenizer = _load("CausalLM", directory, start)
        for answer in ("chosen", "rejected"):
            pairs = [_conversation(tokenizer, row["prompt"], row[answer]) for row in rows]
            found[name, answer] = torch.cat([_answers(model, part)[0] for part in _batches(pairs)])
    gained = {
        a: 0.1 * (found["tuned", a] - found["first", a]).numpy() for a in ("chosen", "rejected")
    }
    margin = gained["chosen"] - gained["rejected"]
    likelier = found["tuned", "chosen"] > found["tuned", "rejected"]
    return {
        "accuracy": float((margin > 0).mean()),
        "margin": float(margin.mean()),
        "loss": float(np.log1p(np.exp(-margin)).mean()),
        "likelier": float(likelier.float().mean()),
    }


def seq2seq(checkpoint: str, start: str, path: Path) -> Scores:
    """Of the texts to be given, each token after the true ones."""
    model, tokenizer = _load("Seq2SeqLM", checkpoint, start)
    length = SETTINGS["seq2seq"].length
    limit = {"truncation": True, "max_length": length, "padding": True, "return_tensors": "pt"}
    total, count = 0.0, 0
    for rows in _batches(read_rows(path)):
        read = tokenizer([row["question"] for row in rows], **limit)
        given = tokenizer(text_target=[row["answer"] for row in rows], **limit)
        labels = given.input_ids.masked_fill(given.attention_mask == 0, -100)
        logits = model(**read, labels=labels).logits
        total += cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += int((labels >= 0).sum())
    return {"loss": total / count}


def multi_label(checkpoint: str, start: str, path: Path) -> Scores:
    """Average precision, and the highest micro F1 that any one threshold gives."""
    model, tokenizer = _load("SequenceClassification", checkpoint, start)
    rows = read_rows(path)
    texts = [row["text"] for row in rows]
    scores = torch.cat([model(**_padded(tokenizer, part)).logits for part in _batches(texts)])
    names = [model.config.id2label[i] for i in range(scores.shape[1])]
    truth = np.array([[name in row["labels"] for name in names] for row in rows])
    precision, recall, _ = precision_recall_curve(truth.ravel(), scores.numpy().ravel())
    return {
        "average_precision_macro": float(average_precision_score(truth, scores)),
        "average_precision_micro": float(average_precision_score(truth, scores, average="micro")),
        "f1_micro": float(np.max(2 * precision * recall / (precision + recall + 1e-12))),
    }


def multiple_choice(checkpoint: str, start: str, path: Path) -> Scores:
    """The share of rows of which the right choice has the highest score."""
    model, tokenizer = _load("MultipleChoice", checkpoint, start)
    right, loss = [], []
    for rows in _batches(read_rows(path)):
        asked = [row["question"] for row in rows for _ in range(2)]
        choices = [row[name] for row in rows for name in ("choice0", "choice1")]
        batch = _padded(tokenizer, asked, choices)
        scores = model(**{k: v.view(len(rows), 2, -1) for k, v in batch.items()}).logits
        labels = torch.tensor([row["label"] for row in rows])
        right += (scores.argmax(-1) == labels).tolist()
        loss += cross_entropy(scores, labels, reduction="none").tolist()
    return {"accuracy": float(np.mean(right)), "loss": float(np.mean(loss))}


def question_answering(checkpoint: str, start: str, path: Path) -> Scores:
    """Exact match and F1 of SQuAD; the best span of up to 30 tokens of the context."""
    model, tokenizer = _load("QuestionAnswering", checkpoint, start)
    exact, f1 = [], []
    for rows in _batches(read_rows(path)):
        batch = _padded(
            tokenizer, [row["question"] for row in rows], [row["context"] for row in rows],
            truncation="only_second", max_length=384, return_offsets_mapping=True,
        )  # fmt: skip
        offsets = batch.pop("offset_mapping")
        found = model(**batch)
        for i, row in enumerate(rows):
            inside = torch.tensor([part == 1 for part in batch.sequence_ids(i)])
            first = found.start_logits[i].masked_fill(~inside, -1e9)
            last = found.end_logits[i].masked_fill(~inside, -1e9)
            spans = (first[:, None] + last[None, :]).triu().tril(29)
            allowed = torch.ones_like(spans).triu().tril(29) > 0
            best = int(spans.masked_fill(~allowed, -1e10).argmax())
            begin, end = divmod(best, len(first))
            said = row["context"][int(offsets[i, begin, 0]) : int(offsets[i, end, 1])]
            scores = [_answer(said, true) for true in row["answers"]["text"]]
            exact.append(max(score[0] for score in scores))
            f1.append(max(score[1] for score in scores))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}


def embedding(checkpoint: str, start: str, path: Path) -> Scores:
    """Mean reciprocal rank of an anchor's positive among all positives and negatives; by cosine."""
    model, tokenizer = _load("", checkpoint, start)
    rows = read_rows(path)

    def vectors(texts: list[str]) -> torch.Tensor:
        found = []
        for part in _batches(texts):
            batch = _padded(tokenizer, part)
            mask = batch.attention_mask[..., None]
            pooled = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(pooled, dim=-1))
        return torch.cat(found)

    others = vectors([row[name] for name in ("positive", "negative") for row in rows])
    scores = vectors([row["anchor"] for row in rows]) @ others.T
    own = scores[:, : len(rows)].diagonal()
    ranks = (scores > own[:, None]).sum(1).numpy() + 1
    apart = own > scores[:, len(rows) :].diagonal()
    return {
        "mrr": float((1 / ranks).mean()),
        "recall_at_1": float((ranks == 1).mean()),
        "above_own_negative": float(apart.float().mean()),
    }


def _load(kind: str, checkpoint: str, start: str):
    made = getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")
    model = made.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(start)


def _padded(tokenizer, *texts: list[str], **more: Any):
    options = {"truncation": True, "max_length": 128, "padding": True, "return_tensors": "pt"}
    return tokenizer(*texts, **{**options, **more})


def _batches(items: list) -> Iterator[list]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _conversation(tokenizer, prompt: str, completion: str) -> tuple[list[int], int]:
    """(its tokens, how many of them are the prompt), as the chat template writes it."""
    asked = [{"role": "user", "content": prompt}]
    said = [*asked, {"role": "assistant", "content": completion}]
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(said, tokenize=False)
    ids = tokenizer(whole, add_special_tokens=False).input_ids[:512]
    count = len(tokenizer(before, add_special_tokens=False).input_ids)
    assert tokenizer.decode(ids[:count]) == before
    return ids, count


def _answers(model, pairs: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each answer, and how many tokens it has: [N] each."""
    width = max(len(ids) for ids, _ in pairs)
    rows = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in pairs])
    places = torch.arange(width)
    inside = torch.stack([(places >= start) & (places < len(ids)) for ids, start in pairs])
    labels = rows.masked_fill(~inside, -100)[:, 1:]
    logits = model(rows).logits[:, :-1]  # causal: padding comes after all that counts
    losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return -losses.sum(1), (labels >= 0).sum(1)


def _answer(said: str, true: str) -> tuple[float, float]:
    """Exact match and F1 of words, as SQuAD's script normalises them."""
    words = []
    for text in (said, true):
        plain = "".join(c for c in text.lower() if c not in string.punctuation)
        words.append(re.sub(r"\b(a|an|the)\b", " ", plain).split())
    shared = sum((Counter(words[0]) & Counter(words[1])).values())
    if not shared:
        return (float(words[0] == words[1]),) * 2
    precision, recall = shared / len(words[0]), shared / len(words[1])
    return float(words[0] == words[1]), 2 * precision * recall / (precision + recall)


def main() -> None:
    """Print the scores of one checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", required=True, choices=SETTINGS)
    for name in ("checkpoint", "start", "test"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    makers: list[Callable[..., Scores]] = [
        causal_lm, masked_lm, instruction, preference, seq2seq, multi_label, multiple_choice,
        question_answering, embedding,
    ]  # fmt: skip
    chosen = {each.__name__: each for each in makers}[args.task]
    with torch.inference_mode():
        print(json.dumps(chosen(args.checkpoint, args.start, Path(args.test))))


if __name__ == "__main__":
    main()
