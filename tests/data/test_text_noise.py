"""Noise in tokens: as often as asked, by (seed, epoch, entry), and never in special tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from jaxft.data.filling import fill_text
from jaxft.data.text_noise import TextNoise, text_noise
from jaxft.data.tokens import make_tokens
from tests import tiny

# [CLS] word word … [SEP] word … [SEP]: 2 and 3 are special, 1 is put in the place of others.
SPECIAL = np.array([True, True, True, True, *[False] * 60])
BEGINS = np.array([True] * 34 + [False] * 30)  # from 34 on a token continues a word


def batch(entries: int = 40, length: int = 12):
    draw = np.random.default_rng(0)
    rows = draw.integers(4, 34, (entries, length))
    rows[:, 0], rows[:, 5], rows[:, -1] = 2, 3, 3
    tokens = make_tokens(
        np.full(entries, length, np.int32),
        np.full(entries, 6, np.int32),
        rows.ravel().astype(np.int32),
    )
    slots = np.arange(entries).reshape(-1, 2)
    return fill_text(tokens, slots, 2 * length), slots, rows


def noise(dropout=0.0, swap=0.0, seed=0):
    return TextNoise(dropout, swap, 1, SPECIAL, BEGINS, seed)


def of(changed, slots, entry, length=12):
    row, place = divmod(entry, slots.shape[1])
    return changed["input_ids"][row, place * length : (place + 1) * length]


def test_tokens_are_hidden_as_often_as_asked_and_special_ones_never():
    inputs, slots, rows = batch(400)
    before = inputs["input_ids"].copy()
    changed = noise(dropout=0.2)(inputs, slots, 0)
    np.testing.assert_array_equal(inputs["input_ids"], before)
    hidden = changed["input_ids"] != before
    assert (changed["input_ids"][hidden] == 1).all() and not hidden[SPECIAL[before]].any()
    share = hidden.sum() / (~SPECIAL[before]).sum()
    assert abs(share - 0.2) < 0.02
    assert all(changed[name] is inputs[name] for name in inputs if name != "input_ids")


def test_words_change_places_within_their_text_and_nothing_is_lost():
    inputs, slots, rows = batch(400)
    rows[:, 3] = 40  # the third word has two tokens
    inputs["input_ids"] = rows.reshape(200, 24).astype(np.int32)
    changed = noise(swap=0.3)(inputs, slots, 0)["input_ids"].reshape(400, 12)
    for first, last in ((1, 5), (6, 11)):
        np.testing.assert_array_equal(np.sort(changed[:, first:last]), np.sort(rows[:, first:last]))
    np.testing.assert_array_equal(changed[:, [0, 5, 11]], rows[:, [0, 5, 11]])
    # Its tokens stay together.
    place = np.argmax(changed == 40, axis=1)
    np.testing.assert_array_equal(changed[np.arange(400), place - 1], rows[:, 2])
    assert 0.3 < (changed != rows).any(1).mean() < 1


def test_it_depends_on_seed_epoch_and_entry_only():
    inputs, slots, _ = batch()
    both = noise(0.2, 0.2)
    first = both(inputs, slots, 1)
    part = {name: array[3:7] for name, array in inputs.items()}
    alone = both(part, slots[3:7], 1)
    np.testing.assert_array_equal(of(alone, slots, 2), of(first, slots, 8))
    for other in (both(inputs, slots, 2), noise(0.2, 0.2, seed=1)(inputs, slots, 1)):
        assert (other["input_ids"] != first["input_ids"]).any()


def test_what_is_special_and_what_begins_a_word_is_read_from_the_tokenizer(tmp_path):
    directory = tiny.bert(tmp_path / "bert", blocks=1)
    tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")
    found = text_noise(tokenizer, directory, 60, dropout=0.1, swap=0.1, seed=0)
    assert found.hidden == tokenizer.token_to_id("[UNK]")
    assert set(np.flatnonzero(found.special)) == {
        tokenizer.token_to_id(name) for name in ("[UNK]", "[CLS]", "[SEP]")
    }
    assert found.begins.all()
    pieces = {"[UNK]": 0, "[MASK]": 1, "play": 2, "##ing": 3}
    wordpiece = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    found = text_noise(wordpiece, str(tmp_path), 4, dropout=0.1, swap=0.0, seed=0)
    assert found.hidden == 1 and found.begins.tolist() == [True, True, True, False]


def test_a_tokenizer_that_has_no_such_token_is_refused(tmp_path):
    bare = Tokenizer(models.BPE({"a": 0, "Ġb": 1}, []))
    with pytest.raises(ValueError, match="token_dropout must be 0"):
        text_noise(bare, str(tmp_path), 2, dropout=0.1, swap=0.0, seed=0)
    assert text_noise(bare, str(tmp_path), 2, dropout=0.0, swap=0.1, seed=0).begins.tolist() == [
        False,
        True,
    ]
    assert json.loads(bare.to_str())["model"]["type"] == "BPE"
