"""Sets of labels: how they are written, their names, and shares that have something of each."""

import numpy as np
import pytest

from jaxft.data import facts
from jaxft.data.files import table
from jaxft.data.label_names import joined
from jaxft.data.label_sets import find_set_column, read_label_sets
from jaxft.data.sources import open_source
from jaxft.data.subsets import holdout

SETS = [("joy",), ("anger", "joy"), (), ("love",)]


def source(values, **columns):
    return table("a.csv", {"text": ["t"] * len(values), **columns, "labels": values})


def sets_of(labels):
    return [
        tuple(labels.names[i] for i in labels.ids[a:b])
        for a, b in zip(labels.bounds[:-1], labels.bounds[1:], strict=True)
    ]


@pytest.mark.parametrize(
    "values",
    [
        [list(own) for own in SETS],
        [own + own for own in SETS],  # each label twice
        [np.array(own, object) for own in SETS],
        ["|".join(own) for own in SETS],
        [" ; ".join(own) for own in SETS],
        [",".join((*own, "")) for own in SETS],
        [str(list(own)) for own in SETS],
        ['["joy"]', '["anger", "joy"]', "[]", '["love"]'],
        ["[joy]", "[anger, joy]", "[]", "[love]"],
        ["joy", "anger|joy", "", "love "],
    ],
    ids=str,
)
def test_sets_are_read_however_they_are_written(values):
    labels = read_label_sets(source(values), "labels")
    assert labels.names == ("anger", "joy", "love") and sets_of(labels) == SETS
    again = read_label_sets(source(["love", "joy|love"]), "labels", names=labels.names)
    assert sets_of(again) == [("love",), ("joy", "love")]


@pytest.mark.parametrize(
    "values",
    [
        [[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]],
        [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        [[False, True, False], [True, True, False], [False] * 3, [False, False, True]],
        ["[0 1 0]", "[1 1 0]", "[0 0 0]", "[0 0 1]"],
        ["0,1,0", "1,1,0", "0,0,0", "0,0,1"],
    ],
    ids=str,
)
def test_lists_of_zeros_and_ones_say_which_apply(values):
    labels = read_label_sets(source(values), "labels")
    assert labels.names == ("0", "1", "2") and sets_of(labels) == [("1",), ("0", "1"), (), ("2",)]
    named = read_label_sets(source(values), "labels", classes=("anger", "joy", "love"))
    assert sets_of(named) == SETS
    with pytest.raises(ValueError, match="lists of 3 numbers 0 and 1.*data.classes names 2"):
        read_label_sets(source(values), "labels", classes=("anger", "joy"))


def test_class_numbers_stand_for_names_and_minus_one_for_none():
    data = source([[1, -1], [0, 1], [-1, -1], [2]])
    named = type(data)(**{**vars(data), "item_names": {"labels": ("anger", "joy", "love", "fear")}})
    labels = read_label_sets(named, find_set_column(named))
    assert labels.names == ("anger", "joy", "love", "fear") and sets_of(labels) == SETS
    wrong = type(data)(**{**vars(named), "item_names": {"labels": ("anger", "joy")}})
    with pytest.raises(ValueError, match="row 4: .* 2 is none of the 2 class numbers"):
        read_label_sets(wrong, "labels")
    assert read_label_sets(source([[1.0, 2.0], [1]]), "labels").names == ("1", "2")
    assert read_label_sets(source(["1.0|2.0", "1"]), "labels").names == ("1", "2")


def test_columns_of_zeros_and_ones_are_labels():
    data = source(
        ["x"] * 3, anger=[0, 1, 0], joy=["1", "true", "0.0"], love=[False, False, 0.0], id=[7, 8, 9]
    )
    column = find_set_column(data, "anger, joy,love")
    labels = read_label_sets(data, column)
    assert labels.names == ("anger", "joy", "love")
    assert sets_of(labels) == [("joy",), ("anger", "joy"), ()]
    with pytest.raises(ValueError, match="no column 'jo'.*did you mean 'joy'"):
        find_set_column(data, "anger,jo")
    with pytest.raises(ValueError, match="names 'joy' twice"):
        find_set_column(data, "joy,joy")
    with pytest.raises(ValueError, match="row 1: column 'id' holds 7, neither 0 nor 1"):
        read_label_sets(data, "anger,id")
    unnamed = table("b.csv", {"text": ["t"], "anger": [0], "joy": ["1"]})
    with pytest.raises(ValueError, match="no label column.*data.label='anger,joy'"):
        find_set_column(unnamed)
    hidden = table("c.csv", {"text": ["t"] * 3, "anger": [0, -1, 1], "joy": [1, -1, 1]})
    with pytest.raises(ValueError, match=r"row 2: column 'anger,joy' has no labels .-1.; 1 row"):
        read_label_sets(hidden, "anger,joy")


def test_a_separator_that_is_in_a_name_separates_nothing():
    names = ("Paris, France", "Rome; Italy")
    cells = ["Paris, France|Rome; Italy", "Rome; Italy", ""]
    labels = read_label_sets(source(cells), "labels")
    assert labels.names == names
    without = source(["Rome; Italy", "Paris, France"])
    assert sets_of(read_label_sets(without, "labels", names=names)) == [(names[1],), (names[0],)]
    assert joined(("a", "b"), ("a", "b")) == "a|b" and joined(("a",), ("a", "b|c", "d")) == "a"
    assert joined(("a|b", "c;d"), ("a|b", "c;d", "e,f")) == '["a|b", "c;d"]'


def test_order_subset_and_selection():
    labels = read_label_sets(source(["a|b", "c", "", "b|c"]), "labels")
    assert sets_of(labels.numbered_as(("c", "b", "a"))) == [("b", "a"), ("c",), (), ("c", "b")]
    turned = labels.take(np.array([3, 0]))
    assert turned.rows.tolist() == [3, 0] and sets_of(turned) == [("b", "c"), ("a", "b")]
    some = read_label_sets(source(["a|b", "c", "", "b|c"]), "labels", classes=("c", "a"))
    assert some.names == ("a", "c") and sets_of(some) == [("a",), ("c",), (), ("c",)]
    batch = labels.fill(np.array([[1, -1], [0, 2]]), {})
    assert batch["labels"].tolist() == [[[0, 0, 1], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]]]
    assert batch["labels"].dtype == np.float32 and batch["weight"].tolist() == [[1, 0], [1, 1]]
    assert batch["index"].tolist() == [[1, -1], [0, 2]]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_set_is_named_or_dropped_and_an_empty_one_is_a_set(missing):
    data = source([["a", "b"], missing, [], missing])
    with pytest.raises(ValueError, match=r"row 2: .* no labels .*2 rows.*rows 2, 4; .*empty list"):
        read_label_sets(data, "labels")
    labels = read_label_sets(data, "labels", drop_missing=True)
    assert labels.rows.tolist() == [0, 2] and labels.dropped.tolist() == [1, 3]


