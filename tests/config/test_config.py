"""The config: overrides, durations, pairs of which one is set, and every refusal in one line."""

from pathlib import Path

import pytest

from jaxft import config as config_lib
from jaxft.terminal import config_file
from jaxft.terminal.flags import Flag, parse

BASIC = "from jaxft.config import default_config\n\ndef get_config(arg=None):\n    c = default_config()\n"


@pytest.fixture
def write(tmp_path):
    def write(body: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(BASIC + body + "\n    return c\n")
        return str(tmp_path / name)

    return write


def test_file_and_overrides_meet_in_one_config(write):
    path = write("    c.optim.lr = 1e-3\n    c.optim.lr_mult = [['classifier/.*', 10]]")
    config = config_file.load(path, [("optim.weight_decay", "0"), ("data.text", "a,b")])
    assert config.optim.lr == 1e-3
    assert config.optim.lr_mult == (("classifier/.*", 10),)
    assert config.optim.weight_decay == 0.0 and isinstance(config.optim.weight_decay, float)
    assert config.data.text == ("a", "b")


def test_argument_reaches_get_config(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(BASIC + "    c.train.seed = int(arg or 7)\n    return c\n")
    assert config_file.load(f"{path}:3").train.seed == 3
    assert config_file.load(str(path)).train.seed == 7


@pytest.mark.parametrize(
    ("body", "overrides", "epochs", "steps"),
    [
        ("", [], 3.0, None),
        ("", [("train.steps", "20")], None, 20),
        ("    c.train.steps = 50", [], None, 50),
        ("    c.train.steps = 50", [("train.epochs", "2")], 2.0, None),
        ("    c.train.epochs = 1.0", [("train.steps", "20")], None, 20),
    ],
)
def test_the_length_nearest_to_the_command_line_wins(write, body, overrides, epochs, steps):
    config = config_file.load(write(body), overrides)
    assert (config.train.epochs, config.train.steps) == (epochs, steps)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("100", 100), ("100 steps", 100), (100, 100), ("1 epochs", 40), ("0.5 epoch", 20),
     ("10%", 20), ("0.1", 20), (0.1, 20), ("0", 0), ("10.2%", 21), ("100%", 200)],
)  # fmt: skip
def test_durations(value, expected):
    assert config_lib.duration_steps("f", value, steps_per_epoch=40, total_steps=200) == expected


@pytest.mark.parametrize("value", ["fast", "10 minutes", "1.5", "110%", "", "-3", "1.2.3"])
def test_what_is_not_a_duration_is_refused(value):
    with pytest.raises(ValueError, match="is not a duration"):
        config_lib.duration_steps("optim.warmup", value, steps_per_epoch=40, total_steps=200)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("optim.lrr", "1")], r"config.optim.lrr does not exist \(did you mean 'optim.lr'\?\)"),
        ([("optimm.lr", "1")], "did you mean 'optim.lr'"),
        ([("optim", "1")], "is a section"),
        ([("optim.lr", "fast")], "config.optim.lr='fast' is not a number"),
        ([("train.batch_size", "3.5")], "is not a whole number"),
        ([("train.batch_size", "0")], "must be at least 1"),
        ([("model.remat", "maybe")], "is not true or false"),
        ([("optim.schedule", "linar")], r"is not one of linear, cosine, constant \(did you mean 'linear'"),
        ([("train.steps", "5"), ("train.epochs", "2")], "both set"),
        ([("train.epochs", "none")], "neither config.train.epochs nor config.train.steps"),
        ([("optim.lr", "none")], "is not a number"),
        ([("optim.lr_mult", "(('a',),)")], "is not a .pattern, factor. pair"),
        ([("optim.lr_mult", "(('a'")], "is not a list"),
        ([("optim.warmup", "soon")], "is not a duration"),
        ([("optim.lr", "nan")], "must be between"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(write, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        config_file.load(write(""), overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    c.optim.lrate = 1", "mine.py:5: .*lrate"),
        ("    c.train.batch_size = 'many'", "is not a whole number"),
        ("    c.optim.lr = 1 / 0", "mine.py:5: division by zero"),
        ("    c.train.epochs = 2.0\n    c.train.steps = 3", "both set"),
    ],
)
def test_a_mistake_in_the_file_names_its_place(write, body, message):
    with pytest.raises(ValueError, match=message) as error:
        config_file.load(write(body))
    assert "\n" not in str(error.value)


def test_missing_file_names_the_nearest(write, tmp_path):
    write("")
    with pytest.raises(ValueError, match="did you mean 'mine.py'"):
        config_file.load(str(tmp_path / "mime.py"))


def test_json_round_trip(write):
    config = config_file.load(write("    c.optim.lr_mult = (('a', 2.0),)"))
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="does not know: optim.zeal"):
        config_lib.from_json({"optim": {"zeal": 1}})


def test_flags_take_fields_in_any_form_and_order(write):
    path = write("")
    argv = ["train", "--config.optim.lr=0.5", "--noconfig.data.pack", "--workdir", "w",
            "--config.train.seed", "4", f"--config={path}", "--config.model.remat"]  # fmt: skip
    values, config = parse(argv, [Flag("workdir", "where", required=True)], with_config=True)
    assert values.workdir == "w"
    assert (config.optim.lr, config.train.seed) == (0.5, 4)
    assert config.model.remat is True and config.data.pack is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--wrkdir=a"], "wrkdir"),
        (["x"], "--workdir is missing"),
        (["x", "--workdir=a", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_wrong_flags_are_one_line(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(argv, [Flag("workdir", "where", required=True)])
    assert "\n" not in str(error.value)


def test_every_shipped_config_loads():
    for path in sorted(Path("configs").glob("*.py")):
        assert config_file.load(str(path)).task, path
