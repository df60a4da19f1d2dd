"""jaxft.predict: no column lost or replaced, nothing overwritten, and all of it known before any work."""

from __future__ import annotations

import csv
import datetime
import decimal
import errno
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxft import predict
from jaxft.experiment import output as output_lib
from jaxft.experiment.inference import Inference
from jaxft.terminal.errors import run_command

SUFFIXES = (".csv", ".jsonl", ".parquet")
ADDED = ["predicted", "probability_bad", "probability_good", "probability_odd"]


def arguments(trained: Path, given: Path, output: Path, *more: str, run: str = "run") -> list[str]:
    flags = [f"--run={trained / run}", f"--input={given}", f"--output={output}"]
    return ["predict", *flags, *more]


def table(path: Path) -> list[dict]:
    """Rows of an output, read without jaxft."""
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file]


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(argv: list[str], capsys) -> str:
    """The one line that a command ends with."""
    assert run_command(predict.main, argv) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and "\n" not in error, error
    return error


@pytest.fixture
def no_compute(monkeypatch):
    """The test fails where a model runs."""

    def never(*_):
        pytest.fail("the model ran before the mistake was found")

    monkeypatch.setattr(Inference, "predict", never)


# Columns


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_column_that_begins_empty_or_mixes_types_is_kept_whole(trained, tmp_path, suffix):
    rows = [
        {"text": "a fine day", "note": None, "size": 1, "mixed": 1, "none": None},
        {"text": "cold", "note": "x, \"y\"\n", "size": 2.5, "mixed": "two", "none": None},
        {"text": "rare", "size": None, "mixed": True, "none": None},
    ]  # fmt: skip
    given, output = jsonl(tmp_path / "in.jsonl", *rows), tmp_path / f"out{suffix}"
    assert predict.main(arguments(trained, given, output)) == 0
    found = table(output)
    assert list(found[0]) == ["text", "note", "size", "mixed", "none", *ADDED]
    empty = "" if suffix == ".csv" else None
    assert [row["text"] for row in found] == ["a fine day", "cold", "rare"]
    assert [row["note"] for row in found] == [empty, 'x, "y"\n', empty]
    assert [float(row["size"]) for row in found[:2]] == [1, 2.5] and found[2]["size"] == empty
    assert [str(row["mixed"]) for row in found] == ["1", "two", "True"]
    assert [row["none"] for row in found] == [empty] * 3


