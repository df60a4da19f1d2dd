"""jaxft.evaluate: any labelled data, any devices, and a metrics file that takes nobody else's place."""

from __future__ import annotations

import json
import shutil

import pytest

from jaxft import evaluate
from jaxft.experiment.inference import Inference
from jaxft.terminal.errors import run_command


def refused(argv: list[str], capsys) -> str:
    """The one line that a command ends with."""
    assert run_command(evaluate.main, ["evaluate", *argv]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and "\n" not in error, error
    return error


def summary(trained, run: str = "run") -> dict:
    return json.loads((trained / run / "summary.json").read_text())


@pytest.fixture
def no_compute(monkeypatch):
    """The test fails where a model runs."""
    monkeypatch.setattr(Inference, "evaluate", lambda *_: pytest.fail("the model ran first"))


def test_batches_smaller_than_the_number_of_devices(trained, tmp_path):
    """The runs were trained on one device, and evaluated in batches of 4 and of 1; here are eight."""
    for run, split in (("run", "test"), ("pictures", "eval")):
        output = tmp_path / f"{run}.json"
        flags = [f"--run={trained / run}", f"--output={output}"]
        assert evaluate.main(["evaluate", *flags]) == 0
        found, expected = json.loads(output.read_text()), summary(trained, run)[split]
        assert found["accuracy"] == expected["accuracy"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_checkpoint_is_measured_on_data_that_is_named(trained, tmp_path, capsys):
    checkpoint, output = trained / "run" / "best", tmp_path / "m.json"
    flags = [f"--run={checkpoint}", f"--data={trained}/test.csv", f"--output={output}"]
    assert evaluate.main(["evaluate", *flags]) == 0
    assert json.loads(output.read_text())["loss"] == pytest.approx(
        summary(trained)["test"]["loss"], rel=1e-5
    )
    capsys.readouterr()
    assert "--data is missing: a checkpoint" in refused([f"--run={checkpoint}"], capsys)


def test_columns_are_named_by_flags(trained, tmp_path, capsys, monkeypatch):
    lines = (trained / "test.csv").read_text().splitlines()
    other = tmp_path / "other.csv"
    other.write_text("\n".join(["body,truth", *lines[1:]]) + "\n")
    flags = [f"--run={trained}/run", f"--data={other}"]
    with monkeypatch.context() as patch:
        patch.setattr(Inference, "evaluate", lambda *_: pytest.fail("the model ran first"))
        assert "name it by --label" in refused(flags, capsys)
        line = refused([*flags, "--label=truth"], capsys)
        assert "no column 'text'" in line and "name the input by --text" in line
        line = refused([*flags, "--label=truht", "--text=body"], capsys)
        assert "did you mean 'truth'?" in line
    assert evaluate.main(["evaluate", *flags, "--label=truth", "--text=body"]) == 0
    assert "30 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("data.csv", "is the --data"),
        ("link.csv", "is the --data"),
        ("other.json", "is no earlier output of evaluate"),
        ("list.json", "is no earlier output of evaluate"),
        ("thesis.txt", "is no earlier output of evaluate"),
        ("run/config.json", "would be a file of the run"),
        ("run/summary.json", "would be a file of the run"),
        ("run/best/metrics.json", "would be a file of the run"),
        ("unfinished/summary.json", "would be a file of the run"),
        ("checkpoint/config.json", "would be a file of the checkpoint"),
        ("checkpoint/preprocessor_config.json", "would be a file of the checkpoint"),
        ("none/m.json", "no such directory"),
    ],
)
def test_no_file_of_anybody_else_is_overwritten(trained, tmp_path, capsys, no_compute, place, said):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "run" / "best", tmp_path / "checkpoint")
    shutil.copytree(trained / "run", tmp_path / "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    shutil.copy(trained / "test.csv", tmp_path / "data.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "data.csv")
    (tmp_path / "other.json").write_text('{"accuracy": 1}')
    (tmp_path / "list.json").write_text("[" * 100_000)
    (tmp_path / "thesis.txt").write_text("years")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    flags = [f"--run={tmp_path}/run", f"--data={tmp_path}/data.csv", f"--output={tmp_path}/{place}"]
    assert said in refused(flags, capsys)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_earlier_output_is_replaced_whole_or_not_at_all(trained, tmp_path, capsys, monkeypatch):
    output = trained / "run" / "mine.json"  # a run may hold files of its user
    flags = [f"--run={trained}/run", f"--output={output}"]
    assert evaluate.main(["evaluate", *flags]) == 0
    before, there = output.read_bytes(), set((trained / "run").iterdir())
    assert evaluate.main(["evaluate", *flags]) == 0

    def fails(*_, **__):
        raise ValueError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(Inference, "evaluate", fails)
        assert "no luck" in refused(flags, capsys)
    assert output.read_bytes() == before and set((trained / "run").iterdir()) == there
    output.unlink()
