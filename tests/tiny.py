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
    directory.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLER, *sum(WORDS.values(), [])]
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return _with_weights(directory, config)


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


def _with_weights(directory: Path, config: dict) -> str:
    (directory / "config.json").write_text(json.dumps(config))
    architecture = load_architecture(str(directory), num_labels=2)
    params, _ = hf.read_params(str(directory), architecture, key=jax.random.key(3), scratch=True)
    whole = directory.with_name(directory.name + "-whole")
    hf.write_checkpoint(
        str(whole), architecture, params, id2label={0: "LABEL_0", 1: "LABEL_1"},
        source=None, unchanged=(),
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
