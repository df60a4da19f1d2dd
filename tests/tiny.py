"""Small checkpoints and data for tests: random weights, a word tokenizer, labels that can be learned."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxft.models import hf, load_architecture

WORDS = {
    "good": ["fine", "great", "lovely", "warm", "bright"],
    "bad": ["awful", "cold", "dark", "poor", "sour"],
    "odd": ["strange", "weird", "curious", "queer", "rare"],
}
FILLER = ["the", "a", "it", "was", "is", "film", "day", "meal", "very", "quite", "and", "so"]


def bert(directory: Path, *, blocks: int = 2, dropout: float = 0.1, width: int = 32) -> str:
    """A BertForSequenceClassification-like base checkpoint with its tokenizer."""
    return _encoder(directory, "bert", blocks, dropout, width)


def deberta(directory: Path, *, blocks: int = 2, dropout: float = 0.1, width: int = 32) -> str:
    """A DeBERTa-v3 with its tokenizer."""
    own = {
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "layer_norm_eps": 1e-7,
    }
    _encoder(directory, "deberta-v2", blocks, dropout, width, **own)
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    return str(directory)


def _encoder(
    directory: Path, kind: str, blocks: int, dropout: float, width: int, **own: object
) -> str:
    directory.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *sum(WORDS.values(), [])]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "model_type": kind,
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        **own,
    }
    return _with_weights(directory, config)


def t5(directory: Path, *, blocks: int = 1, width: int = 32, dropout: float = 0.0) -> str:
    """A T5ForConditionalGeneration with its tokenizer, of one feed-forward and a tied output."""
    directory.mkdir(parents=True)
    vocabulary = ["<pad>", "</s>", "<unk>", *FILLER, *sum(WORDS.values(), [])]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.add_special_tokens(vocabulary[:3])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    config = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": len(vocabulary),
        "d_model": width,
        "d_kv": width // 2,
        "d_ff": 2 * width,
        "num_layers": blocks,
        "num_heads": 2,
        "dropout_rate": dropout,
        "decoder_start_token_id": 0,
    }
    return _with_weights(directory, config, head="seq2seq")


def language_model(directory: Path, kind: str, *, blocks: int = 1, width: int = 32) -> str:
    """A GPT-2 ('causal') or BERT ('masked') with its head, whose predictions differ from the start."""
    directory.mkdir(parents=True)
    special = {
        "causal": {"eos_token": "</s>"},
        "masked": {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    }[kind]
    vocabulary = ["[UNK]", *special.values(), *FILLER, *sum(WORDS.values(), [])]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "masked":
        ends = (("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
        tokenizer.post_processor = processors.BertProcessing(*ends)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    sizes = {"vocab_size": len(vocabulary), "initializer_range": 0.2}
    if kind == "causal":
        config = {"model_type": "gpt2", "n_positions": 64, "n_embd": width, "n_layer": blocks,
                  "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
                  "eos_token_id": ids["</s>"], "bos_token_id": None}  # fmt: skip
    else:
        config = {"model_type": "bert", "hidden_size": width, "num_hidden_layers": blocks,
                  "num_attention_heads": 2, "intermediate_size": 2 * width,
                  "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
                  "attention_probs_dropout_prob": 0.0}  # fmt: skip
    return _with_weights(directory, {**config, **sizes}, head=kind)


def vit(directory: Path, *, blocks: int = 2) -> str:
    """A ViT for 8 x 8 grey images."""
    directory.mkdir(parents=True)
    config = {
        "model_type": "vit",
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": 16,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return _with_weights(directory, config)


def resnet(directory: Path) -> str:
    """A ResNet of two layers for 8 x 8 grey images, with its preprocessor."""
    directory.mkdir(parents=True)
    config = {
        "model_type": "resnet",
        "num_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    }
    preprocess = {"size": {"height": 8, "width": 8}, "image_mean": [0.5], "image_std": [0.5]}
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocess))
    return _with_weights(directory, config)


def _with_weights(directory: Path, config: dict, head: str | None = None) -> str:
    (directory / "config.json").write_text(json.dumps(config))
    labels = {} if head else {0: "LABEL_0", 1: "LABEL_1"}
    architecture = load_architecture(str(directory), num_labels=len(labels), head=head)
    params, _ = hf.read_params(str(directory), architecture, key=jax.random.key(3), scratch=True)
    whole = directory.with_name(directory.name + "-whole")
    hf.write_checkpoint(
        str(whole), architecture, params, id2label=labels, source=None, unchanged=(),
    )  # fmt: skip
    for name in ("model.safetensors", "config.json"):
        (whole / name).replace(directory / name)
    whole.rmdir()
    return str(directory)


def texts(
    path: Path, rows: int = 96, *, seed: int = 0, labels: tuple[str, ...] = ("good", "bad", "odd")
) -> str:
    """CSV of short sentences whose label is decided by one word."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(rows):
            label = labels[i % len(labels)]
            words = rng.choices(FILLER, k=rng.randint(1, 14))
            words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS[label]))
            writer.writerow([" ".join(words), label])
    return str(path)


def images(directory: Path, each: int = 8) -> str:
    """A folder of 8 x 8 images with a light left or a light upper half."""
    rng = np.random.default_rng(0)
    for name in ("left", "upper"):
        (directory / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
            pixels[(slice(None), slice(4)) if name == "left" else (slice(4),)] += 180
            Image.fromarray(pixels, "L").save(directory / name / f"{i}.png")
    return str(directory)
