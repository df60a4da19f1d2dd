"""Token classification from tagged words to the exported checkpoint."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from jaxft import evaluate, load, predict, train
from jaxft.analysis.confusion import Confusion
from jaxft.analysis.entities import NONE, EntityCounts, spans_of
from jaxft.data.files import table
from jaxft.data.tags import complete, read_tags, split_tag
from jaxft.tasks.token_classification import TokenClassification
from tests import tiny

ROOT = Path(__file__).parents[2]


def write(path, rows=120, *, seed=0):
    """A CoNLL file of sentences with the entities 'good' (one word) and 'bad' (two)."""
    rng = random.Random(seed)
    lines = []
    for _ in range(rows):
        sentence = [(word, "O") for word in rng.choices(tiny.FILLER, k=rng.randint(2, 9))]
        entities = [
            [(rng.choice(tiny.WORDS["good"]), "B-good")],
            [(rng.choice(tiny.WORDS[w]), f"{p}-bad") for p, w in (("B", "bad"), ("I", "odd"))],
        ]
        for entity in rng.sample(entities, rng.randint(0, 2)):
            place = rng.choice([i for i in range(len(sentence) + 1) if i == len(sentence)
                                or not sentence[i][1].startswith("I")])  # fmt: skip
            sentence[place:place] = entity
        lines += [f"{word}\t{tag}" for word, tag in sentence] + [""]
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, and its data."""
    folder = tmp_path_factory.mktemp("tokens")
    overrides = {
        "model.path": tiny.bert(folder / "bert", blocks=1, dropout=0.0),
        "data.train": write(folder / "train.conll"),
        "data.test": write(folder / "test.conll", 40, seed=9),
        "data.max_shapes": 1, "train.compile_cache": "", "train.batch_size": 8, "eval.every": "50%",
        "train.steps": 120, "optim.lr": 1e-2, "parallel.mode": "jit", "log.tensorboard": False,
    }  # fmt: skip
    return folder, train(ROOT / "configs/token_classification.py", folder / "run", overrides)


# Entities


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("O B-a I-a O B-a B-b", [(1, 3, "a"), (4, 5, "a"), (5, 6, "b")]),  # IOB2
        ("I-a I-a B-a I-b O I-b", [(0, 2, "a"), (2, 3, "a"), (3, 4, "b"), (5, 6, "b")]),  # IOB1
        ("U-a B-a I-a L-a L-a", [(0, 1, "a"), (1, 4, "a"), (4, 5, "a")]),  # BILOU
        ("S-a B-a E-a I-a", [(0, 1, "a"), (1, 3, "a"), (3, 4, "a")]),  # BIOES
        ("NOUN VERB NOUN O", [(0, 1, "NOUN"), (1, 2, "VERB"), (2, 3, "NOUN")]),  # no entities
        ("B-a-b I-a-b", [(0, 2, "a-b")]),
        ("", []),
    ],
)
def test_entities_of_every_scheme(tags, expected):
    assert [span[1:] for span in spans_of(tags.split(), split_tag)] == expected


