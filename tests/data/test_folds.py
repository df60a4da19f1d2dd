"""Folds and shares: of equal size, each class alike, and no group in two of them."""

import numpy as np
import pytest

from jaxft.config import default_config
from jaxft.data.files import table
from jaxft.data.folds import fold_of, group_keys, hold_out_groups, shared_group
from jaxft.experiment.data import open_splits
from jaxft.tasks.table import TASKS


def classes(count, seed=0):
    return np.random.default_rng(seed).choice(4, count, p=[0.6, 0.3, 0.09, 0.01])


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_are_equal_parts_of_every_class(folds):
    ids = classes(503)
    found = fold_of(ids, folds, seed=3)
    for part in (ids >= 0, *(ids == number for number in range(4))):
        assert np.ptp(np.bincount(found[part], minlength=folds)) <= 1
    np.testing.assert_array_equal(found, fold_of(ids, folds, seed=3))
    assert (found != fold_of(ids, folds, seed=4)).mean() > 0.3
    with pytest.raises(ValueError, match="4 examples cannot be cut into 5 folds"):
        fold_of(ids[:4], 5, seed=0)


def groups_of(count, groups, seed=0):
    """Of very different sizes, and of one class for the most part."""
    random = np.random.default_rng(seed)
    group = np.minimum(random.geometric(3 / groups, count), groups - 1)
    own = random.integers(0, 3, groups)
    return group, np.where(random.random(count) < 0.8, own[group], random.integers(0, 3, count))


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_whole_and_parts_alike(seed):
    groups, ids = groups_of(4000, 200, seed)
    found = fold_of(ids, 5, seed, groups)
    assert all(len(set(found[groups == group])) == 1 for group in np.unique(groups))
    assert np.ptp(np.bincount(found, minlength=5)) < 0.05 * 800
    shares = np.array([np.bincount(ids[found == fold], minlength=3) / 800 for fold in range(5)])
    assert np.ptp(shares, axis=0).max() < 0.12
    kept, held = hold_out_groups(ids, groups, 0.1, seed)
    assert sorted([*kept, *held]) == list(range(4000)) and len(held) == pytest.approx(400, rel=0.1)
    assert not set(groups[kept]) & set(groups[held])


def test_few_groups():
    ids, groups = np.zeros(7, int), np.array([0, 0, 0, 0, 1, 1, 2])
    kept, held = hold_out_groups(ids, groups, 0.05, seed=0)
    assert held.tolist() == [6]  # the smallest, though it is more than was asked for
    assert len(set(fold_of(ids, 3, 0, groups))) == 3
    with pytest.raises(ValueError, match="3 groups cannot be cut into 4 folds"):
        fold_of(ids, 4, 0, groups)
    with pytest.raises(ValueError, match="1 groups cannot be cut into a part to train on"):
        hold_out_groups(ids, np.zeros(7), 0.5, 0)


def test_keys_are_those_of_values():
    source = table(
        "a.csv", {"user": ["x", "y", "x", "1", 1, True], "bad": ["x", None, "", [1], 0.5, "y"]}
    )
    keys = group_keys(source, "user", np.arange(6))
    assert keys[0] == keys[2] and len(set(keys.tolist())) == 5
    assert shared_group(keys[:2], keys[2:4]) == (0, 1) and shared_group(keys[:1], keys[3:]) is None
    for row, said in (
        (1, "has no group .None.; name the groups"),
        (2, "has no group"),
        (3, "is no group"),
    ):
        with pytest.raises(ValueError, match=rf"a.csv, row {row + 1}: column 'bad' .*{said}"):
            group_keys(source, "bad", np.array([0, row]))
    with pytest.raises(ValueError, match="a.csv has no column 'usr'.*did you mean 'user'"):
        group_keys(source, "usr", np.arange(2))


# From a config


@pytest.fixture
def people(tmp_path):
    """Forty people with five rows each, the label of a row being that of its person."""

    def write(name, first, count=40):
        rows = [
            f"text {p} {i},{'ab'[p % 2]},p{p}"
            for p in range(first, first + count)
            for i in range(5)
        ]
        (tmp_path / name).write_text("\n".join(["text,label,person", *rows]))
        return str(tmp_path / name)

    return write


def splits(**fields):
    config = default_config()
    config.data.update(fields)
    return open_splits(config, TASKS["text_classification"], ())


def people_in(split):
    column = split.source.column("person")
    return {column[row] for row in split.targets.rows}


def test_folds_of_a_config_are_a_cross_validation(people):
    train = people("train.csv", 0)
    for group in ("", "person"):
        parts = [splits(train=train, folds=4, fold=fold, group=group) for fold in range(4)]
        held = [part.eval.targets.rows.tolist() for part in parts]
        assert sorted(sum(held, [])) == list(range(200)) and {len(rows) for rows in held} == {50}
        for part, rows in zip(parts, held, strict=True):
            assert sorted([*part.train.targets.rows, *rows]) == list(range(200))
            assert np.bincount(part.eval.targets.ids).tolist() == [25, 25]
            assert bool(people_in(part.train) & people_in(part.eval)) == (not group)
    assert "50 of 200 training rows (fold 3 of 0 to 3, of each label alike)" in parts[3].notes[-1]
    assert "each group of 'person' as a whole" in parts[3].notes[-1]


def test_no_group_is_in_two_splits(people):
    train, other, mixed = (
        people("train.csv", 0),
        people("other.csv", 40),
        people("mixed.csv", 39, 2),
    )
    found = splits(train=train, group="person", test=other)
    assert len(people_in(found.eval)) == 4 and not people_in(found.train) & people_in(found.eval)
    assert splits(train=train, group="person", eval=other).eval.targets is not None
    said = "mixed.csv, line 2: the group 'p39' of 'person' is also in the .* data, as are 1 groups in all"
    for field in ("eval", "test"):
        with pytest.raises(ValueError, match=rf"^config.data.{field}: {said}"):
            splits(train=train, group="person", **{field: mixed})
