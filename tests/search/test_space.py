"""Spaces: what is refused before compute is spent, and which configs are left."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxft.config import default_config, override
from jaxft.config_check import validate
from jaxft.search.sweeps.domains import Choice, Float, Integer, When
from jaxft.search.sweeps.space import make_space
from jaxft.search.sweeps.space_file import load
from tests.worlds import ROOT

CONFIG = default_config()
OPTIMIZER = {"optim.optimizer": Choice("adamw", "sgd", "lion")}
NESTED = {
    **OPTIMIZER,
    "optim": {
        "lr": When(
            "optim.optimizer",
            {"adamw": Float(1e-6, 1e-3, log=True), "sgd": Float(1e-3, 1e-1, log=True)},
        ),
        "b1": When("optim.optimizer", {"sgd": Float(0.8, 0.99), "adamw": 0.85}),
    },
    "train.epochs": 2.0,
    "train.batch_size": Integer(8, 32, step=8),
    "data.text": Choice(("a",), ("a", "b")),
}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optim.lrr": Float(0, 1)}, "config.optim.lrr does not exist (did you mean 'optim.lr'?)"),
        ({"optim.lr": Float(0, 1, log=True)}, "has log, for which low must be more than 0"),
        ({"optim.lr": Float(1, 20)}, "config.optim.lr=20 must be between 0 and 10"),
        ({"optim.lr": Float(1e-3, 1e-4)}, "low is not below high"),
        ({"optim.lr": Float(1e-3, float("nan"))}, "high=nan is not a number"),
        ({"optim.lr": Float(0, 1, step=-1)}, "has a step, which is more than 0"),
        ({"train.batch_size": Float(8, 64)}, "the field is a whole number; use Integer"),
        ({"train.batch_size": Integer(8, 64.0)}, "64.0 is not a whole number"),
        ({"optim.optimizer": Float(0, 1)}, "the field is one of adamw, sgd, lion"),
        ({"optim.optimizer": Choice("adamw", "sdg")}, "did you mean 'sgd'?"),
        ({"optim.optimizer": Choice("sgd", "sgd")}, "has 'sgd' twice"),
        ({"optim.optimizer": Choice()}, "has no values"),
        ({"optim.lr": Choice(Float(0, 1))}, "a value is one of the field's own"),
        ({"optim.lr": 1e-3}, "nothing is searched"),
        ({"optim.warmup": Float(0.0, 2.5)}, "is not a duration"),
        ({"eval.metric": Choice("loss", "accuracy")}, "says what is measured"),
        ([1], "is not a dict of fields"),
        (
            {"optim.b1": When("optim.optimizer", {"sgd": Float(0.8, 0.9)})},
            "config.optim.optimizer, on which config.optim.b1 depends, is not in the space",
        ),
        (
            {**OPTIMIZER, "optim.b1": When("optim.optimizer", {"loin": Float(0.8, 0.9)})},
            "which it never is: it is Choice('adamw', 'sgd', 'lion') (did you mean 'lion'?)",
        ),
        (
            {
                **OPTIMIZER,
                "optim.b2": When("optim.optimizer", {"sgd": Choice(0.9, 0.99)}),
                "optim.b1": When(
                    "optim.optimizer", {"lion": When("optim.b2", {0.9: Float(0.1, 0.2)})}
                ),
            },
            "config.optim.optimizer='lion' and config.optim.b2=0.9, which can never be together",
        ),
        (
            {"optim.b1": Float(0, 0.9), "optim.b2": When("optim.b1", {0.9: 0.99})},
            "only a Choice or an Integer has values that can be listed",
        ),
        (
            {
                "optim.lr": Float(0, 1),
                "optim.b1": When("optim.b2", {0.9: 0.8}),
                "optim.b2": When("optim.b1", {0.8: 0.9}),
            },
            "depend on each other in a circle",
        ),
        (
            {"optim.schedule_free": Choice(False, True)},
            "a trial with optim.schedule_free=True cannot be: config.optim.schedule_free=True needs",
        ),
        ({"optim.b1": When("optim.optimizer", {})}, "When has cases"),
        ({"train.epochs": 1.0, "train.steps": Integer(1, 5)}, "a run has one length"),
    ],
)
def test_what_cannot_be_is_one_line(given, words):
    with pytest.raises(ValueError) as caught:
        make_space(given, CONFIG)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_field_is_there_only_where_its_condition_holds():
    space = make_space(NESTED, CONFIG)
    for optimizer, b1 in (("adamw", 0.85), ("sgd", 0.8), ("lion", None)):
        names = []

        def ask(one, optimizer=optimizer, names=names):
            names.append(one.name)
            return optimizer if one.field == "optim.optimizer" else one.what.ends()[0]

        changes = space.changes(ask)
        assert changes.get("optim.b1") == b1 and changes["train.epochs"] == 2.0
        assert ("optim.lr" in changes) == (optimizer != "lion")
        assert len(names) == {"adamw": 4, "sgd": 5, "lion": 3}[optimizer]
        validate(override(CONFIG, changes))


def test_the_settings_are_settled_whatever_their_order():
    backwards = dict(reversed(NESTED.items()))
    names = [one.name for one in make_space(backwards, CONFIG).settings]
    assert sorted(names) == sorted(one.name for one in make_space(NESTED, CONFIG).settings)
    assert names.index("optim.optimizer") < names.index("optim.lr (optim.optimizer=sgd)")


def test_a_grid_has_each_point_once_and_none_that_is_not_searched():
    space = make_space(
        {
            **OPTIMIZER,
            "optim.lr": Float(1e-4, 1e-2, log=True, points=3),
            "optim.b1": When("optim.optimizer", {"sgd": Choice(0.8, 0.9)}),
        },
        CONFIG,
    )
    points = space.grid()
    assert len(points) == (1 + 2 + 1) * 3 == len({tuple(point.items()) for point in points})
    assert sorted({point["optim.lr"] for point in points}) == pytest.approx([1e-4, 1e-3, 1e-2])
    with pytest.raises(ValueError, match="say of how many a grid is made"):
        make_space({"optim.lr": Float(0.0, 1.0)}, CONFIG).grid()


def test_every_end_and_every_value_is_tried_alone():
    space = make_space(NESTED, CONFIG)
    seen = {(field, value) for changes in space.single() for field, value in changes.items()}
    for one in space.settings:
        for value in one.what.ends() if one.is_searched else (one.what,):
            assert (one.field, value) in seen, one.name


def test_whole_numbers_of_a_grid_keep_their_step():
    assert Integer(8, 31, step=8).grid() == (8, 16, 24) and Integer(8, 31, step=8).ends() == (8, 24)
    assert Integer(1, 64, log=True, points=4).grid() == (1, 4, 16, 64)
    assert Float(0, 1, step=0.25).grid() == (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize("path", sorted(Path(ROOT, "configs", "sweeps").glob("*.py")))
def test_shipped_spaces_can_be_read(path):
    assert len(load(str(path), CONFIG).searched) > 1
    assert load(f"{path}:rates", CONFIG).fields == ("optim.lr",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "it has no function get_space()"),
        ("def get_space(): return {}[1]", "mine.py:1"),
        ("def get_space(): raise SystemExit", "it ends the program"),
        ("def get_space(): return {'optim.lr': 1.0}", "nothing is searched"),
    ],
)
def test_mistakes_in_a_file_are_one_line_with_its_name(tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match="space file") as caught:
        load(str(path), CONFIG)
    assert words in str(caught.value)
    with pytest.raises(ValueError, match="did you mean 'mine.py'"):
        load(str(tmp_path / "mien.py"), CONFIG)