def test_scores_are_counts_of_whole_entities():
    true = {(0, 0, 2, "a"), (0, 3, 4, "b"), (1, 0, 1, "a")}
    found = {(0, 0, 2, "a"), (0, 3, 4, "a"), (1, 0, 2, "a"), (1, 5, 6, "b")}
    counts = EntityCounts()
    for example in (0, 1):
        counts.add(*({span for span in spans if span[0] == example} for spans in (found, true)))
    scores = counts.metrics()
    assert (scores["precision"], scores["recall"]) == (1 / 4, 1 / 3)
    assert scores["f1"] == 2 / 7 and scores["entities"] == 3 and scores["predicted_entities"] == 4
    assert scores["per_class"]["a"] == {
        "precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2
    }  # fmt: skip
    assert scores["f1_macro"] == pytest.approx((2 / 5 + 0) / 2)
    counted = counts.confusion(["a", "b"])
    assert counted.names == ("a", "b", NONE)
    assert counted.matrix().tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert EntityCounts().metrics()["f1"] == 0.0


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_scores_are_those_of_seqeval(prefixes):
    metrics = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    names = ["O", "O", *(f"{p}-{kind}" for p in prefixes for kind in ("a", "b", "c"))]
    true, found = ([rng.choices(names, k=12) for _ in range(300)] for _ in range(2))
    for sentence, other in zip(true, found, strict=True):  # so that something is found
        other[:6] = sentence[:6]
    counts = EntityCounts()
    for j, pair in enumerate(zip(found, true, strict=True)):
        counts.add(*(set(spans_of(tags, split_tag, j)) for tags in pair))
    ours = counts.metrics()
    expected = metrics.classification_report(true, found, output_dict=True, zero_division=0)
    for name, row in ours["per_class"].items():
        assert row["f1"] == pytest.approx(expected[name]["f1-score"])
        assert row["support"] == expected[name]["support"]
    assert 0.1 < ours["f1"] < 0.9 and ours["f1"] == pytest.approx(metrics.f1_score(true, found))
    assert ours["f1_macro"] == pytest.approx(expected["macro avg"]["f1-score"])


# Tags


def source(**columns):
    return table("t.jsonl", columns)


def test_tags_are_read_and_completed():
    data = source(tokens=[["a", "b"], "c d e", []], tags=[["B-x", "O"], "O B-y I-y", []])
    tags = read_tags(data, "tags", "tokens")
    assert tags.names == ("O", "B-x", "I-x", "B-y", "I-y") and tags.offsets.tolist() == [0, 2, 5, 5]
    assert [tags.names[i] for i in tags.ids] == ["B-x", "O", "O", "B-y", "I-y"]
    turned = tags.take(np.array([1, 0]))
    assert turned.rows.tolist() == [1, 0] and turned.offsets.tolist() == [0, 3, 5]
    assert [turned.names[i] for i in turned.ids] == ["O", "B-y", "I-y", "B-x", "O"]
    assert list(turned.words) == [["c", "d", "e"], ["a", "b"]]
    again = tags.numbered_as(("I-y", "B-y", "I-x", "B-x", "O"))
    assert [again.names[i] for i in again.ids] == [tags.names[i] for i in tags.ids]
    assert complete({"NOUN", "ADJ"}) == ["ADJ", "NOUN"]
    assert complete({"U-a", "L-b", "B-b"}) == ["O", "B-a", "L-a", "U-a", "B-b", "L-b", "U-b"]


def test_class_numbers_are_the_tags_they_stand_for():
    data = table("t", {"words": [["a", "b"]], "ner_tags": [np.array([2, 0])]})
    named = type(data)(**{**vars(data), "item_names": {"ner_tags": ("O", "B-x", "I-x")}})
    assert TokenClassification().find_column(named, "") == "ner_tags"
    tags = read_tags(named, "ner_tags", "words")
    assert tags.names == ("O", "B-x", "I-x") and tags.ids.tolist() == [2, 0]


@pytest.mark.parametrize(
    "bad, message",
    [
        (["O"], "line 3: column 'tags' has 1 tags for 2 words; 2 rows .*lines 3, 5"),
        (None, "line 3: column 'tags' has no tags .None.; 2 rows"),
        (["O", " "], "line 3: column 'tags' has an empty tag; 2 rows"),
        (["O", None], "line 3: column 'tags' has no tags"),
    ],
    ids=repr,
)
def test_a_row_without_a_tag_for_each_word_is_named_or_dropped(bad, message):
    good = ["B-x", "O"]
    data = table(
        "t.jsonl", {"tokens": [["a", "b"]] * 4, "tags": [good, bad, good, bad]}, lines=[2, 3, 4, 5]
    )
    with pytest.raises(ValueError, match=message) as error:
        read_tags(data, "tags", "tokens", advice=" by dropping")
    assert str(error.value).endswith("leave them out by dropping")
    kept = read_tags(data, "tags", "tokens", drop_bad=True)
    assert kept.rows.tolist() == [0, 2] and kept.dropped.tolist() == [1, 3]
    assert len(kept.ids) == 4


