"""A run of every text family: trained by the command's own code, then read by transformers."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from jaxft import load, models, train
from tests.models.test_parity import FAMILY_ROWS, text_family, torch_model

CONFIG = Path(__file__).parents[2] / "configs" / "text_classification.py"
WORDS = {"good": ("fine", "great", "lovely"), "bad": ("awful", "cold", "poor")}


def write_rows(path: Path, pairs: bool) -> list[tuple[str, ...]]:
    """Rows whose last word tells the label; texts of 4 to 10 characters. Returns the texts."""
    columns = ("text_a", "text_b", "label") if pairs else ("text", "label")
    rows: list[tuple[str, ...]] = []
    for row in range(60):
        label = ("good", "bad")[row % 2]
        word = WORDS[label][row // 2 % 3]
        rows.append(("it", word, label) if pairs else (f"it {word}", label))
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return [row[:-1] for row in rows]


@text_family
@pytest.mark.parametrize("pairs", [False, True])
def test_transformers_predicts_with_the_export_what_the_run_predicts(family, pairs, tmp_path):
    tokenizer: Any = FAMILY_ROWS[family].tokenizer()
    torch_model(family, "base", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = write_rows(tmp_path / "data.csv", pairs)
    overrides = {
        "model.path": str(tmp_path / "model"), "data.train": str(tmp_path / "data.csv"),
        "data.max_shapes": 1, "train.batch_size": 16, "train.steps": 12, "train.compile_cache": "",
        "optim.lr": 3e-3, "parallel.mode": "jit", "eval.every": "100%", "log.tensorboard": False,
    }  # fmt: skip
    architecture = models.load_architecture(str(tmp_path / "model"), num_labels=2)
    if pairs and not architecture.limits.pairs:
        with pytest.raises(ValueError, match="cannot tell two texts apart"):
            train(CONFIG, tmp_path / "run", overrides)
        return
    train(CONFIG, tmp_path / "run", overrides)
    best = tmp_path / "run" / "best"
    tokenizer = transformers.AutoTokenizer.from_pretrained(best)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(best).eval()
    assert json.loads((best / "config.json").read_text())["architectures"] == [type(model).__name__]
    some = texts[:6]
    encoded = tokenizer(*zip(*some, strict=True), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits.softmax(-1).numpy()
    found = load(tmp_path / "run").predict(some if pairs else [text for (text,) in some])
    names = [model.config.id2label[i] for i in range(2)]
    for row, prediction in zip(expected, found, strict=True):
        ours = [prediction.probabilities[name] for name in names]
        np.testing.assert_allclose(ours, row, atol=1e-5)