NO_SETS = {
    "single labels": (["a", "b", "a"], "one label in every row .'a'.*text_classification.*separated"),
    "single lists": ([["a"], ["b"]], "one label in every row"),
    "one label": (["a", "", "a"], r"holds one label only .a.*two classes.*text_classification"),
    "nothing": (["", "", ""], "no label in any row"),
    "probabilities": ([[0.5, 0.2], [0.1, 1.0]], "row 1: .*not whole .0.5, 0.2, 0.1.*text_regression"),
    "free text": ([f"it is {i}, or so {i}" for i in range(9)], "18 different labels in 9 rows"),
    "objects": ([{"a": 1}, {"b": 0}], "row 1: .*object is no list"),
    "lists of lists": ([["a", ["b"]], ["a"]], r"row 1: .*\['b'\] is no label"),
    "half a character": (["a|b", "a|\ud800"], "row 2: .*not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_SETS)
def test_what_is_no_set_of_labels_is_one_line(kind):
    values, message = NO_SETS[kind]
    with pytest.raises(ValueError, match=message) as error:
        read_label_sets(source(values), "labels")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_unknown_labels_are_named_at_once():
    with pytest.raises(ValueError, match=r"row 2: .*'jo' is unknown .with 'x': 2 rows.*mean 'joy'"):
        read_label_sets(source(["joy", "joy|jo", "x|jo"]), "labels", names=("anger", "joy"))


def test_a_held_out_share_has_its_part_of_rare_labels():
    rng = np.random.default_rng(0)
    rates = np.array([0.3, 0.1, 0.05, 0.02, 0.01])
    truth = rng.random((2000, 5)) < rates
    values = ["|".join("abcde"[i] for i in np.flatnonzero(row)) for row in truth]
    labels = read_label_sets(source(values), "labels")
    kept, held = holdout(labels.strata(), 0.1, 0)
    shares = labels.take(held).counts() / labels.counts()
    assert len(kept) + len(held) == 2000 and np.abs(shares - 0.1).max() < 0.03
    chance = [
        labels.take(rng.permutation(2000)[:200]).counts() / labels.counts() for _ in range(20)
    ]
    assert np.abs(shares - 0.1).mean() < 0.5 * np.abs(np.array(chance) - 0.1).mean()
    assert labels.take(np.arange(3)).said_of_strata().startswith("of each label about alike; ")


def test_what_was_found_in_a_large_file_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "LEAST", 1)
    path = tmp_path / "a.csv"
    path.write_text("text,labels\nx,a|b\ny,\nz,b\n")

    def read():
        return read_label_sets(open_source(str(path), cache=str(tmp_path / "kept")), "labels")

    first = read()
    monkeypatch.setattr("jaxft.data.label_cells._read", None)
    again = read()
    assert sets_of(first) == sets_of(again) == [("a", "b"), (), ("b",)]