def test_unknown_names_are_told_with_the_nearest():
    data = source(tokens=[["a"], ["b"]], tags=[["O"], ["B-persn"]])
    with pytest.raises(ValueError, match="row 2: the tag 'B-persn' is unknown.*mean 'B-person'"):
        read_tags(data, "tags", "tokens", names=("O", "B-person", "I-person"))
    with pytest.raises(ValueError, match="no column 'tag'.*did you mean 'tags'"):
        TokenClassification().find_column(data, "tag")
    with pytest.raises(ValueError, match="one tag only .'O'"):
        read_tags(source(tokens=[["a"]], tags=[["O"]]), "tags", "tokens")


@pytest.mark.parametrize("mark", [" ", "_", ":"])
def test_prefixes_without_a_hyphen_are_refused(mark):
    rows = [["O", f"B{mark}x"], [f"B{mark}y", f"I{mark}y"]]
    with pytest.raises(ValueError, match=f"has tags like 'B{mark}[xy]', .* joins them: 'B-[xy]'"):
        read_tags(source(tokens=[["a", "b"]] * 2, tags=rows), "tags", "tokens")
    other = [[*row, "NOUN"] for row in rows]  # a tag set that merely looks like it
    assert len(read_tags(source(tokens=[["a", "b", "c"]] * 2, tags=other), "tags", "tokens"))


def test_rare_types_are_in_both_parts_of_a_split():
    rows = [["O", "B-x"]] * 30 + [["B-x", "B-y"]] * 10 + [["O", "O"]] * 60
    tags = read_tags(source(tokens=[["a", "b"]] * 100, tags=rows), "tags", "tokens")
    assert np.unique(tags.strata(), return_counts=True)[1].tolist() == [10, 30, 60]


# A run


