"""jaxft.find_lr: a rate in the terminal, in a page and in a file; nothing else is written."""

from __future__ import annotations

import io
import json

import pytest

from jaxft import find_lr
from jaxft.terminal.errors import run_command
from jaxft.terminal.plot import curve_lines, show_lines
from tests.worlds import ROOT, fields


def argv(world, output, *more: str, task="text_classification", data="train.csv", **other):
    values = fields(world, data, 16, **{"model.path": world / "one_block", **other})
    given = [f"--config.{name}={value}" for name, value in values.items()]
    return ["find_lr", f"--config={ROOT}/configs/{task}.py", f"--output={output}", *given, *more]


def refused(arguments, capsys) -> str:
    assert run_command(find_lr.main, arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and "\n" not in error, error
    return error


def test_what_is_told_and_what_is_written(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = argv(world, tmp_path / "out", "--steps=40", "--lowest=1e-5", "--seeds=2")
    assert find_lr.main(arguments) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out/find_lr.json").read_text())
    rate = found["recommended"]["rate"]
    assert f"--config.optim.lr={rate:.2g}" in shown and "2 seeds read the same batches" in shown
    assert 1e-5 < rate < 10 and found["recommended"] in found["suggestions"]
    assert len(found["losses"]) == 2 and len(found["losses"][0]) == len(found["rates"]) <= 40
    assert found["rates"][0] == pytest.approx(1e-5) and found["together"]
    page = (tmp_path / "out/find_lr.html").read_text()
    assert "<svg" in page and f"{rate:.2g}" in page and "recommended" in page
    # No run, no checkpoint; again into the same folder, it is the same.
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "find_lr.html",
        "find_lr.json",
        "out",
    ]
    assert find_lr.main(arguments) == 0
    assert json.loads((tmp_path / "out/find_lr.json").read_text()) == found


def test_mistakes_are_one_line(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert "above 0, at most 10" in refused(argv(world, out, "--lowest=0"), capsys)
    assert "highest is above" in refused(argv(world, out, "--highest=1e-9"), capsys)
    assert "at least 30" in refused(argv(world, out, "--steps=5"), capsys)
    assert "--seeds=0" in refused(argv(world, out, "--seeds=0"), capsys)
    assert "lowest" in refused(argv(world, out, "--lowest=tiny"), capsys)
    frozen = argv(world, out, **{"optim.frozen": "('.*',)"})
    assert "nothing to train" in refused(frozen, capsys)
    (out / "find_lr.json").write_text("{}")
    assert "no earlier output of find_lr" in refused(argv(world, out), capsys)
    assert (out / "find_lr.json").read_text() == "{}"


def test_a_curve_in_characters():
    x = [1e-4, 1e-3, 1e-2, 1e-1]
    y = [1.0, 0.5, 0.0, 2.0]
    lines = curve_lines(
        x, y, low=[0.9, 0.4, 0.0, 1.5], high=[1.1, 0.6, 0.0, 2.0], marks={"V": 1e-2}
    )
    assert lines[0].split("│")[0].strip() == "2" and lines[13].split("│")[0].strip() == "0"
    assert lines[0].endswith("•") and lines[13].rstrip().endswith("•")
    column = lines[-1].index("V")
    assert lines[13][column] == "•" and lines[-2][column:].startswith("1e-2")
    assert sum(line.count("·") for line in lines) > 3
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show_lines(lines, stream=stream)
    stream.seek(0)
    assert "*" in stream.read()
