"""Averages of weights and of logits, and which trials a greedy soup takes."""

from __future__ import annotations

import itertools

import numpy as np

from jaxft.search.soup import greedy, uniform


def test_the_mean_of_leaves_where_some_members_lack_one():
    source = {"a": np.array([4.0, 0.0], np.float32), "b": np.float16(1.0), "c": np.zeros(3)}
    members = [
        {"a": np.array([1.0, 2.0], np.float32), "b": np.float16(3.0)},
        {"a": np.array([3.0, 6.0], np.float32)},
    ]
    found = uniform(members, source)
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["a"], [2.0, 4.0])
    assert found["b"] == 2.0 and found["a"].dtype == np.float32 and found["b"].dtype == np.float16


def test_greedy_adds_what_does_no_harm_and_is_never_worse_than_the_first():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = {
            members: float(rng.integers(0, 5))
            for size in range(1, 5)
            for members in itertools.combinations(range(4), size)
        }
        asked = []

        def value(members, values=values, asked=asked):
            asked.append(members)
            return values[members]

        members, found = greedy(4, value)
        assert members[0] == 0 and found == values[members] >= values[(0,)]
        assert len(asked) == 4  # each candidate is tried once, with all that stayed before it
        for one in range(1, 4):
            before = tuple(m for m in members if m < one)
            assert (one in members) == (values[(*before, one)] >= values[before])