def test_a_run_learns_to_find_entities(world):
    folder, result = world
    assert result.test["f1"] > 0.9 and result.test["unread_words"] == 0
    assert set(result.test["per_class"]) == {"good", "bad"}
    assert result.summary["best_metric"]["name"] == "f1"
    rows = [json.loads(x) for x in (folder / "run/predictions/test.jsonl").read_text().splitlines()]
    assert len(rows) == 40 == result.test["examples"]
    words = [len(row["words"]) for row in rows]
    assert words == [len(row["label"]) for row in rows] == [len(row["predicted"]) for row in rows]
    right = sum(a == b for row in rows for a, b in zip(row["label"], row["predicted"], strict=True))
    assert right / sum(words) == pytest.approx(result.test["accuracy"])
    mean = sum(row["loss"] for row in rows) / sum(words)
    assert mean == pytest.approx(result.test["loss"], rel=1e-5)
    counted = json.loads((folder / "run/predictions/test.confusion.json").read_text())
    assert Confusion.from_json(counted).names == ("bad", "good", NONE)
    page = (folder / "run/report.html").read_text()
    assert "entity F1" in page and "By type" in page and "something unexpected" not in page


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predict_writes_tags_and_entities(world, tmp_path, suffix):
    folder, _ = world
    output = tmp_path / f"out{suffix}"
    command = [
        "predict",
        f"--run={folder}/run",
        f"--input={folder}/test.conll",
        f"--output={output}",
    ]
    assert predict.main(command) == 0
    assert predict.main(command) == 0  # over its own output
    if suffix == ".parquet":
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(output).to_pylist()
    elif suffix == ".csv":
        rows = list(csv.DictReader(output.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert all(len(row["tokens"]) == len(row["predicted"]) for row in rows)
    if suffix != ".jsonl":
        rows = [{key: json.loads(row[key]) for key in ("predicted", "entities")} for row in rows]
    known = [
        json.loads(x) for x in (folder / "run/predictions/test.jsonl").read_text().splitlines()
    ]
    assert [row["predicted"] for row in rows] == [row["predicted"] for row in known]
    for row, of in zip(rows, known, strict=True):
        for entity in row["entities"]:
            assert entity["text"] == " ".join(of["words"][entity["start"] : entity["end"]])


def test_the_export_is_one_of_transformers_with_the_same_logits(world):
    folder, result = world
    config = json.loads((result.best / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert sorted(config["id2label"].values()) == ["B-bad", "B-good", "I-bad", "I-good", "O"]
    model = transformers.AutoModelForTokenClassification.from_pretrained(result.best)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(result.best / "tokenizer.json"), pad_token="[PAD]"
    )
    sentences = [["a", "fine", "day"], ["it", "was", "cold", "weird", "and", "so"]]
    given = tokenizer(sentences, is_split_into_words=True, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**given).logits
    expected = logits.argmax(-1).tolist()
    for j, found in enumerate(load(folder / "run").predict(sentences)):
        first = [given.word_ids(j).index(word) for word in range(len(sentences[j]))]
        assert found.tags == [model.config.id2label[expected[j][place]] for place in first]
    again = load(result.best)
    assert again.labels == load(folder / "run").labels
    assert again.predict(["it was cold weird"])[0].entities == [
        {"type": "bad", "start": 2, "end": 4, "text": "cold weird"}
    ]
    with pytest.raises(ValueError, match="input 2 holds 5 as word 1"):
        again.predict([["a"], [5]])
    with pytest.raises(ValueError, match="no logits of an input"):
        again.logits([["a"]])
    metrics = evaluate(result.best, folder / "test.conll")
    assert metrics["f1"] == pytest.approx(result.test["f1"])
    assert metrics["loss"] == pytest.approx(result.test["loss"], rel=1e-4)


def test_packed_rows_give_the_loss_of_single_ones(world):
    folder, result = world
    alone = load(folder / "run")
    alone._inference.config.data.pack = False
    rows = [json.loads(x) for x in (folder / "run/predictions/test.jsonl").read_text().splitlines()]
    found = alone.predict([row["words"] for row in rows])
    assert [entry.tags for entry in found] == [row["predicted"] for row in rows]


@pytest.fixture(scope="module")
def on_one_device(world, tmp_path_factory):
    return short_run(world, tmp_path_factory.mktemp("jit"), "jit")


def short_run(world, workdir, mode):
    folder, _ = world
    overrides = {
        "model.path": str(folder / "bert"), "data.train": str(folder / "train.conll"),
        "train.compile_cache": "", "train.steps": 3, "parallel.mode": mode, "optim.lr": 1e-2,
        "log.tensorboard": False, "data.max_shapes": 1, "train.accumulate": 2,
    }  # fmt: skip
    return train(ROOT / "configs/token_classification.py", workdir / "run", overrides).eval


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "shard"])
def test_several_devices_give_what_one_gives(world, on_one_device, tmp_path, mode):
    found = short_run(world, tmp_path, mode)
    assert found["loss"] == pytest.approx(on_one_device["loss"], rel=1e-4)
    assert found["words"] == on_one_device["words"]


def test_what_is_cut_is_said_and_counts_as_missed(world, tmp_path, capsys):
    folder, _ = world
    overrides = {
        "model.path": str(folder / "bert"), "data.train": str(folder / "train.conll"),
        "data.max_length": 6, "train.compile_cache": "", "train.steps": 2, "parallel.mode": "jit",
        "log.tensorboard": False, "data.max_shapes": 1,
    }  # fmt: skip
    result = train(ROOT / "configs/token_classification.py", tmp_path / "run", overrides)
    said = capsys.readouterr().out
    assert "train: " in said and "words beyond 6 tokens of their text are not read" in said
    lines = (tmp_path / "run/predictions/eval.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    cut = sum(max(0, len(row["words"]) - 4) for row in rows)
    assert result.eval["unread_words"] == cut > 0
    assert all(set(row["predicted"][4:]) <= {"O"} for row in rows)
    given = f"--input={folder}/test.conll"
    predict.main(["predict", f"--run={tmp_path}/run", given, f"--output={tmp_path}/out.jsonl"])
    assert "words were not read: their text is longer than 6 tokens" in capsys.readouterr().err
