"""Bridged models of questions and of choices: from rows to exports whose outputs are those of PyTorch."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from jaxft import evaluate, export, load, predict, train
from jaxft.models.checkpoint import companions
from tests import tiny, worlds
from tests.tasks import test_multiple_choice, test_preference, test_question_answering

pytestmark = pytest.mark.slow
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 40, "hidden_dropout_prob": 0.0}  # fmt: skip
MODELS = {
    "albert": ({**BERT, "embedding_size": 16}, "albert"),
    "mpnet": ({**BERT, "pad_token_id": 0}, "mpnet"),
    "xlnet": ({"d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48, "dropout": 0.0,
               "pad_token_id": 0}, "xlnet"),
    # Native, but for this head.
    "gpt2": ({"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40, "embd_pdrop": 0.0,
              "resid_pdrop": 0.0, "attn_pdrop": 0.0}, "gpt2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data of both tasks, and a model without a head of each type."""
    place = tmp_path_factory.mktemp("pairs")
    bert = tiny.bert(place / "bert")
    words = json.loads((place / "bert/config.json").read_text())["vocab_size"]
    for name, (settings, model_type) in MODELS.items():
        config = transformers.AutoConfig.for_model(model_type, vocab_size=words, **settings)
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(place / name)
        shutil.copy(f"{bert}/tokenizer.json", place / name)
        said = {"tokenizer_class": "PreTrainedTokenizerFast"}  # and not the model type's own
        (place / name / "tokenizer_config.json").write_text(json.dumps(said))
    test_question_answering.write(place / "train.jsonl", 100)
    test_question_answering.write(place / "test.jsonl", 30, seed=9)
    test_multiple_choice.write(place / "train.csv", 200)
    test_multiple_choice.write(place / "test.csv", 40, seed=9)
    return place


def run(folder, workdir, task, name, steps, **more):
    """A run to its end."""
    config, kind = {
        "question": (test_question_answering.CONFIG, "jsonl"),
        "choice": (test_multiple_choice.CONFIG, "csv"),
    }[task]
    fields = worlds.fields(
        folder, f"train.{kind}", 16, **{"data.test": str(folder / f"test.{kind}")}
    )
    fields |= {"model.path": str(folder / name), "train.steps": steps, "optim.lr": 1e-2,
               "eval.every": "100%", **more}  # fmt: skip
    return train(config, workdir, fields)


def held(result, place):
    """The certificate of an export: what it gives, and what PyTorch does."""
    flags = [f"--run={result.directory}", f"--output={place}", "--verify=8"]
    assert export.main(["export", *flags]) == 0
    found = json.loads((place / companions.CERTIFICATE).read_text())
    assert found["exported"]["largest difference"] == 0.0
    assert 0 < found["pytorch"]["largest difference"] < 1e-5
    return found


@pytest.mark.parametrize("name", ["albert", "gpt2", "xlnet"])
def test_questions_are_learned_and_answered(folder, tmp_path, name):
    more = {
        "data.max_length": 40,
        "data.stride": 8,
    }  # as many as there are positions, in rows of 48
    result = run(folder, tmp_path / "run", "question", name, 20, **more)
    config = json.loads((result.best / "config.json").read_text())
    assert config["architectures"][0].split("For")[1].startswith("QuestionAnswering")
    assert result.test["windows"] > result.test["examples"]
    found = evaluate(result.directory, folder / "test.jsonl")
    assert found["loss"] == pytest.approx(result.test["loss"], abs=1e-5)
    flags = [
        f"--run={result.directory}",
        f"--input={folder}/test.jsonl",
        f"--output={tmp_path}/o.jsonl",
    ]
    assert predict.main(["predict", *flags]) == 0
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    for row in rows:
        if row["start"] is not None:
            assert row["context"][row["start"] :].startswith(row["predicted"])
    held(result, tmp_path / "out")


@pytest.mark.parametrize("name", ["mpnet", "xlnet"])
def test_choices_are_learned_and_their_loss_is_that_of_transformers(folder, tmp_path, name):
    result = run(folder, tmp_path / "run", "choice", name, 40)
    assert result.test["accuracy"] > 0.6  # by guessing 1 of 3
    model = transformers.AutoModelForMultipleChoice.from_pretrained(result.best).eval()
    with (folder / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(result.best / "tokenizer.json"), pad_token="[PAD]",
        padding_side="left" if name == "xlnet" else "right",
    )  # fmt: skip
    given = tokenizer(
        [row["sent1"] for row in rows for _ in range(3)],
        [f"{row['sent2']} {row[f'ending{i}']}" for row in rows for i in range(3)],
        padding=True, return_tensors="pt", return_token_type_ids=False,
    )  # fmt: skip
    labels = torch.tensor([int(row["label"]) for row in rows])
    with torch.no_grad():
        out = model(**{k: v.reshape(40, 3, -1) for k, v in given.items()}, labels=labels)
    assert result.test["loss"] == pytest.approx(out.loss.item(), abs=1e-5)
    pairs = [(row["sent1"], row["sent2"], [row[f"ending{i}"] for i in range(3)]) for row in rows]
    np.testing.assert_allclose(load(result.best).logits(pairs), out.logits.numpy(), atol=1e-5)
    held(result, tmp_path / "out")


def test_of_two_answers_bridged_models_learn_what_native_ones_do(tmp_path):
    test_preference.checkpoint(tmp_path / "gpt2")
    test_preference.write(tmp_path / "train.jsonl")
    test_preference.write(tmp_path / "test.jsonl", 12, seed=5)
    found = []
    for implementation in ("native", "bridge"):
        more = {"model.implementation": implementation, "model.dropout": 0.0}
        fields = test_preference.fields(tmp_path, **more)
        config = test_preference.ROOT / "configs/preference.py"
        found.append(train(config, tmp_path / implementation, fields).test)
    native, bridged = found
    assert native["loss"] == pytest.approx(bridged["loss"], abs=1e-4)
    assert native["accuracy"] == bridged["accuracy"]
