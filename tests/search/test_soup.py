"""Averages of weights and of logits, and which trials a greedy soup takes."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from jaxft.experiment.ensemble import Ensemble, mean_of_logits, read_ensemble
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


def test_an_ensemble_is_read_as_soup_wrote_it_or_refused_in_one_line(tmp_path):
    assert read_ensemble(tmp_path) is None
    (tmp_path / "soup.json").write_text('{"written by": "somebody"}')
    assert read_ensemble(tmp_path) is None

    def refused(ensemble) -> str:
        record = {"written by": "jaxft soup", "ensemble": ensemble}
        (tmp_path / "soup.json").write_text(json.dumps(record))
        with pytest.raises(ValueError) as error:
            read_ensemble(tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert f"give {tmp_path / 'soup'}, or write the ensemble" in refused(None)
    assert "is not what jaxft wrote" in refused({"members": []})
    assert f"{tmp_path / 'members/a'} is missing" in refused({"members": ["a"], "fitted": {}})
    (tmp_path / "members/a").mkdir(parents=True)
    assert read_ensemble(tmp_path) == Ensemble((tmp_path / "members/a",), {})


def test_logits_are_averaged_and_what_has_none_is_refused():
    seen = np.ones(2, bool)
    members = [
        {"logits": np.array([[1.0, 0.0], [3.0, 1.0]], np.float32), "seen": seen},
        {"logits": np.array([[0.0, 2.0], [1.0, 1.0]], np.float32), "seen": seen},
    ]
    found = mean_of_logits(members)
    np.testing.assert_array_equal(found["logits"], np.array([[0.5, 1.0], [2.0, 1.0]], np.float32))
    assert found["logits"].dtype == np.float32 and found["seen"] is seen
    with pytest.raises(ValueError, match="keeps the logits of each row"):
        mean_of_logits([members[0], {"seen": seen}])
