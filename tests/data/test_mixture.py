"""Sources in set shares: exact, each example once a pass, the same for any number of processes."""

import dataclasses

import numpy as np
import pytest

from jaxft.data.batching import plan_training
from jaxft.data.combined import mixed
from jaxft.data.files import table
from jaxft.data.labels import Labels
from jaxft.data.loader import TextBatches
from jaxft.data.mixture import Mixture
from jaxft.data.tokens import make_tokens

SIZES = (50, 7, 1, 200)
ROWS = np.arange(sum(SIZES))


def mixture(weights=(0.5, 0.2, 0.1, 0.2), temperature=None, sizes=SIZES):
    names = tuple(f"s{i}" for i in range(len(sizes)))
    return Mixture(names, tuple(np.cumsum(sizes).tolist()), tuple(weights), temperature)


def drawn(sampler, steps):
    return np.concatenate([sampler(step)[0] for step in range(steps)])


@pytest.mark.parametrize("seed", [0, 1])
def test_shares_are_exact_and_each_example_comes_once_a_pass(seed):
    found = mixture()
    sampler = found.sampler(ROWS, batch_size=16, seed=seed)
    assert sum(sampler.draws) == 10_000 and sampler.draws == (5000, 2000, 1000, 2000)
    steps = -(-10_000 // sum(SIZES)) * sampler.steps_per_epoch
    examples = drawn(sampler, steps)
    sources = found.source_of(examples)
    # An epoch has as many draws as there are examples, its last batch being smaller.
    assert len(examples) % sum(SIZES) == 0 and sampler.steps_per_epoch == 17
    assert np.bincount(sources[:10_000]).tolist() == [5000, 2000, 1000, 2000]
    assert len(sampler(16)[0]) == sum(SIZES) % 16 and len(sampler(17)[0]) == 16
    starts = np.concatenate([[0], found.ends])
    for source, size in enumerate(SIZES):
        own = examples[sources == source]
        passes = own[: len(own) // size * size].reshape(-1, size)
        members = np.arange(starts[source], starts[source + 1])
        assert (np.sort(passes, axis=1) == members).all()
        if size > 1:  # in another order each time
            assert len({tuple(one) for one in passes[:5].tolist()}) == 5
    # By chance, not in turns: runs of one source are as long as its share says.
    assert np.mean(sources[1:] == sources[:-1]) == pytest.approx(
        0.25 + 0.04 + 0.01 + 0.04, abs=0.02
    )


def test_a_step_is_the_same_whenever_it_is_asked_for():
    first, second = (mixture().sampler(ROWS, batch_size=16, seed=3) for _ in range(2))
    later = [second(step)[0].tolist() for step in (900, 5, 40)]
    assert [first(step)[0].tolist() for step in (40, 900, 5)] == [later[2], later[0], later[1]]
    other = mixture().sampler(ROWS, batch_size=16, seed=4)
    assert other(5)[0].tolist() != later[1]


@pytest.mark.parametrize(
    ("weights", "temperature", "shares"),
    [
        ((1, 1, 1, 1), None, (0.25,) * 4),
        ((1, 1, 1, 1), 1.0, np.array(SIZES) / sum(SIZES)),
        ((1, 1, 1, 1), 2.0, np.sqrt(SIZES) / np.sqrt(SIZES).sum()),
        ((1, 2, 4, 1), 2.0, np.sqrt(SIZES) * (1, 2, 4, 1) / (np.sqrt(SIZES) * (1, 2, 4, 1)).sum()),
        ((1, 1, 1, 1), 1000.0, (0.25,) * 4),
        ((1 / 3, 1 / 3, 1 / 6, 1 / 6), None, (1 / 3, 1 / 3, 1 / 6, 1 / 6)),
    ],
)
def test_shares_follow_weights_and_temperature(weights, temperature, shares):
    draws = np.array(mixture(weights, temperature).sampler(ROWS, batch_size=4, seed=0).draws)
    np.testing.assert_allclose(
        draws / draws.sum(), shares, atol=1.2e-3 if temperature == 1000 else 1e-4
    )
    if temperature is None:
        np.testing.assert_allclose(draws / draws.sum(), shares, rtol=1e-12)


def test_what_cannot_be_mixed_is_one_line():
    with pytest.raises(ValueError, match="s2: no row is left to train on"):
        mixture().sampler(np.array([0, 51, 60]), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="s1: its share of the mixture is less than one in 10,000"):
        mixture((1, 1e-6, 1, 1)).sampler(ROWS, batch_size=2, seed=0)
    parts = [table("a", {"text": ["x"]}), table("b", {"words": ["y"]})]
    with pytest.raises(
        ValueError, match="no column is in all of its sources .a: 'text'; b: 'words'"
    ):
        mixed(["a", "b"], parts, [1, 1], None)


def test_sources_need_only_share_some_columns():
    parts = [
        table("a.csv", {"text": ["x"], "id": [1]}),
        table("a.csv", {"more": [0, 0], "text": ["y", "z"]}),
    ]
    source = mixed(["a.csv", "a.csv"], parts, [1, 3], None)
    assert source.columns == ("text",) and source.column("text") == ["x", "y", "z"]
    assert source.mixture == Mixture(("a.csv-1", "a.csv-2"), (1, 3), (1.0, 3.0))
    assert source.mixture.source_of(np.array([[0, 2], [-1, 1]])).tolist() == [[0, 1], [0, 1]]


# Batches


@pytest.fixture(scope="module")
def parts():
    lengths = np.random.default_rng(0).integers(3, 40, sum(SIZES)).astype(np.int32)
    ids = np.repeat(np.arange(sum(SIZES)), lengths)  # each token says whose it is
    labels = Labels(("a",), ROWS, np.zeros(len(ROWS), np.int32))
    return make_tokens(lengths, lengths, ids.astype(np.int32)), labels


def batches(parts, **process):
    tokens, labels = parts
    found = mixture()
    sampler = found.sampler(labels.rows, batch_size=16, seed=1)
    plan = plan_training(tokens.lengths, batch_size=16, steps=40, seed=1, shards=4, draws=sampler)
    return TextBatches(tokens, labels, plan, mixture=found, **process)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_cut_the_same_batches_also_after_a_resume_on_another_number(parts, count):
    whole = batches(parts)
    shares = [batches(parts, process_index=i, process_count=count) for i in range(count)]
    for step in (0, 16, 23, 39):  # 16 is the partial batch at the end of an epoch
        own = [share[step] for share in shares]
        for name, array in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([b[name] for b in own]), array)
    # What is left from a step on is what follows it, for any number of processes.
    left = [read(share[step]) for step in range(20, 40) for share in shares]
    after = [read(whole[step]) for step in range(20, 40)]
    assert sorted(sum(left, [])) == sorted(sum(after, []))


def read(batch):
    """The rows of a batch, with the source of each."""
    real = batch["index"] >= 0
    for row, slot in zip(*np.nonzero(real), strict=True):
        own = batch["segment_ids"][row] == slot + 1
        assert (batch["input_ids"][row, own] == batch["index"][row, slot]).all() and own.any()
    return list(zip(batch["index"][real].tolist(), batch["source"][real].tolist(), strict=True))


def test_batches_hold_what_was_drawn(parts):
    whole = batches(parts)
    for step in range(0, 40, 3):
        wanted, key = whole.plan.sampler(step)
        found = read(whole[step])
        assert sorted(row for row, _ in found) == sorted(wanted.tolist()) and key == step
        assert [s for _, s in found] == whole.mixture.source_of(
            np.array([r for r, _ in found])
        ).tolist()
    assert set(whole.blank()[0]) == set(whole[0])
    again = dataclasses.replace(whole.plan, steps=10)  # the length of the run changes no batch
    np.testing.assert_array_equal(again.layout(7).slots, whole.plan.layout(7).slots)
