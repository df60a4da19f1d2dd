"""Entries kept with what is known of their tokens; examples of several texts, and of several windows."""

import dataclasses

import numpy as np
import pytest

from jaxft.data.batching import plan_evaluation
from jaxft.data.encode import Encoded, kept
from jaxft.data.loader import TextBatches
from jaxft.data.targets import unlabelled
from jaxft.data.tokens import grouped, windowed
from tests.data.test_words import tokenizer

# Four entries; the numbers count up, so that every token is known by its id.
LENGTHS = np.array([3, 1, 2, 4], np.int32)
IDS = np.arange(10, dtype=np.int32)
BEGINS = np.array([0, -1, 0, 0, 0, 0, 0, -1, 0, -1], np.int32)
KEY = "0" * 32


def tokens_of(cache=None, ids=IDS):
    def encoded():
        for own in (slice(0, 2), slice(2, 4)):
            at = slice(0, 4) if own.start == 0 else slice(4, 10)
            extra = {"begins": BEGINS[at], "tens": ids[at] * 10}
            yield Encoded(LENGTHS[own], LENGTHS[own] - 1, ids[at], extra)

    return kept(
        encoded, ("begins", "tens"), KEY, 4, tokenizer(), vocab_size=14,
        cache_dir=cache and str(cache),
    )  # fmt: skip


def test_the_cache_gives_the_same_and_makes_a_damaged_file_anew(tmp_path):
    made, read, plain = tokens_of(tmp_path), tokens_of(tmp_path), tokens_of()
    assert read.cached and not made.cached and made.fingerprint == read.fingerprint
    assert plain.fingerprint == made.fingerprint != tokens_of(ids=IDS[::-1]).fingerprint
    for name in ("begins", "tens"):
        np.testing.assert_array_equal(read.extra[name], plain.extra[name])
    files = sorted(tmp_path.glob("*.npy"))
    assert len(files) == 3
    for file in files:
        file.write_bytes(file.read_bytes()[:-4])
        assert not tokens_of(tmp_path).cached and tokens_of(tmp_path).cached
    with pytest.raises(ValueError, match="belongs to another model"):
        kept(list, ("begins", "tens"), KEY, 4, tokenizer(), vocab_size=5, cache_dir=str(tmp_path))


def batches_of(tokens, pack):
    plan = plan_evaluation(tokens.room, batch_size=2, pack=pack)
    batches = TextBatches(tokens, unlabelled(tokens.examples), plan)
    return [batches[step] for step in range(len(batches))]


@pytest.mark.parametrize(("pack", "even"), [(True, False), (False, False), (False, True)])
def test_texts_of_an_example_are_segments_of_one_row(pack, even):
    tokens = dataclasses.replace(grouped(tokens_of(), 2), even=even)
    assert tokens.lengths.tolist() == [4, 6] and tokens.texts == 2 and tokens.examples == 2
    assert tokens.room.tolist() == ([6, 8] if even else [4, 6])
    found = {}
    for batch in batches_of(tokens, pack):
        slots = batch["index"].shape[1]
        assert batch["starts"].shape == (len(batch["index"]), 2 * slots)
        for row, slot in zip(*np.nonzero(batch["index"] >= 0), strict=True):
            for text in range(2):
                own = np.flatnonzero(batch["segment_ids"][row] == 2 * slot + text + 1)
                assert own[0] == batch["starts"][row, 2 * slot + text]
                assert not even or own[0] == text * (batch["input_ids"].shape[1] // 2)
                assert batch["positions"][row, own].tolist() == list(range(len(own)))
                # Token type 1 is the last token of each text here.
                assert batch["token_type_ids"][row, own].tolist() == [0] * (len(own) - 1) + [1]
                assert (batch["tens"][row, own] == 10 * batch["input_ids"][row, own]).all()
                found[int(batch["index"][row, slot]), text] = batch["input_ids"][row, own].tolist()
        assert (batch["tens"][batch["segment_ids"] == 0] == -1).all()
    assert found == {(0, 0): [0, 1, 2], (0, 1): [3], (1, 0): [4, 5], (1, 1): [6, 7, 8, 9]}


@pytest.mark.parametrize("pack", [True, False])
def test_windows_of_an_example_are_entries_of_their_own(pack):
    tokens = windowed(tokens_of(), "begins")
    assert tokens.windows.tolist() == [0, 2, 3, 5, 7] and tokens.examples == 4
    assert tokens.lengths.tolist() == [2, 1, 1, 1, 1, 2, 2] and list(tokens.extra) == ["tens"]
    found = {}
    for batch in batches_of(tokens, pack):
        for row, slot in zip(*np.nonzero(batch["index"] >= 0), strict=True):
            own = batch["segment_ids"][row] == slot + 1
            place = (int(batch["index"][row, slot]), int(batch["window"][row, slot]))
            assert batch["positions"][row, own][0] == 0 and place not in found
            found[place] = batch["input_ids"][row, own].tolist()
    expected = [[0, 1], [2], [3], [4], [5], [6, 7], [8, 9]]
    places = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert found == dict(zip(places, expected, strict=True))


def test_windows_are_joined_by_the_task():
    from jaxft.experiment.evaluation import predict
    from tests.experiment.test_evaluation import PARALLEL

    tokens = windowed(tokens_of(), "begins")
    targets = dataclasses.replace(unlabelled(4), rows=np.array([7, 2, 5, 0]))
    plan = plan_evaluation(tokens.lengths, batch_size=2)
    batches = TextBatches(tokens, targets, plan)

    def program(params, batch):
        sums = [
            [batch["input_ids"][r][batch["segment_ids"][r] == k + 1].sum() for k in range(slots)]
            for r, slots in enumerate([batch["index"].shape[1]] * len(batch["index"]))
        ]
        return {"index": batch["index"], "item": batch["window"], "sum": np.array(sums)}

    def join(found, windows, given):
        assert given is targets
        return {"sum": np.add.reduceat(found["sum"], windows[:-1])}

    found = predict(program, None, batches, PARALLEL, targets, join=join)
    assert found["sum"].tolist() == [3, 3, 9, 30] and found["seen"].all()
