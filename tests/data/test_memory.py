"""Data in memory: the same rows whatever holds them, and a run on it that is the run on the file."""

import numpy as np
import pyarrow
import pytest
from PIL import Image

from jaxft import evaluate, train
from jaxft.data.memory import from_memory
from jaxft.data.sources import open_source
from jaxft.terminal.errors import run_command
from tests.worlds import ROOT, arguments, assert_same_weights

ROWS = [{"text": "a", "label": 1}, {"text": "ü", "label": 0}, {"text": None, "label": 1}]
COLUMNS = {key: [row[key] for row in ROWS] for key in ("text", "label")}


def frame(columns):
    return pytest.importorskip("pandas").DataFrame(columns)


def dataset(columns):
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


MAKERS = {
    "rows": lambda c: ROWS,
    "columns": lambda c: c,
    "arrays": lambda c: {"text": tuple(c["text"]), "label": np.array(c["label"])},
    "pandas": frame,
    "pyarrow": pyarrow.table,
    "datasets": dataset,
    "a source": lambda c: from_memory("data", c),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_rows_are_the_same_whatever_holds_them(kind):
    source = from_memory("data", MAKERS[kind](COLUMNS))
    assert source.columns == ("text", "label") and len(source) == 3
    assert [source[row] for row in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]]
    assert source.where(1) == "data, row 2" and type(source[0]["label"]) is int


def test_rows_may_lack_keys_and_images_stay_arrays():
    source = from_memory("data", [{"text": "a"}, {"label": 1}])
    assert source[0] == {"text": "a", "label": None}
    images = np.zeros((3, 2, 2), np.uint8)
    assert from_memory("data", {"image": images})[1]["image"].shape == (2, 2)
    pictures = [Image.new("L", (2, 2)) for _ in range(2)]
    assert (
        from_memory("data", frame({"image": pictures, "label": ["a", "b"]}))[1]["image"]
        is pictures[1]
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("train.csv", "data is a str; give a list of dicts"),
        (["a", "b"], "data is a list with a str \\('a'\\); give a list of dicts"),
        ([], "data is nothing; give"),
        (7, "data is a int; give"),
        ({"text": ["a"], "label": [1, 2]}, "different lengths: 'text' 1, 'label' 2"),
        ({"text": []}, "data: there are no rows"),
        ({"text": "abc"}, "column 'text' is a str, not a list of values"),
        ({0: ["a"]}, "the name 0 of a column is no text"),
        (pyarrow.table({"text": []}), "data: the file has no rows"),
    ],
)
def test_what_is_no_data_is_one_line(data, said):
    with pytest.raises(ValueError, match=said) as error:
        from_memory("data", data)
    assert "\n" not in str(error.value)


def test_a_run_on_data_in_memory_is_the_run_on_the_file(world, tmp_path, capsys):
    argv = arguments(world, tmp_path / "file", f"--config.data.eval={world}/test.csv")
    fields = dict(word.removeprefix("--config.").split("=", 1) for word in argv[3:])
    fields = {
        name: value for name, value in fields.items() if name not in ("data.train", "data.eval")
    }
    fields |= {
        "train.batch_size": 16,
        "train.steps": 4,
        "checkpoint.every_steps": 4,
        "optim.lr": 3e-3,
    }
    fields |= {"train.log_every": 2, "data.max_shapes": 1, "log.tensorboard": False}
    assert train.main([*argv, "--config.train.steps=4"]) == 0

    def run(overrides, data):
        config = ROOT / "configs" / "text_classification.py"
        return train(config, tmp_path / "memory", fields | overrides, data=data)

    data = {"train": rows_of(world / "train.csv"), "validation": rows_of(world / "test.csv")}
    result = run({}, data)
    assert_same_weights(result.directory, tmp_path / "file")
    assert result.eval == run({}, data).eval  # finished: only read
    assert evaluate(result.directory, data["validation"])["loss"] == pytest.approx(
        result.eval["loss"]
    )
    with pytest.raises(ValueError, match="memory:eval: this data was handed over in memory"):
        evaluate(result.directory)
    with pytest.raises(ValueError, match="data= and config.data.train='a.csv' are both given"):
        run({"data.train": "a.csv"}, data)
    workdir = f"--workdir={tmp_path}/other"
    assert run_command(train.main, [*argv, workdir, "--config.data.train=memory:train"]) == 2
    assert "memory:train: this data was handed over in memory" in capsys.readouterr().err


def rows_of(path):
    source = open_source(str(path))
    return [source[row] for row in range(len(source))]
