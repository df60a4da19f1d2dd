"""The data that both sides read, and the checkpoints that both begin with.

    python benchmarks/each_task/prepare.py --data DIR --minilm DIR --work DIR

DIR of the data has tinyshakespeare, gsm8k, snli_sample, blimp_acceptability, wnut17 and goemotions, each
with its published files. Rows are drawn with seed 0; a split of the original stays that split.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from settings import data_file, read_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

Rows = list[dict[str, Any]]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Labels of GoEmotions that often apply together, but not the one that says none does.
EMOTIONS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "confusion", "curiosity",
    "disapproval", "gratitude", "joy", "love", "optimism", "sadness",
)  # fmt: skip
VOCABULARY = 2048


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("data", "minilm", "work"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    args = parser.parse_args()
    for task, (make, train, test) in MAKERS.items():
        for split, count in (("train", train), ("test", test)):
            rows = make(args.data, split)
            random.Random(0).shuffle(rows)
            write(data_file(args.work, task, split), rows[:count])
    for split in ("train", "test"):
        path = data_file(args.work, "causal_lm", split)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.data / "tinyshakespeare" / f"{split}.txt", path)
    shutil.copytree(args.minilm, args.work / "start" / "minilm", dirs_exist_ok=True)
    texts = [data_file(args.work, "causal_lm", "train").read_text("utf-8")]
    texts += ["\n".join(row.values()) for row in read_rows(args.data / "gsm8k" / "train.jsonl")]
    decoder(args.work / "start" / "decoder", texts)
    t5(args.work / "start" / "t5", texts[1:])


def decoder(directory: Path, texts: list[str]) -> None:
    """A Llama with random weights, its tokenizer and the chat template of ChatML."""
    special = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_pairs(texts, special), eos_token=special[0], pad_token=special[1],
        model_max_length=512,
    )  # fmt: skip
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)


def t5(directory: Path, texts: list[str]) -> None:
    """A T5 with random weights; its tokenizer ends every text."""
    tokens = byte_pairs(texts, ["<pad>", "</s>"])
    tokens.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="</s>", pad_token="<pad>", model_max_length=512
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=128, d_kv=32, d_ff=384, num_layers=3, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(directory)


def byte_pairs(texts: list[str], special: list[str]) -> Tokenizer:
    """Byte-level pairs learned from texts; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def instruction(data: Path, split: str) -> Rows:
    """Problems and their solutions."""
    return read_rows(data / "gsm8k" / f"{split}.jsonl")


def seq2seq(data: Path, split: str) -> Rows:
    """The same as pairs of texts."""
    names = {"prompt": "question", "completion": "answer"}
    return [{names[k]: v for k, v in row.items()} for row in instruction(data, split)]


