"""Texts with texts to be given for them: columns, tokens of both sides, and their rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxft.data.batching import plan_evaluation, plan_training
from jaxft.data.files import table
from jaxft.data.loader import TextBatches
from jaxft.data.text_to_text import (
    find_source_column,
    find_target_column,
    prefixed,
    read_texts,
    row_ratio,
    tokenize_both,
)
from jaxft.data.tokenizer import load_tokenizer
from tests import tiny

FILLER = tiny.FILLER


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return tiny.t5(tmp_path_factory.mktemp("pairs") / "t5")


def pairs(rows: int = 60, seed: int = 0):
    rng = np.random.default_rng(seed)
    texts = [
        [" ".join(rng.choice(FILLER, rng.integers(1, most))) for _ in range(rows)]
        for most in (20, 6)
    ]
    return table("pairs", {"source": texts[0], "target": texts[1]})


def tokens_of(source, checkpoint, columns=("source", "target"), **more):
    options = {
        "prefix": "",
        "max_length": 64,
        "max_target_length": 32,
        "vocab_size": 30,
        "cache_dir": None,
    }
    return tokenize_both(source, np.arange(len(source)), columns, checkpoint, **(options | more))


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("id", "article", "highlights"), ("article", "highlights")),
        (("question", "answer", "level"), ("question", "answer")),
        (("en", "de"), ("en", "de")),
    ],
)
def test_usual_columns_are_found(columns, found):
    source = table("t", {name: ["x"] for name in columns})
    label = find_target_column(source, "")
    assert (*find_source_column(source, (), label), label) == found


def test_named_columns_are_taken_and_mistakes_said():
    source = table("t", {name: ["x"] for name in ("a", "b", "c")})
    assert find_source_column(source, ("c",), find_target_column(source, "a")) == ("c",)
    with pytest.raises(ValueError, match="none of the usual pairs.*config.data.label"):
        find_target_column(source, "")
    with pytest.raises(ValueError, match="no column 'labels'"):
        find_target_column(source, "labels")
    with pytest.raises(ValueError, match="one text is read, got 2"):
        find_source_column(source, ("a", "b"), "c")


def test_rows_without_a_text_to_give_are_named_or_left_out():
    source = table("t", {"source": ["a", "b", "c"], "target": ["x", None, ""]})
    with pytest.raises(ValueError, match="row 2: column 'target' has no text.*by doing so"):
        read_texts(source, "target", drop=False, advice=" by doing so")
    texts = read_texts(source, "target", drop=True, advice="")
    assert list(texts.texts) == ["x", ""] and texts.dropped.tolist() == [1]


def test_answers_begin_with_the_start_and_end_with_the_end(checkpoint):
    source = pairs()
    tokens = tokens_of(source, checkpoint)
    plan = plan_training(tokens.room, batch_size=20, steps=3, seed=0, max_shapes=2)
    targets = read_texts(source, "target", drop=False, advice="")
    batch = TextBatches(tokens, targets, plan)[0]
    ids, shown = batch["labels"], batch["decoder_segment_ids"] > 0
    assert (batch["segment_ids"].max(1) == batch["decoder_segment_ids"].max(1)).all()
    np.testing.assert_array_equal(batch["weight"] > 0, shown)
    first = shown & (batch["decoder_positions"] == 0)
    assert (batch["decoder_input_ids"][first] == 0).all()
    inner = shown & ~first
    np.testing.assert_array_equal(batch["decoder_input_ids"][inner], np.roll(ids, 1, axis=1)[inner])
    tokenizer, seen = load_tokenizer(checkpoint), 0
    for row, slots in enumerate(batch["index"]):
        for slot, index in enumerate(slots):
            if index < 0:
                continue
            own = ids[row][batch["decoder_segment_ids"][row] == slot + 1]
            assert own[-1] == 1 and tokenizer.decode(own.tolist()) == source[int(index)]["target"]
            read = batch["input_ids"][row][batch["segment_ids"][row] == slot + 1]
            assert tokenizer.decode(read.tolist()) == source[int(index)]["source"]
            seen += 1
    assert seen == 20


def test_every_batch_has_room_for_both_sides(checkpoint):
    tokens = tokens_of(pairs(300), checkpoint)
    for ratio in (0.1, 0.5, 3.0):
        answers = tokens.answers.__class__(tokens.answers.tokens, 0, ratio, 32)
        uneven = tokens.__class__(**{**vars(tokens), "answers": answers})
        plan = plan_evaluation(uneven.room, batch_size=30)
        targets = read_texts(pairs(300), "target", drop=False, advice="")
        batches = TextBatches(uneven, targets, plan)
        given = sum(int(batches[step]["weight"].sum()) for step in range(len(batches)))
        assert given == len(uneven.answers.tokens.ids)


def test_the_ratio_wastes_little():
    lengths, answers = np.full(100, 40), np.full(100, 10)
    assert row_ratio(lengths, answers) == 0.25
    assert row_ratio(answers, lengths) == 4.0


def test_a_prefix_stands_before_what_is_read_alone(checkpoint):
    source = table("t", {"source": ["day", 7, None], "target": ["film", "film", "film"]})
    assert prefixed(source, "source", "so: ").column("source") == ["so: day", "so: 7", None]
    some = table("t", {"source": ["day"], "target": ["film"]})
    plain, given = tokens_of(some, checkpoint), tokens_of(some, checkpoint, prefix="very so ")
    assert len(given.ids) == len(plain.ids) + 2
    np.testing.assert_array_equal(given.answers.tokens.ids, plain.answers.tokens.ids)
    assert given.fingerprint != plain.fingerprint
    assert tokens_of(some, checkpoint, ("source",)).answers is None


def test_a_tokenizer_without_an_end_is_given_one(checkpoint, tmp_path):
    raw = json.loads(Path(checkpoint, "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(Path(checkpoint, name).read_bytes())
    some = table("t", {"source": ["day"], "target": [" ".join(["film"] * 40)]})
    tokens = tokens_of(some, str(tmp_path), max_target_length=8)
    assert tokens.ids[-1] != 1
    assert len(tokens.answers.tokens.ids) == 8 and tokens.answers.tokens.ids[-1] == 1


def test_what_is_cut_is_said(checkpoint):
    source = pairs()
    tokens = tokens_of(source, checkpoint, max_target_length=4)
    targets = read_texts(source, "target", drop=False, advice="")
    (note,) = TextBatches(tokens, targets, plan_evaluation(tokens.room, batch_size=8)).notes
    assert "of 60 texts to be given have 4 tokens" in note
