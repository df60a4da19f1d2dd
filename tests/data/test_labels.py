"""Label names, unknown labels, subsets and stratified splits."""

from decimal import Decimal

import numpy as np
import pytest

from jaxft.data.files import table
from jaxft.data.labels import LABEL_COLUMNS, find_target_column, read_labels
from jaxft.data.subsets import few_per_class, holdout
from jaxft.data.targets import unlabelled


def source(values, class_names=None, **columns):
    given = {"label": class_names} if class_names else None
    return table("a.csv", {**columns, "label": values}, class_names=given)


@pytest.mark.parametrize(
    "values, names, ids",
    [
        (["spam", "ham", "spam"], ("ham", "spam"), [1, 0, 1]),
        (["10", "9", "-1", "10"], ("-1", "9", "10"), [2, 1, 0, 2]),  # by value, not as text
        ([10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        ([1.0, 0.0], ("0", "1"), [1, 0]),  # integers that were read as floats
        ([" spam", "ham "], ("ham", "spam"), [1, 0]),
        ([b"b", b"a"], ("a", "b"), [1, 0]),
        ([True, False], ("False", "True"), [1, 0]),
        ([1, True, "a"], ("1", "True", "a"), [0, 1, 2]),  # equal in Python, but no one label
        (["1.0", "0.0", "1.0"], ("0", "1"), [1, 0, 1]),  # the same, written to a CSV file
        (["1.0", "other"], ("1.0", "other"), [0, 1]),  # a version, say: names are left as they are
        ([Decimal("2.00"), Decimal(3)], ("2", "3"), [0, 1]),
        (list(np.array([3, 1])), ("1", "3"), [1, 0]),
        (["[INST]", "[red]"], ("[INST]", "[red]"), [0, 1]),
        (["1e5", "2"], ("1e5", "2"), [0, 1]),
    ],
)
def test_names_from_the_values(values, names, ids):
    labels = read_labels(source(values), "label")
    assert labels.names == names and labels.ids.tolist() == ids
    assert labels.rows.tolist() == list(range(len(values)))


def test_names_from_the_source_keep_their_order_and_unused_classes():
    labels = read_labels(source([0, 2], class_names=("z", "unused", "a")), "label")
    assert labels.names == ("z", "unused", "a") and labels.ids.tolist() == [0, 2]
    assert labels.counts() == {"z": 1, "unused": 0, "a": 1}


def test_evaluation_data_takes_the_training_names():
    known = ("z", "a")
    assert read_labels(source(["a", "z"]), "label", names=known).ids.tolist() == [1, 0]
    # Another numbering of the same names is no problem: names are compared, not numbers.
    other = source([0, 1], class_names=("a", "z"))
    assert read_labels(other, "label", names=known).ids.tolist() == [1, 0]
    with pytest.raises(ValueError, match="a.csv, row 2: the label 'zz' is unknown.*z, a .did you"):
        read_labels(source(["a", "zz"]), "label", names=known)


@pytest.mark.parametrize("missing", [None, "", "  ", float("nan")])
def test_a_missing_label_is_named(missing):
    with pytest.raises(ValueError, match="a.csv, row 2: column 'label' has no label") as error:
        read_labels(source(["a", missing, "b", missing]), "label", advice=" by this")
    assert "2 rows are like this (rows 2, 4)" in str(error.value)
    assert str(error.value).endswith("or leave them out by this")
    labels = read_labels(source(["a", missing, "b", missing]), "label", drop_missing=True)
    assert labels.names == ("a", "b") and labels.rows.tolist() == [0, 2]
    assert labels.ids.tolist() == [0, 1] and labels.dropped.tolist() == [1, 3]


def test_the_unlabelled_rows_of_a_test_split_are_named():
    with pytest.raises(ValueError, match=r"row 1: column 'label' has no label \(-1\)"):
        read_labels(source([-1, 0], class_names=("a", "b")), "label")


NO_CLASSES = {
    "several labels": (
        [["a", "b"], ["a"]] * 9,
        "row 1: .* holds lists .*'a', 'b'.*task=.multi_label",
    ),
    "one list among texts": (["a", "b", ("a",)], "row 3: .* holds lists .*task=.multi_label"),
    "objects": ([{"name": "a"}, {"name": "b"}], "row 1: .* holds lists"),
    "vectors": ([np.array([0, 1]), np.array([1, 0])], "row 1: .* holds lists .*task=.multi_label"),
    "lists as text": (['["a", "b"]', '["a"]', "[]"] * 9, "holds lists .*task=.multi_label"),
    "vectors as text": (["[0 1 0]", "[1 0 0]"] * 9, "holds lists .*task=.multi_label"),
    "joined labels": (["a", "b|a", "b", "a|b"] * 9, "labels joined by '|' .'b.a'.*multi_label"),
    "numbers": ([0.5, 3.7, 1.0] * 9, "numbers that are not whole .0.5, 3.7.*regression"),
    "numbers as text": (["0.5", "3.7", "nan", "1"] * 9, "not whole .0.5, 3.7.*regression"),
    "numbers with a comma": (["0,5", "3,7", "1"] * 9, "not whole .0,5, 3,7.*regression"),
    "decimals": ([Decimal("0.5"), Decimal(1)] * 9, "not whole .0.5.*regression"),
    "small numbers": (["1e-3", "2.5e-3"] * 9, "not whole .*regression"),
    "identifiers": ([f"id {i}" for i in range(100)], "100 different values in 100 rows .*config"),
    "numbered rows": (list(range(12)), "12 different values in 12 rows .*not class labels"),
    "links": ([f"http://a.org/{i % 6}" for i in range(10)], "6 different values in 10 rows"),
    "free text": (["Long " * 50 + str(i) for i in range(9)], "9 different values in 9 rows"),
    "bytes that are no text": ([b"a", b"\xff"], "row 2: .* not UTF-8"),
    "half a character": (["a", "\ud800"], "row 2: .*ud800.* not UTF-8"),
    "one class": (["a", "a"], r"holds one label only \(a\)"),
}


@pytest.mark.parametrize("kind", NO_CLASSES)
def test_what_is_no_class_label_is_refused(kind):
    values, message = NO_CLASSES[kind]
    with pytest.raises(ValueError, match=message) as error:
        read_labels(source(values), "label")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_many_classes_are_allowed_where_they_are_meant():
    names = [f"class {i}" for i in range(12)]
    assert read_labels(source(["a|b", "a", "b", "a|c", "c, d"] * 2), "label").names[1] == "a|b"
    assert len(read_labels(source(names), "label", classes=names).names) == 12
    assert len(read_labels(source([0, 1] * 4, class_names=names), "label").names) == 12
    assert read_labels(source(["a", "b", "a", "b"]), "label").names == ("a", "b")
    assert len(read_labels(source([str(i) for i in range(6)] * 2), "label").names) == 6


def test_all_unknown_labels_are_said_at_once():
    with pytest.raises(ValueError, match=r"row 2: .*'zz' is unknown \(with 'y', 'x': 4 rows\)"):
        read_labels(source(["a", "zz", "y", "zz", "x"]), "label", names=("a", "b"))


def test_whole_numbers_are_the_same_labels_however_they_are_stored():
    for values in ([1, 2, 1], [1.0, 2.0, 1.0], ["1", "2", "1"], ["1.0", "2.0", "1.0"]):
        assert read_labels(source(values), "label").names == ("1", "2")
        assert read_labels(source(values), "label", names=("2", "1")).ids.tolist() == [1, 0, 1]


def test_a_subset_of_classes():
    data = source([str(i % 10) for i in range(30)])
    labels = read_labels(data, "label", classes=("7", "5"))
    assert labels.names == ("5", "7") and labels.rows.tolist() == [5, 7, 15, 17, 25, 27]
    assert labels.ids.tolist() == [0, 1] * 3
    evaluation = read_labels(data, "label", names=labels.names, classes=("7", "5"))
    np.testing.assert_array_equal(evaluation.ids, labels.ids)
    with pytest.raises(ValueError, match="no class '55'; its classes are 0, 1.*did you mean '5'"):
        read_labels(data, "label", classes=("55", "7"))


def find_label_column(source, given=""):
    return find_target_column(source, given, source.class_names, LABEL_COLUMNS, "label")


def test_label_columns_are_found_by_name():
    assert find_label_column(table("t", {"text": ["a"], "Label": ["b"]})) == "Label"
    assert (
        find_label_column(table("t", {"target": [0], "x": [0]}, class_names={"x": ("a",)})) == "x"
    )
    data = table("t.csv", {"text": ["a"], "topic": ["b"]})
    assert find_label_column(data, "topic") == "topic"
    with pytest.raises(
        ValueError, match="no column 'topics'; its columns are text, topic .did you"
    ):
        find_label_column(data, "topics")
    with pytest.raises(ValueError, match="no label column found among 'text', 'topic'"):
        find_label_column(data)


def test_holdout_is_stratified_and_keeps_every_class_in_training():
    ids = np.repeat(np.arange(5), [100, 40, 7, 2, 1])
    kept, held = holdout(ids, 0.1, seed=0)
    assert sorted([*kept, *held]) == list(range(len(ids)))
    assert np.bincount(ids[held], minlength=5).tolist() == [10, 4, 1, 0, 0]
    assert set(ids[kept]) == set(range(5))
    np.testing.assert_array_equal(holdout(ids, 0.1, seed=0)[1], held)
    assert not np.array_equal(holdout(ids, 0.1, seed=1)[1], held)
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        holdout(ids, 1.5, seed=0)
    with pytest.raises(ValueError, match="every class has a single example"):
        holdout(np.arange(3), 0.5, seed=0)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    "sizes", [[3] * 500, [2, 2], [1, 2], [1] * 50 + [1000], [100, 40, 7, 2, 1], [2] * 90 + [9000]]
)
def test_the_held_out_share_is_the_asked_one_over_all_and_of_each_class(sizes, fraction):
    sizes = np.array(sizes)
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    kept, held = holdout(ids, fraction, seed=0)
    counts = np.bincount(ids[held], minlength=len(sizes))
    assert len(held) == min(max(1, round(fraction * len(ids))), (sizes - 1).sum())
    assert (counts < sizes).all() and len(np.unique(ids[kept])) == len(sizes)
    # Where no class is too small for its part, each part is right to one example.
    if (fraction * sizes <= sizes - 1).all():
        assert (abs(counts - fraction * sizes) < 1).all()
    # Which of equal classes give one more is chance, not their number.
    if list(sizes) == [3] * 500 and fraction == 0.1:
        assert len(held) == 150 and counts.max() == 1 and counts[:250].sum() < 120


def test_subsets_of_many_classes_take_one_sort_not_one_pass_a_class(monkeypatch):
    ids = np.random.default_rng(0).integers(0, 5000, 20_000)
    passes = []
    original = np.flatnonzero
    monkeypatch.setattr(np, "flatnonzero", lambda x: passes.append(len(x)) or original(x))
    _, held = holdout(ids, 0.1, seed=0)
    few_per_class(np.repeat(np.arange(5000), 2), 1, seed=0)
    assert len(held) == 2000 and sum(passes) < 10 * len(ids)


def test_few_per_class():
    ids = np.repeat(np.arange(3), [50, 5, 9])
    chosen = few_per_class(ids, 4, seed=0)
    assert np.bincount(ids[chosen]).tolist() == [4, 4, 4]
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(few_per_class(ids, 4, seed=0), chosen)
    with pytest.raises(ValueError, match="6 examples per class are wanted, .*smallest class has 5"):
        few_per_class(ids, 6, seed=0)


def test_taking_positions_keeps_the_source_rows():
    labels = read_labels(source(["a", "b", "a", "b"]), "label", classes=("b", "a")).take(
        np.array([3, 0])
    )
    assert labels.rows.tolist() == [3, 0] and labels.ids.tolist() == [1, 0]
    assert len(unlabelled(4)) == 4
