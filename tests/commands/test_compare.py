"""jaxft.compare: runs side by side, grouped over seeds; from directories that hold what it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jaxft import compare
from jaxft.terminal.errors import run_command


@pytest.fixture
def runs(trained, tmp_path):
    """Makes a run directory: (name, seed, learning rate, test accuracy) -> its path."""

    def make(name: str, seed: int, lr: float, accuracy: float, **config) -> Path:
        run = tmp_path / name
        run.mkdir()
        for file in ("config.json", "source.json", "summary.json", "metrics.jsonl"):
            shutil.copy(trained / "run" / file, run)
        change(run / "config.json", train={"seed": seed}, optim={"lr": lr}, **config)
        change(run / "summary.json", test={"accuracy": accuracy}, seconds={"total": 10.0 + seed})
        return run

    return make


def change(path: Path, **sections: dict) -> None:
    value = json.loads(path.read_text())
    for section, fields in sections.items():
        value[section].update(fields)
    path.write_text(json.dumps(value))


def compared(capsys, *argv: object) -> str:
    assert compare.main(["compare", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_seeds_become_a_mean_and_a_deviation(runs, tmp_path, capsys):
    slow = [runs(f"slow{i}", i, 1e-3, accuracy) for i, accuracy in enumerate((0.7, 0.8, 0.9))]
    fast = runs("fast", 0, 1e-2, 0.5)
    page = tmp_path / "page.html"
    out = compared(capsys, slow[0], f"--output={page}", fast, *slow[1:])
    group, other = (line for line in out.splitlines() if "optim.lr=" in line)
    assert "0, 1, 2" in group and "0.8000 ± 0.1000" in group and "11.0 ± 1.0" in group
    assert "optim.lr=0.001" in group and "optim.lr=0.01" in other
    assert "0.5000" in other and "±" not in other
    html = page.read_text()
    assert "0.8000 ± 0.1000" in html and "optim.lr" in html and "<svg" in html
    assert compare.main(["compare", str(fast), "--output", str(page)]) == 0  # an earlier page


def test_what_is_not_the_same_experiment_is_not_averaged(runs, capsys):
    first, second = runs("a", 0, 1e-3, 0.7), runs("b", 1, 1e-3, 0.8)
    source = json.loads((second / "source.json").read_text())
    (second / "source.json").write_text(json.dumps({**source, "evaluation fingerprint": "3"}))
    out = compared(capsys, first, second)
    assert "±" not in out and "0.7000" in out and "0.8000" in out
    assert "not evaluated on the same rows" in out
    again = runs("c", 0, 1e-3, 0.7)
    assert "seed 0 occurs more than once" in compared(capsys, first, again)


def test_a_run_that_is_not_finished_stands_alone(runs, capsys):
    first, second = runs("a", 0, 1e-3, 0.7), runs("b", 1, 1e-3, 0.8)
    (second / "summary.json").unlink()
    out = compared(capsys, first, second)
    assert "±" not in out and "B is not finished" in out


def test_names_and_values_are_shown_as_they_are(runs, tmp_path, capsys):
    name = "[red]<script>alert(1)</script>"
    out_of = runs(name.replace("/", "|"), 0, 1e-3, 0.7, data={"test": "<b>[/INST]"})
    page = tmp_path / "page.html"
    out = compared(capsys, out_of, runs("b", 0, 1e-2, 0.8), f"--output={page}")
    assert "[red]<script>" in out.replace("\n", "") and "[/INST]" in out
    assert "<script" not in page.read_text() and "<b>" not in page.read_text()
    assert "&lt;b&gt;[/INST]" in page.read_text()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "no runs are given"),
        (["T/none"], "is not a run directory"),
        (["T"], "is not a run directory"),
        (["T/a", "T/a/config.json"], "is not a run directory"),
        (["T/broken"], "is not valid JSON"),
        (["T/deep"], "nested too deeply"),
        (["T/foreign"], "source.json is not what jaxft wrote"),
        (["T/a", "--output=T/page.txt"], "name it FILE.html"),
        (["T/a", "--output", "T/mine.html"], "is no earlier output of compare"),
        (["T/a", "--output=T/a/report.html"], "would be a file of the run"),
        (["T/a", "--ouput=x.html"], "ouput"),
    ],
)
def test_wrong_use_is_one_line(runs, tmp_path, capsys, argv, said):
    for number, name in enumerate(("a", "broken", "foreign", "deep")):
        runs(name, number, 1e-3, 0.7)
    (tmp_path / "broken" / "config.json").write_text('{"task": ')
    (tmp_path / "foreign" / "source.json").write_text("{}")
    (tmp_path / "deep" / "config.json").write_text("[" * 100_000)
    (tmp_path / "mine.html").write_text("<html>years</html>")
    words = [str(tmp_path) + word[1:] if word.startswith("T") else word for word in argv]
    words = [word.replace("=T/", f"={tmp_path}/") for word in words]
    assert run_command(compare.main, ["compare", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and said in error and "\n" not in error
    assert (tmp_path / "mine.html").read_text() == "<html>years</html>"


def test_foreign_metrics_are_left_out(runs, capsys):
    run = runs("a", 0, 1e-3, 0.7)
    summary = json.loads((run / "summary.json").read_text())
    summary.update(seconds=[1], test={"accuracy": "high", "loss": None}, eval=[3])
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "metrics.jsonl").write_text('{"kind": "eval"}\n{"text": 1}\n[]\n')
    assert "–" in compared(capsys, run)
