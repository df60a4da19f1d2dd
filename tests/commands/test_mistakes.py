"""What a tired user gets wrong: one line that says what and what instead, a status, and nothing lost."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import describe, evaluate, export, predict, train
from jaxft.terminal.errors import run_command
from jaxft.training.logs import Logs
from tests import tiny

ROOT = Path(__file__).parents[2]
CONFIG = "from jaxft.config import default_config\n\n\ndef get_config(arg=None):\n"
FILES = {
    "empty.csv": "",
    "header.csv": "text,label\n",
    "columns.csv": "txt,labl\nfine,good\nbad,bad\n",
    "one_class.csv": "text,label\nfine,good\nwarm,good\n",
    "unknown.csv": "text,label\nfine,good\nbad day,bda\n",
    "no_label.csv": "text,label\nfine,good\nbad day,\n",
    "scores.csv": "text,label\nfine,0.5\nbad day,3.7\nwarm,1\n",
    "txt.csv": "txt,label\nfine,good\nbad day,bad\n",
    "uneven.csv": "text;label\nfine;good\nbad day\n",
    "null.jsonl": '{"text": "fine", "label": "good"}\n{"text": null, "label": "bad"}\n',
    "quote.csv": 'text,label\n"fine,good\nbad,bad\n',
    "syntax.py": "def get_config(arg=None)\n    return 1\n",
    "key.py": f"{CONFIG}    config = default_config()\n    config.optim.lrr = 1\n    return config\n",
    "nothing.py": f"{CONFIG}    default_config()\n",
    "raises.py": "import numppy\n",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data and checkpoints, sound ones and broken ones."""
    folder = tmp_path_factory.mktemp("world")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "latin.csv").write_bytes("text,label\ncafé,good\nx,bad\n".encode("latin-1"))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe.csv")
    tiny.texts(folder / "train.csv")
    tiny.texts(folder / "few.csv", 6)
    tiny.images(folder / "images", 2)
    tiny.vit(folder / "vit")
    tiny.bert(folder / "bert")
    broken = "cut no_weights no_config bad_config no_tokenizer other_tokenizer infinite renamed"
    for name in broken.split():
        shutil.copytree(folder / "bert", folder / name)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "no_weights" / "model.safetensors").unlink()
    (folder / "no_config" / "config.json").unlink()
    (folder / "bad_config" / "config.json").write_text('{"model_type": ')
    (folder / "no_tokenizer" / "tokenizer.json").unlink()
    tokenizer = folder / "other_tokenizer" / "tokenizer.json"
    vocabulary = json.loads(tokenizer.read_text())
    vocabulary["model"]["vocab"]["film"] = 30522
    tokenizer.write_text(json.dumps(vocabulary))
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors = load_file(folder / "bert" / "model.safetensors")
    infinite = {**tensors, name: np.full_like(tensors[name], np.inf)}
    save_file(infinite, folder / "infinite" / "model.safetensors")
    tensors[f"{name}x"] = tensors.pop(name)
    save_file(tensors, folder / "renamed" / "model.safetensors")
    return folder


def arguments(world: Path, workdir: Path, *fields: str) -> list[str]:
    """A small sound run; `fields` ('optim.lr=1') come last, so that they win."""
    sound = (
        f"model.path={world}/bert", f"data.train={world}/train.csv", "train.batch_size=16",
        "train.steps=8", "eval.every=4 steps", "checkpoint.every_steps=2", "checkpoint.keep=9",
        "parallel.mode=jit", "train.compile_cache=",
    )  # fmt: skip
    overrides = [f"--config.{field}" for field in (*sound, *fields)]
    config = f"--config={ROOT}/configs/text_classification.py"
    return ["jaxft.train", config, f"--workdir={workdir}", *overrides]


def refused(main, argv: list[str], capsys, status: int = 2) -> str:
    """The error that a command ends with: one line, or a line and the indented lines of a list."""
    capsys.readouterr()
    assert run_command(main, argv) == status
    lines = capsys.readouterr().err.splitlines()
    assert lines and lines[0].startswith("jaxft: error: "), lines
    assert all(line.startswith("  ") for line in lines[1:]), lines
    return "\n".join(lines)


