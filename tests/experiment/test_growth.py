"""Runs with a tokenizer that was added to: refused, grown, killed, resumed, exported, measured."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file

from jaxft import describe, evaluate, export, predict, train
from jaxft.config import default_config, override
from jaxft.experiment.build import own_copy, read_params, share
from jaxft.experiment.prepared import needed_vocabulary, prepare
from jaxft.experiment.steps import devices
from jaxft.models import by_path
from jaxft.models.checkpoint import companions
from jaxft.tasks.table import TASKS
from jaxft.terminal import config_file
from jaxft.terminal.errors import run_command
from tests import worlds

TABLE = "bert.embeddings.word_embeddings.weight"
GROWN = "--config.model.resize_vocabulary=true"


@pytest.fixture(scope="module")
def grown(world, tmp_path_factory):
    """The world with one token more in its tokenizer, and a run that was not disturbed."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(world / "one_block", folder / "one_block")
    file = str(folder / "one_block/tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(file)
    assert tokenizer.add_tokens(["movie"]) == 1
    tokenizer.save(file)
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text((world / name).read_text().replace("film", "movie"))
    assert train.main(worlds.arguments(folder, folder / "run", GROWN)) == 0
    return folder


def test_without_the_field_the_message_names_it(grown, tmp_path, capsys):
    assert run_command(train.main, worlds.arguments(grown, tmp_path / "run")) == 2
    assert "config.model.resize_vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "said"),
    [("image_classification", "models of text"), ("preference", "begins with")],
)
def test_where_new_rows_are_of_no_use_they_are_refused(task, said):
    config = default_config()
    config.task, config.model.resize_vocabulary = task, True
    with pytest.raises(ValueError, match=rf"^config\..*{said}"):
        needed_vocabulary(config, TASKS[task], "")


def test_the_table_grows_and_what_is_exported_is_what_was_trained(grown, tmp_path, capsys):
    run, before = grown / "run", load_file(grown / "one_block/model.safetensors")[TABLE]
    size = len(transformers.AutoTokenizer.from_pretrained(grown / "one_block"))
    assert size > len(before)  # of "movie" and of [MASK], which BERT's tokenizer adds by itself
    assert worlds.weights(run)[TABLE].shape == (size, before.shape[1])
    assert json.loads((run / "best/config.json").read_text())["vocab_size"] == size
    argv = ["export", f"--run={run}", f"--output={tmp_path / 'out'}", "--verify=8"]
    assert export.main(argv) == 0
    found = json.loads((tmp_path / "out" / companions.CERTIFICATE).read_text())
    assert found["exported"]["largest difference"] == 0.0
    assert 0 < found["pytorch"]["largest difference"] < 1e-5
    capsys.readouterr()
    test = f"{grown / 'test.csv'}"
    assert evaluate.main(["evaluate", f"--run={run}", f"--data={test}"]) == 0
    for model in (run, tmp_path / "out"):
        flags = [f"--run={model}", f"--input={test}", f"--output={tmp_path / 'rows.jsonl'}"]
        assert predict.main(["predict", *flags]) == 0


def test_a_trial_has_the_rows_of_its_own_seed(grown, tmp_path):
    fsdp = "--config.parallel.fsdp=2"  # the rows of the table are on two devices
    argv = worlds.arguments(grown, tmp_path / "run", GROWN, fsdp, mode="shard")
    given = [argument.removeprefix("--config.").split("=", 1) for argument in argv[3:]]
    config = config_file.load(argv[1].removeprefix("--config="), given)
    first, parallel = prepare(config), devices(config)
    params, report = read_params(first, parallel)
    shared = share(first, parallel, report, cache=str(tmp_path / "cache"))
    trial = first.trial(override(config, {"train.seed": 5}))
    found, expected = own_copy(trial, shared, params), read_params(trial, parallel)[0]
    for path, leaf in by_path(expected).items():
        np.testing.assert_array_equal(by_path(found)[path], leaf)
    path = TABLE.replace(".", "/").replace("weight", "embedding")
    assert not np.array_equal(by_path(params)[path], by_path(expected)[path])


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(grown, tmp_path):
    argv = worlds.arguments(grown, tmp_path / "run", GROWN)
    worlds.killed_at(6, argv)
    assert train.main(argv) == 0
    worlds.assert_same_weights(tmp_path / "run", grown / "run")


@pytest.mark.slow
def test_rows_of_a_frozen_table_are_those_of_the_seed(grown, tmp_path, capsys):
    """They are in no checkpoint of the run: each start draws them again."""
    frozen = "--config.optim.freeze_below=1"
    argv = worlds.arguments(grown, tmp_path / "run", GROWN, frozen)
    assert describe.main(["describe", *(flag for flag in argv[1:] if "workdir" not in flag)]) == 0
    assert "rows of new tokens" in " ".join(capsys.readouterr().out.split())
    worlds.killed_at(6, argv)
    assert train.main(argv) == 0
    before = load_file(grown / "one_block/model.safetensors")[TABLE]
    table = worlds.weights(tmp_path / "run")[TABLE]
    np.testing.assert_array_equal(table[: len(before)], before)
    out = tmp_path / "out"
    flags = [f"--run={tmp_path / 'run'}", f"--output={out}", "--verify=8"]
    assert export.main(["export", *flags]) == 0
    np.testing.assert_array_equal(load_file(out / "model.safetensors")[TABLE], table)
    found = json.loads((out / companions.CERTIFICATE).read_text())
    assert all(entry["identical"] for entry in found["untouched tensors"].values())
    assert found["untouched tensors"] and TABLE not in found["untouched tensors"]
