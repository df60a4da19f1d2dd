"""Tokens changed as a batch is made: by (seed, epoch, example) alone, and as the paper says."""

import dataclasses

import numpy as np
import pytest

from jaxft.data.batching import plan_evaluation, plan_training
from jaxft.data.corruption import each_entry
from jaxft.data.filling import fill_text
from jaxft.data.loader import TextBatches
from jaxft.data.masking import Masking
from jaxft.data.targets import unlabelled
from jaxft.data.tokens import grouped, make_tokens

VOCABULARY, MASK = 5000, 1
MASKING = Masking(0.15, MASK, VOCABULARY, whole_words=False, seed=0)


def tokens(count=60, words=1):
    """Examples of different tokens, words of some tokens, and a special token at both ends."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 40, count).astype(np.int32)
    ids = np.arange(lengths.sum(), dtype=np.int32) + 2
    word = np.concatenate([[-1, *(np.arange(n - 2) // words + 7), -1] for n in lengths])
    made = make_tokens(lengths, lengths, ids)
    return dataclasses.replace(made, extra={"word": word.astype(np.int32)})


def seen(batches, steps):
    """{example: (its ids as they are read, the ids that were)}."""
    found = {}
    for batch in map(batches.__getitem__, steps):
        for row, slot in zip(*np.nonzero(batch["index"] >= 0), strict=True):
            own = batch["segment_ids"][row] == slot + 1
            index = int(batch["index"][row, slot])
            found[index] = (
                tuple(batch["input_ids"][row, own]),
                tuple(batch["original"][row, own]),
            )
            changed = batch["input_ids"][row, own] != batch["original"][row, own]
            assert batch["chosen"][row, own][changed].all()
    return found


def training(tokens, corrupt, *, batch_size=16, pack=True, seed=3):
    plan = plan_training(tokens.lengths, batch_size=batch_size, steps=40, seed=seed, pack=pack)
    return TextBatches(tokens, unlabelled(len(tokens)), plan, corrupt=corrupt)


def test_a_mask_depends_on_seed_epoch_and_example_alone():
    given = tokens()
    first = seen(training(given, MASKING), range(4))
    assert len(first) == 60
    # In other batches, in rows of their own, in another order, on two processes: the same.
    assert seen(training(given, MASKING, batch_size=30, pack=False, seed=5), range(2)) == first
    plan = plan_evaluation(given.lengths, batch_size=16, shards=2)
    halves = [
        TextBatches(given, unlabelled(60), plan, corrupt=MASKING, process_index=i, process_count=2)
        for i in range(2)
    ]
    assert seen(halves[0], range(len(plan))) | seen(halves[1], range(len(plan))) == first
    second = seen(training(given, MASKING), range(4, 8))  # the next epoch
    other = seen(training(given, dataclasses.replace(MASKING, seed=1)), range(4))
    for again in (second, other):
        assert {k: v[1] for k, v in again.items()} == {k: v[1] for k, v in first.items()}
        assert again != first


def masked(given, masking, epochs=60):
    """What was chosen, what became of it, and the words, of many epochs: [epochs, tokens]."""
    slots = np.arange(len(given))[:, None]
    inputs = fill_text(given, slots, 40)
    many = [masking(inputs, slots, epoch) for epoch in range(epochs)]
    real = inputs["segment_ids"] > 0
    chosen, ids = (np.stack([m[k][real] for m in many]) for k in ("chosen", "input_ids"))
    return chosen, ids, inputs["input_ids"][real], inputs["word"][real]


def test_a_share_is_chosen_and_of_these_most_are_hidden():
    chosen, ids, original, words = masked(tokens(), MASKING)
    assert not chosen[:, words < 0].any()  # special tokens
    assert (ids == original)[~chosen].all()
    count = chosen.sum()
    assert chosen[:, words >= 0].mean() == pytest.approx(0.15, abs=0.005)
    hidden, same = (ids == MASK).sum(), (chosen & (ids == original)).sum()
    assert hidden / count == pytest.approx(0.8, abs=0.015)
    assert same / count == pytest.approx(0.1, abs=0.015)
    other = ids[chosen & (ids != MASK) & (ids != original)]
    assert other.max() < VOCABULARY and len(np.unique(other)) > 0.8 * len(other)


def test_whole_words_are_chosen_with_all_of_their_tokens():
    given = tokens(words=3)
    chosen, _, _, words = masked(given, dataclasses.replace(MASKING, whole_words=True))
    same_word = (words[1:] == words[:-1]) & (words[1:] >= 0)
    assert (chosen[:, 1:] == chosen[:, :-1])[:, same_word].all()
    assert chosen[:, words >= 0].mean() == pytest.approx(0.15, abs=0.01)
    alone, *_ = masked(given, MASKING)
    assert not (alone[:, 1:] == alone[:, :-1])[:, same_word].all()


def test_padding_has_the_same_arrays_and_an_entry_of_two_texts_is_one():
    given = tokens()
    batches = training(given, MASKING)
    blank, real = batches.blank()[0], batches[0]
    assert blank.keys() == real.keys() and not blank["chosen"].any()
    pairs, slots = grouped(given, 2), np.array([[3, -1], [0, 29]])
    found = list(each_entry(fill_text(pairs, slots, 160), slots, 0, 0))
    assert [(row, own.stop - own.start) for _, row, own in found] == [
        (0, pairs.lengths[3]), (1, pairs.lengths[0]), (1, pairs.lengths[29])
    ]  # fmt: skip