@contextlib.contextmanager
def signalled(monkeypatch, number: int, step: int):
    """Within the block, a run gets the signal in `step`."""
    original = Logs.train

    def interrupt(self, at, *rest):
        original(self, at, *rest)
        if at == step:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Logs, "train", interrupt)
        yield


# What is wrong -> the fields that are (W is the folder of `world`), and what the line must say.
FIELDS: dict[str, tuple[str, ...]] = {
    "missing column": ("data.text=txt", "train.csv has no column 'txt'", "did you mean 'text'"),
    "missing label": ("data.label=lable", "no column 'lable'", "did you mean 'label'"),
    "no usual column": ("data.train=W/columns.csv", "'txt', 'labl'", "config.data.label"),
    "empty file": ("data.train=W/empty.csv", "empty.csv: the file is empty"),
    "only a header": ("data.train=W/header.csv", "header.csv: there are no rows"),
    "unclosed quote": ("data.train=W/quote.csv", "quote.csv, line 2: bad quoting"),
    "no UTF-8": ("data.train=W/latin.csv", "latin.csv, line 2: byte 0xe9", "iconv"),
    "one class": ("data.train=W/one_class.csv", "holds one label only (good)"),
    "one class kept": ("data.classes=good", "keeps good only"),
    "unknown class": ("data.classes=good,bda", "no class 'bda'", "bad, good, odd", "mean 'bad'"),
    "row without label": ("data.train=W/no_label.csv", "no_label.csv, line 3", "no label"),
    "unknown label": ("data.eval=W/unknown.csv", "unknown.csv, line 3", "'bda'", "mean 'bad'"),
    "unknown test label": ("data.test=W/unknown.csv", "unknown.csv, line 3", "'bda'"),
    "evaluation without texts": ("data.eval=W/txt.csv", "config.data.eval: txt.csv", "mean 'txt'"),
    "test without texts": ("data.test=W/txt.csv", "config.data.test: txt.csv", "no column 'text'"),
    "no text in a test row": ("data.test=W/null.jsonl", "config.data.test: null.jsonl, line 2", "on_bad_row"),
    "regression": ("data.train=W/scores.csv", "scores.csv: column 'label'", "0.5, 3.7", "regression"),
    "unclear delimiter": ("data.train=W/uneven.csv", "'text;label'", "config.data.delimiter"),
    "no delimiter": ("data.delimiter=;;", "config.data.delimiter=';;' is not one character"),
    "bad rows": ("data.on_bad_row=skpi", "is not one of error, skip", "did you mean 'skip'"),
    "pipe": ("data.train=W/pipe.csv", "pipe.csv: a pipe", "regular file"),
    "empty folder": ("data.train=W/folder", "not an image folder", "it holds nothing"),
    "no such file": ("data.train=W/trian.csv", "no such file", "did you mean 'train.csv'"),
    "no data": ("data.train=", "config.data.train is empty"),
    "images for a text model": ("data.train=W/images", "image_classification"),
    "too few of a class": ("data.examples_per_class=99", "not held out: 99 examples", "smallest class has"),
    "cut weights": ("model.path=W/cut", "cut/model.safetensors is no complete safetensors"),
    "no weights": ("model.path=W/no_weights", "has no model.safetensors"),
    "other names": ("model.path=W/renamed", "1 missing", "1 unexpected", "dense.weightx"),
    "no config.json": ("model.path=W/no_config", "no_config is no checkpoint", "config.json"),
    "bad config.json": ("model.path=W/bad_config", "bad_config/config.json cannot be read as JSON"),
    "no tokenizer": ("model.path=W/no_tokenizer", "no tokenizer there"),
    "other tokenizer": ("model.path=W/other_tokenizer", "token 30522 ('film')", "another model"),
    "misspelt model": ("model.path=W/bret", "no such directory", "did you mean 'W/bert'"),
    "model is a file": ("model.path=W/bert/config.json", "is a file; give the directory"),
    "no model": ("model.path=", "config.model.path is empty"),
    "image model": ("model.path=W/vit", "needs a model of text", "a model of image"),
    "unknown field": ("optim.lrr=1", "config.optim.lrr does not exist", "did you mean 'optim.lr'"),
    "unknown section": ("optm.lr=1", "config.optm.lr does not exist", "did you mean 'optim.lr'"),
    "a section": ("eval=1", "config.eval is a section", "eval.patience"),
    "no number": ("optim.lr=fast", "config.optim.lr='fast' is not a number"),
    "no such choice": ("optim.schedule=cosin", "linear, cosine, constant", "mean 'cosine'"),
    "no duration": ("eval.every=2 days", "'2 days' is not a duration", "'2 epochs'"),
    "no patience": ("eval.patience=0", "must be at least 1, or none"),
    "no batch": ("train.batch_size=0", "must be at least 1"),
    "two lengths": ("train.epochs=2", "train.epochs and config.train.steps are both set"),
    "long warm-up": ("optim.warmup=99 steps", "is 99 steps, the run has 8"),
    "long texts": ("data.max_length=512", "above the 64 positions"),
    "frozen pattern": ("optim.frozen=bert/encodr/.*", "matches no parameter", "'encoder'"),
    "frozen path": ("optim.frozen=bert/encodr/layer/0/.*", "nearest: 'bert/encoder/layer/0/"),
    "frozen number": ("optim.frozen=(1,)", "config.optim.frozen: 1 is not text"),
    "no regex": ("optim.frozen=bert/(layer", "is not a regular expression"),
    "rate pattern": ("optim.lr_mult=[('bert/pooller/.*', 2)]", "nearest: 'bert/pooler/dense/"),
    "no factor": ("optim.lr_mult=[('classifier/.*', 'a')]", "the factor 'a'", "number"),
    "negative factor": ("optim.lr_mult=[('classifier/.*', -1)]", "the factor -1"),
    "too many blocks": ("optim.freeze_below=7", "freeze_below=7", "the model has 2 blocks"),
    "all frozen": ("optim.frozen=.*", "nothing to train", "the head too"),
    "no mesh": ("parallel.tensor=2", "parallel.tensor=2: needs parallel.mode='shard'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FIELDS)
def test_a_wrong_field_is_one_line(world, tmp_path, capsys, mistake):
    field, *said = [part.replace("W/", f"{world}/") for part in FIELDS[mistake]]
    line = refused(train.main, arguments(world, tmp_path / "run", field), capsys)
    assert "\n" not in line
    for part in said:
        assert part in line
    assert not (tmp_path / "run" / "config.json").exists()  # the directory is still free


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("syntax.py", "syntax.py, line 1"),
        ("key.py", "key.py:6: config.optim.lrr does not exist (did you mean 'optim.lr'?)"),
        ("nothing.py", "does it end with 'return config'?"),
        ("raises.py", "raises.py:1: No module named 'numppy'"),
        ("sintax.py", "no config file"),
        ("sintax.py", "did you mean 'syntax.py'?"),
    ],
)
def test_a_wrong_config_file_is_one_line(world, tmp_path, capsys, file, said):
    argv = ["jaxft.train", f"--config={world}/{file}", f"--workdir={tmp_path}/run"]
    line = refused(train.main, argv, capsys)
    assert said in line and "\n" not in line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config=C"], "--workdir is missing"),
        (["--workdir=W/run"], "--config is missing"),
        (["--config=C", "--workdir=W/run", "--wrokdir=x"], "(did you mean --workdir?)"),
        (["--config=C", "--workdir=W/run", "my.csv"], "unexpected argument 'my.csv'"),
        (["--config=C:heed", "--workdir=W/run"], "full, layerwise, half, head"),
        (["--config=C", "--workdir=W/train.csv/run"], "cannot write to --workdir"),
        (["--config=C", "--workdir=W/train.csv"], "cannot write to --workdir"),
    ],
)
def test_a_wrong_command_line_is_one_line(world, capsys, argv, said):
    config = f"{ROOT}/configs/text_classification.py"
    argv = [arg.replace("=C", f"={config}").replace("W/", f"{world}/") for arg in argv]
    assert said in refused(train.main, ["jaxft.train", *argv], capsys)