@pytest.mark.parametrize("taken", ["predicted", "probability_odd"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_column_of_an_added_name_is_neither_lost_nor_replaced(
    trained, tmp_path, capsys, monkeypatch, taken, suffix
):
    given = jsonl(tmp_path / "in.jsonl", {"text": "fine", taken: "mine"}, {"text": "cold"})
    output = tmp_path / f"out{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(Inference, "predict", lambda *_: pytest.fail("computed first"))
        line = refused(arguments(trained, given, output), capsys)
    assert f"has a column '{taken}' already" in line and "--prefix" in line and not output.exists()
    assert predict.main(arguments(trained, given, output, "--prefix=new_")) == 0
    found = table(output)[0]
    assert found[taken] == "mine" and found["new_predicted"] in ("good", "bad", "odd")
    # The output of one model can be the input of another, and this is still an earlier output.
    assert predict.main(arguments(trained, given, output, "--prefix=new_")) == 0


def test_lists_stay_in_json_and_are_said_to_be_left_out_elsewhere(trained, tmp_path, capsys):
    when = datetime.datetime(2024, 2, 3, 4, 5)
    columns = {
        "text": pa.array(["fine day", "cold", "odd"]),
        "tags": pa.array([None, ["a"], ["b", None]]),
        "raw": pa.array([None, b"\xff", b""]),
        "when": pa.array([None, when, when]),
        "day": pa.array([when.date(), None, None]),
        "price": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.00")]),
        "ratio": pa.array([float("nan"), float("inf"), 0.5]),
    }
    given = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pa.table(columns), given)
    for suffix in SUFFIXES:
        output = tmp_path / f"out{suffix}"
        assert predict.main(arguments(trained, given, output)) == 0
        said, found = capsys.readouterr().err, table(output)
        assert "'raw'" in said and ("'tags'" in said) == (suffix != ".jsonl")
        assert "raw" not in found[0] and ("tags" in found[0]) == (suffix == ".jsonl")
        assert [row["when"] or None for row in found] == [None, *["2024-02-03T04:05:00"] * 2]
        assert found[0]["day"] == "2024-02-03"
        assert [row["price"] or None for row in found] == ["1.50", None, "-2.00"]
        if suffix == ".parquet":
            assert np.isnan(found[0]["ratio"]) and found[1]["ratio"] == np.inf
        if suffix == ".jsonl":  # which has no NaN: another program could not read the file
            assert [row["ratio"] for row in found] == [None, None, 0.5]
            assert [row["tags"] for row in found] == [None, ["a"], ["b", None]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_half_of_a_surrogate_pair_does_not_end_the_writing(trained, tmp_path, suffix):
    given = tmp_path / "in.jsonl"
    given.write_text('{"text": "fine", "note": "\\ud800"}\n')
    assert predict.main(arguments(trained, given, tmp_path / f"out{suffix}")) == 0
    written = {".jsonl": "\ud800"}.get(suffix, "\\ud800")
    assert table(tmp_path / f"out{suffix}")[0]["note"] == written


def test_class_numbers_are_written_as_names(trained, tmp_path):
    feature = {"_type": "ClassLabel", "names": ["down", "up"]}
    metadata = json.dumps({"info": {"features": {"trend": feature}}})
    data = pa.table({"text": ["fine", "cold", "rare"], "trend": [1, 0, -1]})
    given, output = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    pyarrow.parquet.write_table(
        data.replace_schema_metadata({"huggingface": metadata}), given
    )  # fmt: skip
    assert predict.main(arguments(trained, given, output)) == 0
    assert [row["trend"] for row in table(output)] == ["up", "down", None]


def test_formulas_are_guarded_where_it_is_asked_for(trained, tmp_path, capsys):
    cells = ["=1+1", "+2", "-3", "@SUM(A1)", "\tx", "\rx", "fine", "a=b"]
    given = jsonl(tmp_path / "in.jsonl", *({"text": "fine", "=note": cell} for cell in cells))
    plain, safe = tmp_path / "plain.csv", tmp_path / "safe.csv"
    assert predict.main(arguments(trained, given, plain)) == 0
    assert [row["=note"] for row in table(plain)] == cells
    assert predict.main(arguments(trained, given, safe, "--safe_csv")) == 0
    expected = [f"'{cell}" for cell in cells[:6]] + cells[6:]
    assert [row["'=note"] for row in table(safe)] == expected
    assert float(table(safe)[0]["probability_bad"]) == float(table(plain)[0]["probability_bad"])
    argv = arguments(trained, given, tmp_path / "o.jsonl", "--safe_csv")
    assert "--safe_csv is for .csv" in refused(argv, capsys)


def test_an_image_folder_keeps_its_class_names(trained, tmp_path):
    output = tmp_path / "out.jsonl"
    argv = arguments(trained, trained / "images", output, run="pictures")
    assert predict.main(argv) == 0
    found = table(output)
    assert [row["label"] for row in found] == ["left"] * 8 + ["upper"] * 8
    assert all(Path(row["image"]).parent.name == row["label"] for row in found)


@pytest.mark.parametrize("place", ["flat", "flat/0.png", "nest"])
def test_images_without_classes_are_labelled_and_get_no_label_column(trained, tmp_path, place):
    shutil.copytree(trained / "images" / "left", tmp_path / "flat")
    shutil.copytree(trained / "images" / "left", tmp_path / "nest" / "inner")
    output = tmp_path / "out.jsonl"
    assert predict.main(arguments(trained, tmp_path / place, output, run="pictures")) == 0
    found = table(output)
    assert list(found[0]) == ["image", "predicted", "probability_left", "probability_upper"]
    assert len(found) == (1 if place.endswith(".png") else 8)
    assert all(Path(row["image"]).is_file() for row in found)


def test_every_row_is_looked_at_before_the_model_runs(trained, tmp_path, capsys, no_compute):
    given = jsonl(tmp_path / "in.jsonl", {"text": "fine"}, {"text": None}, {"text": ["cold"]})
    line = refused(arguments(trained, given, tmp_path / "out.csv"), capsys)
    assert "in.jsonl, line 2" in line and "has no text" in line and "2 rows in all" in line
    given = jsonl(tmp_path / "files.jsonl", {"image": str(trained / "none.png")})
    line = refused(arguments(trained, given, tmp_path / "out.csv", run="pictures"), capsys)
    assert "none.png" in line and "not there" in line


# Where it writes


def test_a_missing_input_is_said_before_the_model_is_read(tmp_path):
    flags = [
        f"--run={tmp_path}/none",
        f"--input={tmp_path}/new.csv",
        f"--output={tmp_path}/out.csv",
    ]
    with pytest.raises(ValueError, match="new.csv: no such file"):
        predict.main(["predict", *flags])


def test_an_earlier_output_is_replaced_with_its_rights_and_nothing_beside_it(trained, tmp_path):
    output, precious = tmp_path / "out.csv", tmp_path / "out.csv.tmp"
    precious.write_text("years of work")
    argv = arguments(trained, trained / "test.csv", output)
    assert predict.main(argv) == 0
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(output.stat().st_mode) == 0o666 & ~umask
    output.chmod(0o640)
    link = tmp_path / "link.csv"
    link.symlink_to(output)
    first = output.read_bytes()
    assert predict.main([*argv[:3], f"--output={link}"]) == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o640 and link.is_symlink()
    assert output.read_bytes() == first and precious.read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "out.csv.tmp", "link.csv"}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("T/mine.csv", "is no earlier output of predict"),
        ("T/mine.jsonl", "is no earlier output of predict"),
        ("T/mine.parquet", "is no earlier output of predict"),
        ("T/in.csv", "is the --input"),
        ("T/link.csv", "is the --input"),
        ("R/metrics.jsonl", "would be a file of the run"),
        ("R/predictions/eval.jsonl", "would be a file of the run"),
        ("R/best/new.csv", "would be a file of the run"),
        ("T/folder.csv", "is a directory"),
        ("T/pipe.csv", "no regular file"),
    ],
)
def test_no_file_of_anybody_else_is_overwritten(trained, tmp_path, capsys, no_compute, place, said):
    mine = "text,label,predicted\nfine,good,\n"
    (tmp_path / "mine.csv").write_text(mine)
    (tmp_path / "in.csv").write_text(mine.replace(",predicted", ",other"))
    (tmp_path / "link.csv").symlink_to(tmp_path / "in.csv")
    jsonl(tmp_path / "mine.jsonl", {"text": "fine"})
    pyarrow.parquet.write_table(pa.table({"text": ["fine"]}), tmp_path / "mine.parquet")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    run = shutil.copytree(trained / "run", tmp_path / "R")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    path = run / place[2:] if place.startswith("R/") else tmp_path / place[2:]
    assert said in refused(arguments(trained, tmp_path / "in.csv", path), capsys)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_output_is_open_before_the_model_runs(trained, tmp_path, capsys, monkeypatch):
    seen = []

    def fails(*_):
        seen.extend(path.name for path in tmp_path.iterdir())
        raise ValueError("no luck")

    monkeypatch.setattr(Inference, "predict", fails)
    line = refused(arguments(trained, trained / "test.csv", tmp_path / "out.csv"), capsys)
    assert "no luck" in line and len(seen) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_leaves_what_was_there(trained, tmp_path, capsys, monkeypatch, suffix):
    output = tmp_path / f"out{suffix}"
    assert predict.main(arguments(trained, trained / "test.csv", output)) == 0
    before = output.read_bytes()

    def full(self, data):
        with self._named():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output_lib.Output, "write", full)
    capsys.readouterr()
    assert run_command(predict.main, arguments(trained, trained / "test.csv", output)) == 1
    assert f"{output}: no space left" in capsys.readouterr().err
    assert output.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [output.name]