def premises(data: Path, split: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(a premise, one hypothesis for each label) where there is an entailed and a contradicting one."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in csv_rows(data / "snli_sample" / f"{split}.csv"):
        found[row["text_a"]].setdefault(row["label"], row["text_b"])
    for premise, hypotheses in found.items():
        if {"entailment", "contradiction"} <= set(hypotheses):
            yield premise, hypotheses


def multiple_choice(data: Path, split: str) -> Rows:
    """Which of two hypotheses is entailed."""
    rng = random.Random(0)
    rows = []
    for premise, hypotheses in premises(data, split):
        label = rng.randrange(2)
        choices = [hypotheses["entailment"], hypotheses["contradiction"]][:: 1 - 2 * label]
        row = {"question": premise, "choice0": choices[0], "choice1": choices[1]}
        rows.append({**row, "label": label})
    return rows


def embedding(data: Path, split: str) -> Rows:
    """A premise, what it entails, what contradicts it."""
    return [
        {"anchor": premise, "positive": own["entailment"], "negative": own["contradiction"]}
        for premise, own in premises(data, split)
    ]


def masked_lm(data: Path, split: str) -> Rows:
    """Captions, each once."""
    rows = csv_rows(data / "snli_sample" / f"{split}.csv")
    return [{"text": text} for text in sorted({r[c] for r in rows for c in ("text_a", "text_b")})]


def preference(data: Path, split: str) -> Rows:
    """Minimal pairs: a grammatical sentence and the ungrammatical one that it differs least from.

    The published pairs are shuffled rows here. Two sentences are a pair if each is the nearest of the other
    by the words, pairs of words included, that only one of them has.
    """
    kinds: dict[str, list[str]] = {"acceptable": [], "unacceptable": []}
    for row in csv_rows(data / "blimp_acceptability" / f"{split}.csv"):
        kinds[row["label"]].append(row["text"])
    good, bad = kinds.values()
    parts = {text: _parts(text) for text in good + bad}
    nearest = {**_nearest(good, bad, parts), **_nearest(bad, good, parts)}
    return [
        {"prompt": "Write a sentence.", "chosen": text, "rejected": nearest[text]}
        for text in sorted(set(good))
        if text in nearest and text != nearest[text] and nearest.get(nearest[text]) == text
    ]


def _parts(text: str) -> frozenset[str]:
    words = text.split()
    return frozenset(words) | {f"{a} {b}" for a, b in zip(words, words[1:], strict=False)}


def _nearest(texts: list[str], others: list[str], parts: dict[str, frozenset[str]]) -> dict:
    having: dict[str, set[str]] = defaultdict(set)
    for other in others:
        for part in parts[other]:
            having[part].add(other)
    found = {}
    for text in texts:
        rare = sorted(parts[text] & having.keys(), key=lambda part: len(having[part]))[:6]
        near = set().union(*(having[part] for part in rare))
        if near:
            found[text] = min(sorted(near), key=lambda other: len(parts[text] ^ parts[other]))
    return found


def question_answering(data: Path, split: str) -> Rows:
    """Which entity of a type a sentence names, where it names one."""
    rows = []
    path = data / "wnut17" / f"{split}.conll"
    for block in path.read_text("utf-8").strip().split("\n\n"):
        pairs = [line.split("\t") for line in block.split("\n")]
        spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
        at = 0
        for word, tag in pairs:
            end = at + len(word)
            if tag.startswith("B-"):
                spans[tag[2:]].append((at, end))
            elif tag.startswith("I-") and spans[tag[2:]]:
                spans[tag[2:]][-1] = (spans[tag[2:]][-1][0], end)
            at = end + 1
        context = " ".join(word for word, _ in pairs)
        for kind, found in spans.items():
            if len(found) == 1:
                (start, end), question = found[0], f"Which {kind} is named?"
                answers = {"text": [context[start:end]], "answer_start": [start]}
                rows.append({"question": question, "context": context, "answers": answers})
    return rows


def multi_label(data: Path, split: str) -> Rows:
    """Comments of which only those emotions are said, half of them of several at once."""
    one: Rows = []
    several: Rows = []
    for row in csv_rows(data / "goemotions" / f"{split}.csv"):
        labels = row["label"].split("|")
        if set(labels) <= set(EMOTIONS):
            (one, several)[len(labels) > 1].append({"text": row["text"], "labels": labels})
    random.Random(0).shuffle(one)
    return several + one[: len(several)]


def csv_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{path}: {len(rows)} rows")


# task -> (its rows, how many to train, how many to test)
MAKERS: dict[str, tuple[Callable[[Path, str], Rows], int, int]] = {
    "preference": (preference, 2000, 500),
    "instruction": (instruction, 900, 200),
    "multiple_choice": (multiple_choice, 512, 400),
    "question_answering": (question_answering, 800, 400),
    "seq2seq": (seq2seq, 1500, 200),
    "masked_lm": (masked_lm, 2000, 400),
    "embedding": (embedding, 768, 500),
    "multi_label": (multi_label, 1600, 702),
}

if __name__ == "__main__":
    main()