def test_a_mended_mistake_is_tried_again_in_the_same_directory(world, tmp_path, capsys):
    assert "txt" in refused(train.main, arguments(world, tmp_path, "data.text=txt"), capsys)
    # More examples in a batch than there are is no mistake: an epoch is one step.
    mended = ("train.batch_size=64", f"data.train={world}/few.csv", "train.steps=2")
    infinite = arguments(world, tmp_path, *mended, f"model.path={world}/infinite")
    line = refused(train.main, infinite, capsys, status=1)
    assert "at step 1, before any update: a weight of the checkpoint is not finite" in line
    # Nothing was saved, so the directory is still free.
    assert run_command(train.main, arguments(world, tmp_path, *mended)) == 0
    assert (tmp_path / "summary.json").exists()


def test_everything_frozen_is_only_a_warning_where_nothing_is_trained(world, tmp_path, capsys):
    argv = [a for a in arguments(world, tmp_path, "optim.frozen=.*") if "--workdir" not in a]
    assert run_command(describe.main, argv) == 0
    assert "warning: every parameter is frozen" in capsys.readouterr().out


def test_two_runs_in_one_directory(world, tmp_path, capsys):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use by another" in refused(train.main, arguments(world, tmp_path), capsys)


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """A run that Ctrl-C ended in step 5: checkpoints of the steps 2, 4 and 5."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, signalled(patch, signal.SIGINT, step=5):
        assert run_command(train.main, arguments(world, workdir)) == 130
    return workdir


def test_ctrl_c_saves_and_the_same_command_continues(world, stopped, tmp_path, capsys):
    last = json.loads((stopped / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["message"] == "SIGINT: saved step 5; the same command continues"
    workdir = shutil.copytree(stopped, tmp_path / "run")
    assert run_command(train.main, arguments(world, workdir)) == 0
    out, err = capsys.readouterr()
    assert "continued from the checkpoint of step 5" in out and not err


@pytest.mark.parametrize(
    "damage",
    ["emptied", *(pytest.param(d, marks=pytest.mark.slow) for d in ("cut", "parts missing"))],
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(
    world, stopped, tmp_path, capsys, damage
):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    newest = workdir / "checkpoints" / "5"
    if damage == "parts missing":
        shutil.rmtree(newest / "slots")
    for path in newest.rglob("*"):
        if path.is_file() and (damage == "emptied" or path.parent.name == "memory"):
            os.truncate(path, 0)
    assert run_command(train.main, arguments(world, workdir)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: the checkpoint of step 5 is damaged" in said
    assert "continued from the checkpoint of step 4" in said
    assert newest.with_name("damaged-5").is_dir()


def test_another_config_names_what_differs(world, stopped, capsys):
    line = refused(train.main, arguments(world, stopped, "optim.lr=0.1"), capsys)
    assert line.splitlines()[1:] == ["  config.optim.lr: 5e-05 -> 0.1"]


@pytest.fixture(scope="module")
def finished(world, stopped, tmp_path_factory):
    workdir = shutil.copytree(stopped, tmp_path_factory.mktemp("finished") / "run")
    assert run_command(train.main, arguments(world, workdir)) == 0
    return workdir


# Command, its flags (W: the world, R: a finished run, T: a free folder), what the line must say.
AFTERWARDS = [
    (predict, "run=W input=W/few.csv output=T/o.csv", "is not a run directory: it has no config"),
    (predict, "run=T/none input=W/few.csv output=T/o.csv", "is not a run directory"),
    (predict, "run=W/few.csv input=W/few.csv output=T/o.csv", "is not a run directory"),
    (predict, "input=W/few.csv output=T/o.csv", "--run is missing"),
    (predict, "run=R input=W/columns.csv output=T/o.csv", "no column 'text' (did you mean 'txt'?)"),
    (predict, "run=R input=W/empty.csv output=T/o.csv", "empty.csv: the file is empty"),
    (predict, "run=R input=W/header.csv output=T/o.csv", "there are no rows after the header"),
    (predict, "run=R input=W/fwe.csv output=T/o.csv", "did you mean 'few.csv'?"),
    (predict, "run=R input=W/few.csv output=T/none/o.csv", "no such directory"),
    (predict, "run=R input=W/few.csv output=T/o.cvs", "(did you mean '.csv'?)"),
    (predict, "run=R input=W/few.csv output=W/few.csv", "is the --input; give another file"),
    (evaluate, "run=R data=W/unknown.csv", "unknown.csv, line 3: the label 'bda' is unknown"),
    (evaluate, "run=R data=W/columns.csv", "no label column found among 'txt', 'labl'"),
    (evaluate, "run=R data=W/txt.csv", "txt.csv has no column 'text'"),
    (evaluate, "run=R data=W/null.jsonl", "null.jsonl, line 2: column 'text' has no text"),
    (evaluate, "run=R output=T/none/m.json", "no such directory"),
    (evaluate, "run=R output=T", "is a directory"),
    (export, "run=R output=T/o step=3", "--step=3 is not kept; there are 2, 4, 5, 6, 8"),
    (export, "run=R output=W", "is not a checkpoint; it is left as it is"),
    (export, "run=R output=W/bert", "is the checkpoint that it began from"),
    (export, "run=R output=R", "is the run; give a directory of its own"),
    (export, "run=R output=R/checkpoints/9", "belongs to the run, which writes there"),
    (export, "run=R output=W/few.csv/o", "few.csv is a file, not a directory"),
    (export, "run=W output=T/o", "is not a run directory"),
]


@pytest.mark.parametrize(("command", "flags", "said"), AFTERWARDS)
def test_wrong_use_of_a_finished_run_is_one_line(
    world, finished, tmp_path, capsys, command, flags, said
):
    before = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}
    places = {"W": world, "R": finished, "T": tmp_path}
    argv = re.sub("=([WRT])", lambda found: f"={places[found[1]]}", flags)
    line = refused(command.main, ["command", *(f"--{flag}" for flag in argv.split())], capsys)
    assert said in line and "\n" not in line
    assert not list(tmp_path.iterdir())
    assert {path: path.read_bytes() for path in world.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", '{"task": ', "config.json is not valid JSON"),
        ("config.json", "[]", "config.json holds no JSON object"),
        ("config.json", '{"optim": {"lrr": 1}}', "does not know: optim.lrr"),
        ("source.json", "{}", "source.json is not what jaxft wrote"),
        ("best/model.safetensors", "", "best/model.safetensors is no complete safetensors"),
        ("best/config.json", "", "best/config.json cannot be read as JSON"),
    ],
)
def test_a_damaged_run_directory_is_one_line(
    world, finished, tmp_path, capsys, file, content, said
):
    damaged = shutil.copytree(finished, tmp_path / "run")
    (damaged / file).write_text(content)
    argv = [f"--run={damaged}", f"--input={world}/few.csv", f"--output={tmp_path}/o.csv"]
    assert said in refused(predict.main, ["predict", *argv], capsys)
    assert not (tmp_path / "o.csv").exists()


# Real processes: what libraries print from their own threads, and at exit, is part of it.


def process(argv: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-m", argv[0], *argv[1:]]
    return subprocess.run(
        command, cwd=ROOT, env={**online, **environment}, capture_output=True, text=True, timeout=120
    )  # fmt: skip


@pytest.mark.slow
def test_a_hub_that_never_answers(world, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        argv = arguments(world, tmp_path / "run", "model.path=google/bret-base")
        began = time.monotonic()
        run = process(argv, HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    assert "'google/bret-base': no such directory, and the hub is out of reach" in run.stderr
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_saved_and_the_same_command_continues(world, tmp_path, capsys):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs root")
    try:
        argv = arguments(world, tmp_path / "run", "train.steps=12", "checkpoint.keep=99")
        run = process(argv)
        assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
        assert "no space left" in run.stderr and "free some space" in run.stderr
        saved = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]
        assert 2 in saved and 12 not in saved
        subprocess.run(["mount", "-o", "remount,size=64m", tmp_path], check=True)
        assert run_command(train.main, argv) == 0
        assert f"continued from the checkpoint of step {max(saved)}" in capsys.readouterr().out
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_predictions_survive_a_mistake_in_the_next_command(world, finished, tmp_path, capsys):
    """An earlier output is replaced whole or not at all."""
    output = tmp_path / "o.csv"
    argv = ["predict", f"--run={finished}", f"--input={world}/few.csv", f"--output={output}"]
    assert run_command(predict.main, argv) == 0
    before = output.read_bytes()
    argv[2] = f"--input={world}/columns.csv"
    refused(predict.main, argv, capsys)
    assert output.read_bytes() == before
    with output.open(newline="") as file:
        assert len(list(csv.reader(file))) == 7
