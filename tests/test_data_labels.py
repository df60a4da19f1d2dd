"""Label names, unknown labels, subsets and stratified splits."""

import numpy as np
import pytest

from jaxft.data.files import table
from jaxft.data.labels import few_per_class, find_label_column, holdout, read_labels, unlabelled


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
    with pytest.raises(ValueError, match="a.csv, row 2: the label 'zz' is unknown.*z, a; did you"):
        read_labels(source(["a", "zz"]), "label", names=known)


@pytest.mark.parametrize("missing", [None, "", "  ", float("nan")])
def test_a_missing_label_is_named(missing):
    with pytest.raises(ValueError, match="a.csv, row 2: column 'label' has no label"):
        read_labels(source(["a", missing]), "label")


def test_the_unlabelled_rows_of_a_test_split_are_named():
    with pytest.raises(ValueError, match=r"row 1: column 'label' has no label \(-1\)"):
        read_labels(source([-1, 0], class_names=("a", "b")), "label")


def test_what_is_no_class_label_is_refused():
    with pytest.raises(ValueError, match=r"holds one label only \(a\)"):
        read_labels(source(["a", "a"]), "label")
    with pytest.raises(ValueError, match="100 different values in 100 rows .*not class labels"):
        read_labels(source([f"id {i}" for i in range(100)]), "label")


def test_a_subset_of_classes():
    data = source([str(i % 10) for i in range(30)])
    labels = read_labels(data, "label", classes=("7", "5"))
    assert labels.names == ("5", "7") and labels.rows.tolist() == [5, 7, 15, 17, 25, 27]
    assert labels.ids.tolist() == [0, 1] * 3
    evaluation = read_labels(data, "label", names=labels.names, classes=("7", "5"))
    np.testing.assert_array_equal(evaluation.ids, labels.ids)
    with pytest.raises(ValueError, match="no class '55'; its classes are 0, 1.*did you mean '5'"):
        read_labels(data, "label", classes=("55", "7"))


def test_label_columns_are_found_by_name():
    assert find_label_column(table("t", {"text": ["a"], "Label": ["b"]})) == "Label"
    assert (
        find_label_column(table("t", {"target": [0], "x": [0]}, class_names={"x": ("a",)})) == "x"
    )
    data = table("t.csv", {"text": ["a"], "topic": ["b"]})
    assert find_label_column(data, "topic") == "topic"
    with pytest.raises(
        ValueError, match="no column 'topics'; its columns are text, topic; did you"
    ):
        find_label_column(data, "topics")
    with pytest.raises(ValueError, match="no label column found among 'text', 'topic'"):
        find_label_column(data)


def test_holdout_is_stratified_and_keeps_every_class_on_both_sides():
    ids = np.repeat(np.arange(5), [100, 40, 7, 2, 1])
    kept, held = holdout(ids, 0.1, seed=0)
    assert sorted([*kept, *held]) == list(range(len(ids)))
    assert np.bincount(ids[held], minlength=5).tolist() == [10, 4, 1, 1, 0]
    assert set(ids[kept]) == set(range(5))
    np.testing.assert_array_equal(holdout(ids, 0.1, seed=0)[1], held)
    assert not np.array_equal(holdout(ids, 0.1, seed=1)[1], held)
    kept, held = holdout(ids, 0.95, seed=0)
    assert (np.bincount(ids[kept], minlength=5) > 0).all()
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        holdout(ids, 1.5, seed=0)
    with pytest.raises(ValueError, match="every class has a single example"):
        holdout(np.arange(3), 0.5, seed=0)


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
    assert len(unlabelled(4, ("a", "b"))) == 4