def test_a_full_disk_is_found_before_the_model_runs(
    trained, tmp_path, tmp_path_factory, capsys, no_compute
):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs root")
    try:
        (tmp_path / "rest").write_bytes(bytes(60 * 1024))
        given = tmp_path_factory.mktemp("given") / "long.jsonl"
        jsonl(given, *({"text": "a fine day"} for _ in range(500)))
        argv = arguments(trained, given, tmp_path / "out.csv")
        assert run_command(predict.main, argv) == 1
        assert "no space left" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["rest"]
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


# Models


@pytest.mark.parametrize(("run", "given"), [("run", "test.csv"), ("pictures", "images")])
def test_an_exported_checkpoint_predicts_as_its_run(trained, tmp_path, run, given):
    assert jax.device_count() == 8, "the run's evaluation batch is smaller than this"
    checkpoint = shutil.copytree(trained / run / "best", tmp_path / "exported")
    outputs = []
    for where in (trained / run, checkpoint):
        outputs.append(tmp_path / f"{len(outputs)}.jsonl")
        flags = [f"--run={where}", f"--input={trained / given}", f"--output={outputs[-1]}"]
        assert predict.main(["predict", *flags]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_single_row_on_many_devices(trained, tmp_path):
    given = jsonl(tmp_path / "in.jsonl", {"text": "the meal was awful"})
    assert predict.main(arguments(trained, given, tmp_path / "out.jsonl")) == 0
    alone = table(tmp_path / "out.jsonl")
    jsonl(given, {"text": "the meal was awful"}, {"text": "a fine day, it was so warm"})
    assert predict.main(arguments(trained, given, tmp_path / "out.jsonl")) == 0
    first, other = table(tmp_path / "out.jsonl")
    assert alone[0]["probability_bad"] == pytest.approx(first["probability_bad"], abs=2e-6)
    assert first["probability_bad"] != other["probability_bad"]


def test_columns_of_other_names_are_named_by_a_flag(trained, tmp_path, capsys):
    given = jsonl(tmp_path / "in.jsonl", {"body": "the meal was awful", "n": 1})
    output = tmp_path / "out.jsonl"
    assert "name the input by --text" in refused(arguments(trained, given, output), capsys)
    line = refused(arguments(trained, given, output, run="run/best"), capsys)
    assert "name it by --text" in line
    line = refused(arguments(trained, given, output, "--text=body,n"), capsys)
    assert "--text names 2 columns (body, n), but the model was trained on 1 (text)" in line
    named, found = jsonl(tmp_path / "named.jsonl", {"text": "the meal was awful", "n": 1}), []
    for path, flags, run in ((named, (), "run"), (given, ("--text=body",), "run"),
                             (given, ("--text=body",), "run/best")):  # fmt: skip
        assert predict.main(arguments(trained, path, output, *flags, run=run)) == 0
        found.append(table(output)[0]["probability_bad"])
    assert found == [found[0]] * 3


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("source.json", {"label names": 3}, "source.json is not what jaxft wrote"),
        ("source.json", {"label names": [1, 2, 3]}, "source.json is not what jaxft wrote"),
        ("source.json", {"label names": ["good", "good", "bad"]}, "is not what jaxft wrote"),
        ("source.json", {"label names": ["good", "bad"]}, "no classifier for 2 labels"),
        ("source.json", {"columns": "text"}, "source.json is not what jaxft wrote"),
        ("source.json", {"columns": [["text"]]}, "source.json is not what jaxft wrote"),
        ("source.json", {"columns": []}, "source.json is not what jaxft wrote"),
        ("config.json", {"task": 3}, "config.task=3 is not text"),
        ("config.json", {"task": "image_classification"}, "is of another task"),
        ("config.json", {"eval": {"batch_size": "many"}}, "eval.batch_size='many' is not"),
        ("config.json", {"model": {"dtype": "int3"}}, "model.dtype='int3' is not one of"),
        ("config.json", {"data": 7}, "does not know: data"),
        ("best/config.json", {"num_hidden_layers": 2}, "best"),
    ],
)
def test_foreign_content_of_a_run_is_one_line(
    trained, tmp_path, capsys, no_compute, file, content, said
):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    whole = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps({**whole, **content}))
    argv = ["predict", f"--run={run}", f"--input={trained}/test.csv", f"--output={tmp_path}/o.csv"]
    assert said in refused(argv, capsys)
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "names two classes alike"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "does not name two or more classes"),
        ({"id2label": ["a", "b", "c"]}, "does not name two or more classes"),
        ({"id2label": {"0": "a", "1": "b"}}, "no classifier for 2 labels"),
        ({"id2label": None}, "no classifier for 2 labels"),
        ({"problem_type": "ranking"}, "is not implemented"),
    ],
)
def test_a_checkpoint_without_a_fitting_classifier_is_one_line(
    trained, tmp_path, capsys, no_compute, change, said
):
    checkpoint = shutil.copytree(trained / "run" / "best", tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **change}))
    flags = [f"--run={checkpoint}", f"--input={trained}/test.csv", f"--output={tmp_path}/o.csv"]
    assert said in refused(["predict", *flags], capsys)


def test_nested_json_is_one_line(trained, tmp_path, capsys):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    (run / "source.json").write_text('{"label names": ' + "[" * 100_000 + "]" * 100_000 + "}")
    argv = ["predict", f"--run={run}", f"--input={trained}/test.csv", f"--output={tmp_path}/o.csv"]
    assert "nested too deeply" in refused(argv, capsys)


def test_images_from_memory_are_left_out_and_said(trained, tmp_path, capsys):
    output = tmp_path / "out.csv"
    argv = arguments(trained, "sklearn:digits:test", output, run="pictures")
    assert predict.main(argv) == 0
    assert "'image'" in capsys.readouterr().err
    assert list(table(output)[0]) == [
        "label",
        *["predicted", "probability_left", "probability_upper"],
    ]
