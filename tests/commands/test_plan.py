"""jaxft.plan: a plan in the terminal, in a page and in a file; and what is no plan."""

from __future__ import annotations

import json
import math

import pytest

from jaxft import plan, train
from jaxft.planning import topology
from jaxft.terminal.errors import run_command
from tests.worlds import ROOT, fields


def argv(world, output, *more: str, to="cpu", **other):
    values = fields(world, "train.csv", 16, **{"model.path": world / "one_block", **other})
    given = [f"--config.{name}={value}" for name, value in values.items()]
    config = f"--config={ROOT}/configs/text_classification.py"
    return ["plan", config, f"--topology={to}", f"--output={output}", *given, *more]


def refused(arguments, capsys) -> str:
    assert run_command(plan.main, arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and "\n" not in error, error
    return error


def test_mistakes_are_one_line(world, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert "did you mean 'v5" in refused(argv(world, out, to="v5:4x4"), capsys)
    assert "--topology is missing" in refused(
        [a for a in argv(world, out) if "topology" not in a], capsys
    )
    assert "--length=-1" in refused(argv(world, out, "--length=-1"), capsys)
    file = tmp_path / "file"
    file.touch()
    assert f"--output {file} cannot be a folder" in refused(argv(world, file), capsys)
    shut = tmp_path / "shut"
    shut.mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert f"--output {shut} cannot be written" in refused(argv(world, shut), capsys)
    monkeypatch.undo()
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'jaxft[plan]'" in refused(argv(world, out, to="v5e:2x2"), capsys)


@pytest.mark.slow
def test_a_plan_of_real_data_in_a_process_of_its_own(world, tmp_path, capsys):
    """Here the data are read; and what is not a plan's own is left as it is."""
    out = tmp_path / "out"
    assert plan.main(argv(world, out)) == 0
    shown = capsys.readouterr().out
    assert "fits: " in shown and "the whole process that trains" in shown
    found = json.loads((out / "plan.json").read_text())
    assert (
        found["written by"] == "jaxft plan" and found["fits"] and found["memory"]["process"] > 2**28
    )
    assert found["batch"]["examples"] == 16 and found["notes"] == []
    assert "<svg" in (out / "plan.html").read_text()
    (out / "plan.json").write_text("{}")
    assert "no earlier output of plan" in refused(argv(world, out), capsys)


@pytest.mark.slow
def test_a_run_trains_by_the_plan_that_a_search_found(world, tmp_path, capsys):
    """On as many devices of this process; the config says neither mesh nor that batch."""
    out, given = tmp_path / "out", {"train.steps": 2, "parallel.mode": "auto"}
    assert plan.main(argv(world, out, "--search", "--compiled=1", to="cpu:8", **given)) == 0
    shown = capsys.readouterr().out
    found = json.loads((out / "plan.json").read_text())
    assert "may fit; compiling 1" in shown and math.prod(found["mesh"].values()) == 8
    assert found["dtype"] == "float32" and found["given"]["train.batch_size"] == 16
    own = [one for one in argv(world, out, **given) if "--config" in one]
    assert (
        train.main(["train", f"--workdir={tmp_path / 'run'}", f"--plan={out / 'plan.json'}", *own])
        == 0
    )
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["parallel"]["fsdp"] == found["mesh"]["fsdp"] and config["parallel"]["data"] >= 1
    assert config["train"]["batch_size"] == found["batch"]["examples"]


@pytest.mark.slow
@pytest.mark.parametrize(("to", "needs"), [("v5e:2x2", "libtpu"), ("h100:4", "jax_cuda12_plugin")])
def test_accelerators_that_are_not_here(world, tmp_path, capsys, to, needs):
    """Only the trained half has slots and is summed; the reduce-scatters of each compiler are found."""
    pytest.importorskip(needs, reason=f"{needs} compiles for {to}; see docs/plan.md")
    folder = tmp_path / "bert"
    folder.mkdir()
    sizes = {
        "model_type": "bert", "vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 1024, "max_position_embeddings": 128,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes))
    given = argv(world, tmp_path / "out", "--length=64", to=to, **{
        "model.path": folder, "train.batch_size": 32, "parallel.mode": "shard", "parallel.fsdp": 4,
        "model.dtype": "bfloat16", "optim.freeze_below": 1,
    })  # fmt: skip
    assert plan.main(given) == 0
    found = json.loads((tmp_path / "out/plan.json").read_text())
    arguments = sum(found["memory"][n] for n in ("trainable", "frozen", "slots", "others"))
    assert arguments == pytest.approx(found["compiler"]["arguments"], rel=0.02)
    received = {one["kind"]: one["bytes"] for one in found["traffic"]}
    assert received["reduce-scatter"] == pytest.approx(found["least"]["reduce-scatter"], rel=0.1)
    assert sum(received.values()) < 1.3 * sum(found["least"].values())
