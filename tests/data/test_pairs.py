"""Pairs of labelled rows: which there are, how often each comes, and their arrays, however they are cut."""

import itertools
from collections import Counter

import numpy as np
import pytest

from jaxft.data.batching import plan_training
from jaxft.data.labels import Labels
from jaxft.data.loader import PairBatches
from jaxft.data.pairs import SAMPLING, PairLengths, PairSampler, pairing_of
from jaxft.data.tokens import make_tokens

SIZES = ((8, 4, 8), (1, 1), (1, 5), (3, 1, 2))


def labels(sizes, seed=0):
    ids = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    names = tuple(f"label {i}" for i in range(len(sizes)))
    return Labels(names, np.arange(len(ids)) * 3, ids.astype(np.int32))


def counted(sampler, n, ids, epochs=1):
    """How often each pair came, those that are alike and those that are not."""
    steps = range(epochs * sampler.steps_per_epoch)
    found = Counter(tuple(divmod(int(c), n)) for step in steps for c in sampler(step)[0])
    return [
        {pair: k for pair, k in found.items() if (ids[pair[0]] == ids[pair[1]]) is alike}
        for alike in (np.True_, np.False_)
    ]


@pytest.mark.parametrize("sizes", SIZES)
def test_an_epoch_of_unique_pairs_is_every_combination_once(sizes):
    """As the library has them: each row with itself among them."""
    given = labels(sizes)
    n = len(given)
    alike, unlike = counted(PairSampler(pairing_of(given, "unique", None), 5, 1), n, given.ids)
    every = itertools.combinations_with_replacement(range(n), 2)
    assert (alike | unlike) == dict.fromkeys(every, 1)


@pytest.mark.parametrize(
    ("sampling", "iterations"), [*((s, None) for s in SAMPLING), ("unique", 3)]
)
@pytest.mark.parametrize("sizes", SIZES)
def test_both_kinds_come_as_often_as_asked_and_each_pair_about_as_often(
    sizes, sampling, iterations
):
    given = labels(sizes)
    pairing = pairing_of(given, sampling, iterations)
    p, q = pairing.there
    expected = {
        "unique": (p, q),
        "oversampling": (max(p, q),) * 2,
        "undersampling": (min(p, q),) * 2,
    }
    drawn = (3 * len(given),) * 2 if iterations else expected[sampling]
    for epochs in (1, 3):
        found = counted(PairSampler(pairing, 7, 2), len(given), given.ids, epochs)
        for own, there, count in zip(found, (p, q), drawn, strict=True):
            assert sum(own.values()) == epochs * count
            least, most = divmod(epochs * count, there)
            assert set(own.values()) <= {least, least + (most > 0)}
            assert len(own) == min(there, epochs * count)


def test_batches_depend_on_seed_and_step_alone_and_epochs_differ():
    pairing = pairing_of(labels((8, 8)), "oversampling", None)
    first, again, other = (PairSampler(pairing, 16, seed) for seed in (0, 0, 1))
    per_epoch = first.steps_per_epoch
    for step in (per_epoch + 2, 0, 2):  # in any order
        np.testing.assert_array_equal(first(step)[0], again(step)[0])
    assert not np.array_equal(first(2)[0], other(2)[0])
    assert not np.array_equal(first(2)[0], first(per_epoch + 2)[0])
    assert first(per_epoch)[1] == 1


def test_pairs_are_decoded_from_large_numbers():
    given = labels((40_000, 20_000))
    pairing = pairing_of(given, "undersampling", None)
    assert pairing.there == (40_000 * 40_001 // 2 + 20_000 * 20_001 // 2, 40_000 * 20_000)
    random = np.random.default_rng(0)
    for kind, of in enumerate((pairing.alike, pairing.unlike)):
        count = pairing.there[kind]
        numbers = np.unique([0, 1, count - 2, count - 1, *random.integers(0, count, 2000)])
        found = of(numbers)
        assert len(np.unique(found, axis=0)) == len(numbers)
        assert (found[:, 0] <= found[:, 1]).all()
        assert ((given.ids[found[:, 0]] == given.ids[found[:, 1]]) == (kind == 0)).all()
    with pytest.raises(ValueError, match="more than 2147483647 cannot be counted; give config"):
        pairing_of(labels((70_000, 1)), "unique", None)


def test_what_cannot_be_learned_is_one_line():
    given = labels((3, 2))
    lacking = Labels(("a", "b", "c", "d"), given.rows, given.ids)
    with pytest.raises(ValueError, match="no training example for the label 'c', nor for 1 others"):
        pairing_of(lacking, "unique", None)
    with pytest.raises(ValueError, match="all 3 training examples have the label 'label 0'"):
        pairing_of(labels((3,)), "unique", None)


@pytest.mark.parametrize("pack", [True, False])
def test_rows_of_a_batch_hold_the_pairs_of_its_step_and_processes_cut_them(pack):
    given = labels((6, 5))
    random = np.random.default_rng(1)
    lengths = random.integers(3, 9, len(given))
    ids = np.repeat(np.arange(len(given)) + 100, lengths)  # a text of its own number each
    tokens = make_tokens(lengths, lengths, ids)
    sampler = PairSampler(pairing_of(given, "oversampling", None), 8, 0)
    plan = plan_training(
        PairLengths(lengths), batch_size=8, steps=9, seed=0, shards=2, pack=pack, draws=sampler
    )
    whole = PairBatches(tokens, given, plan)
    parts = [PairBatches(tokens, given, plan, process_index=i, process_count=2) for i in range(2)]
    for step in (0, sampler.steps_per_epoch - 1, 8):
        batch = whole[step]
        for name, array in batch.items():
            cut = [part[step][name] for part in parts]
            np.testing.assert_array_equal(np.concatenate(cut), array)
        found = []
        for r, k in zip(*np.nonzero(batch["weight"]), strict=True):
            pair = []
            for text in (2 * k, 2 * k + 1):
                own = batch["segment_ids"][r] == text + 1
                (number,) = np.unique(batch["input_ids"][r][own]) - 100
                assert own.sum() == lengths[number]
                assert own.argmax() == batch["starts"][r, text]
                np.testing.assert_array_equal(batch["positions"][r][own], np.arange(own.sum()))
                pair.append(number)
            assert batch["labels"][r, k] == (given.ids[pair[0]] == given.ids[pair[1]])
            assert batch["index"][r, k] == given.rows[pair[0]]
            found.append(pair[0] * len(given) + pair[1])
        assert sorted(found) == sorted(sampler(step)[0].tolist())
