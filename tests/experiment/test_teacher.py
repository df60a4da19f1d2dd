"""A run that learns from another model: what that one reads, what is kept of it, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxft import train
from jaxft.config import default_config, override
from jaxft.config_check import validate
from jaxft.experiment import teaching
from jaxft.experiment.inference import load_inference
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.experiment.teaching import with_teacher
from jaxft.experiment.unused import check_unused
from jaxft.tasks.table import TASKS
from tests import tiny
from tests.tasks import test_multi_label as sets
from tests.tasks import test_multiple_choice as choices
from tests.tasks import test_regression as numbers
from tests.tasks import test_token_classification as tagged
from tests.worlds import (
    ROOT,
    arguments,
    assert_same_weights,
    fields,
    killed_at,
    rows,
    timeless,
)


def config_of(folder, **more):
    return override(
        default_config(),
        {
            "model.path": str(folder / "bert"), "data.train": str(folder / "train.csv"),
            "data.max_shapes": 1, "parallel.mode": "jit", "distill.teacher": str(folder / "run"),
            "eval.batch_size": 32, **more,
        },
    )  # fmt: skip


def taught(folder, cache=None, **more):
    """The training targets of a run, with their teacher."""
    config = config_of(folder, **more)
    return with_teacher(prepare(config), devices(config), cache=cache).splits.train


def renumbered(best, out):
    """The same model with its labels, and the tokens of its tokenizer, in another order."""
    shutil.copytree(best, out)
    tensors = load_file(best / "model.safetensors")
    order = [2, 0, 1]
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][order]
    tokenizer = json.loads((best / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # Special tokens stay, as the post-processor names them by number.
    turned = {word: i if i < 4 else len(vocabulary) + 3 - i for word, i in vocabulary.items()}
    tokenizer["model"]["vocab"] = turned
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    table = "bert.embeddings.word_embeddings.weight"
    rows = tensors[table].copy()
    for word, number in vocabulary.items():
        rows[turned[word]] = tensors[table][number]
    save_file({**tensors, table: rows}, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((best / "config.json").read_text())
    names = [config["id2label"][str(i)] for i in order]
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_a_teacher_reads_with_its_own_tokenizer_and_is_kept(trained, tmp_path, monkeypatch):
    split = taught(trained)
    model = load_inference(trained / "run").reading(split.source)
    np.testing.assert_allclose(split.targets.logits, model.predict(split)["logits"], atol=1e-5)
    other = renumbered(trained / "run" / "best", tmp_path / "other")
    made, original = [], teaching._said
    monkeypatch.setattr(teaching, "_said", lambda *given: made.append(1) or original(*given))
    cache = str(tmp_path / "cache")
    for _ in range(2):
        again = taught(trained, cache, **{"distill.teacher": str(other)}).targets
        np.testing.assert_allclose(again.logits, split.targets.logits, atol=1e-5)
    assert len(made) == 1 and again.names == split.targets.names
    (kept,) = (tmp_path / "cache").glob("*.teacher.npy")
    kept.write_bytes(kept.read_bytes()[:-4])
    taught(trained, cache, **{"distill.teacher": str(other)})
    assert len(made) == 2
    taught(trained, cache)  # other weights
    assert len(made) == 3


def student(folder, workdir, *extra):
    best = folder / "run/best"
    return [
        "train", f"--config={ROOT}/configs/text_classification.py", f"--workdir={workdir}",
        f"--config.model.path={best}", f"--config.data.train={folder}/train.csv",
        f"--config.distill.teacher={folder}/run", "--config.train.batch_size=16",
        "--config.train.steps=6", "--config.eval.every=3 steps", "--config.data.max_shapes=1",
        "--config.train.log_every=1", "--config.log.tensorboard=false", "--config.parallel.mode=jit",
        "--config.train.compile_cache=", *extra,
    ]  # fmt: skip


def test_a_student_that_is_the_teacher_begins_at_no_distance(trained, tmp_path, capsys):
    assert train.main(student(trained, tmp_path / "run", "--config.train.accumulate=2")) == 0
    assert "the loss is 0.5 x that of the labels + 0.5 x the distance" in capsys.readouterr().out
    first, *_, last = (row for row in rows(tmp_path / "run") if row["kind"] == "train")
    assert abs(first["soft_loss"]) < 1e-6 < last["soft_loss"]
    assert first["loss"] == pytest.approx(0.5 * first["hard_loss"], rel=1e-4)
    card = (tmp_path / "run/best/README.md").read_text()
    assert "taught by `run`" in card and str(trained) not in card
    source = json.loads((tmp_path / "run/source.json").read_text())
    assert (
        source["teacher weights"] and source["teacher tokenizer"] and source["teacher config.json"]
    )


def test_what_does_not_fit_is_one_line(trained, tmp_path):
    best, two = trained / "run/best", tmp_path / "two.csv"
    lines = (trained / "train.csv").read_text().splitlines()
    two.write_text("text2," + "\n,".join(lines) + "\n")
    for name, labels in (
        ("others", ("good", "bad", "strange")),
        ("more", ("good", "bad", "odd", "x")),
    ):
        shutil.copytree(best, tmp_path / name)
        config = json.loads((best / "config.json").read_text())
        config["id2label"] = dict(enumerate(labels))
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    for change, message in (
        ({"distill.teacher": str(tmp_path / "others")},
         "only the data have 'odd', only the teacher has 'strange'"),
        ({"distill.teacher": str(trained / "bert")}, "its labels are 'LABEL_0', 'LABEL_1', and those"),
        ({"distill.teacher": str(trained / "pictures")}, "a model of 'image_classification'"),
        ({"distill.teacher": str(tmp_path / "none")}, "distill.teacher=.*no such directory"),
        ({"distill.teacher": str(tmp_path)}, "is not a run directory: it has no config.json"),
        ({"distill.teacher": "https://a.b/c"}, "distill.teacher=.* is an address"),
        ({"distill.teacher": "", "distill.weight": 0.9}, "weight=0.9 needs config.distill.teacher"),
        ({"distill.weight": 1.5}, "weight=1.5 must be between 0 and 1"),
        ({"data.token_dropout": 0.1}, "distill.teacher=.* needs config.data.token_dropout=0.0"),
        ({"task": "masked_lm", "eval.metric": "loss"},
         "task='masked_lm' learns from no teacher; those that do are text_classification"),
        ({"data.text": ("text", "text2")}, "it reads 1 columns .*and the run 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            config = config_of(trained, **{"data.train": str(two), **change})
            validate(config)
            prepare(config)
        assert "\n" not in str(error.value)
    config = override(config_of(trained), {"task": "text_regression", "distill.temperature": 4.0})
    with pytest.raises(ValueError, match="distill.temperature=4.0 has no meaning for"):
        check_unused(config, TASKS["text_regression"])
    # More outputs than the head has rows is said before any label is looked at.
    with pytest.raises(ValueError, match="distill.teacher="):
        prepare(config_of(trained, **{"distill.teacher": str(tmp_path / "more")}))


def test_with_weight_0_there_is_no_teacher(trained):
    config = config_of(trained, **{"distill.weight": 0.0})
    prepared = prepare(config)
    assert prepared.teacher is None
    assert with_teacher(prepared, devices(config), cache=None) is prepared
    with pytest.raises(ValueError, match="prepared with weight 0"):
        prepared.trial(override(config, {"distill.weight": 0.5}))
    with pytest.raises(ValueError, match="trials that share data and model have the same"):
        prepared.trial(override(config, {"distill.teacher": ""}))
    assert prepare(config_of(trained)).trial(config).teacher is None


# Whole runs


@pytest.mark.slow
def test_weight_0_is_a_run_without_a_teacher_bit_for_bit(trained, tmp_path):
    one = student(trained, tmp_path / "zero", "--config.distill.weight=0")
    other = student(trained, tmp_path / "plain", "--config.distill.teacher=")
    assert train.main(one) == 0 and train.main(other) == 0
    assert_same_weights(tmp_path / "zero", tmp_path / "plain")
    assert timeless(tmp_path / "zero") == timeless(tmp_path / "plain")


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits_and_a_changed_teacher_is_refused(trained, tmp_path):
    other = renumbered(trained / "run/best", tmp_path / "other")
    extra = f"--config.distill.teacher={other}", "--config.checkpoint.every_steps=2"
    assert train.main(student(trained, tmp_path / "whole", *extra)) == 0
    command = student(trained, tmp_path / "killed", *extra)
    killed_at(5, command)
    tensors = load_file(other / "model.safetensors")
    before = (other / "model.safetensors").read_bytes()
    save_file(
        {name: x + 1e-3 for name, x in tensors.items()},
        other / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match="teacher weights has changed since the run"):
        train.main(command)
    (other / "model.safetensors").write_bytes(before)
    shutil.rmtree(tmp_path / "killed/cache")
    assert train.main(command) == 0
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "shard"])
def test_devices_microbatches_and_packing_change_nothing(trained, tmp_path, mode):
    assert len(jax.devices()) == 8
    parts = "--config.train.accumulate=2" if mode == "shard" else "--config.data.pack=false"
    base = f"--config.model.path={trained}/bert"
    fsdp = "--config.parallel.fsdp=2" if mode == "shard" else "--config.parallel.data=-1"
    many = student(trained, tmp_path / "many", base, f"--config.parallel.mode={mode}", parts, fsdp)
    assert train.main(many) == 0
    assert train.main(student(trained, tmp_path / "one", base)) == 0
    for ours, theirs in zip(rows(tmp_path / "many"), rows(tmp_path / "one"), strict=True):
        if theirs["kind"] == "train":
            for name in ("loss", "hard_loss", "soft_loss", "grad_norm"):
                assert ours[name] == pytest.approx(theirs[name], rel=2e-3), name


@pytest.mark.slow
def test_a_mixture_of_sources_learns_from_one_teacher(trained, tmp_path):
    tiny.texts(tmp_path / "more.csv", 30, seed=4)
    mixture = ((f"{trained}/train.csv", 1.0), (str(tmp_path / "more.csv"), 2.0))
    given = {
        "model.path": str(trained / "bert"), "data.mixture": mixture, "train.batch_size": 16,
        "distill.teacher": str(trained / "run"), "train.steps": 6, "train.log_every": 1,
        "data.max_shapes": 1, "parallel.mode": "jit", "log.tensorboard": False,
        "train.compile_cache": "", "train.class_weights": "balanced", "train.r_drop": 0.5,
        "model.dropout": 0.1,
    }  # fmt: skip
    train(ROOT / "configs/text_classification.py", tmp_path / "run", given)
    found = [row for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert all("loss/more.csv" in row and row["soft_loss"] > 0 for row in found)


@pytest.mark.slow
def test_images_words_and_a_bridged_teacher(trained, world, tmp_path):
    pictures = arguments(
        trained, tmp_path / "pictures", f"--config.distill.teacher={trained}/pictures",
        "--config.data.augment=none", model="vit",
    )  # fmt: skip
    assert train.main(pictures) == 0
    wide = arguments(
        trained, tmp_path / "bridged", f"--config.distill.teacher={tmp_path}/bridge", model="bert"
    )
    bridge = arguments(
        trained, tmp_path / "bridge", "--config.model.implementation=bridge", model="bert"
    )
    assert train.main(bridge) == 0 and train.main(wide) == 0
    given = {
        "model.path": str(world / "one_block"), "data.train": tagged.write(tmp_path / "t.conll"),
        "data.max_shapes": 1, "train.compile_cache": "", "train.batch_size": 8, "train.steps": 8,
        "optim.lr": 1e-2, "parallel.mode": "jit", "log.tensorboard": False, "train.log_every": 1,
        "data.max_length": 8, "eval.batch_size": 32,
    }  # fmt: skip
    config = ROOT / "configs/token_classification.py"
    train(config, tmp_path / "short", given)
    given |= {"distill.teacher": str(tmp_path / "short"), "data.max_length": 64}
    train(config, tmp_path / "long", given)
    split = taught(tmp_path, task="token_classification", **{**given, "eval.metric": "loss"})
    unread = np.isnan(split.targets.logits).any(1)
    assert 0 < unread.sum() < len(unread)
    model = load_inference(tmp_path / "short").reading(split.source)
    said = model.predict(split)
    np.testing.assert_array_equal(said["seen"], ~unread)
    tags = split.targets.logits[~unread].argmax(1)
    np.testing.assert_array_equal(tags, said["tag"][~unread])
    for run in ("pictures", "bridged", "long"):
        found = [row for row in rows(tmp_path / run) if row["kind"] == "train"]
        assert all(np.isfinite(row["soft_loss"]) and row["soft_loss"] > 0 for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_label", "text_regression", "multiple_choice"])
def test_every_other_task_begins_at_no_distance_from_itself(tmp_path, task):
    tiny.bert(tmp_path / "bert", blocks=1, dropout=0.0)
    writers = {"multi_label": sets, "text_regression": numbers, "multiple_choice": choices}
    writers[task].write(tmp_path / "train.csv", 96)
    given = fields(
        tmp_path, "train.csv", 16, **{"train.steps": 8, "train.log_every": 1, "optim.lr": 1e-2}
    )
    config = ROOT / f"configs/{task}.py"
    teacher = train(config, tmp_path / "run", given)
    given |= {"distill.teacher": str(tmp_path / "run")}
    train(config, tmp_path / "same", {**given, "model.path": str(teacher.best)})
    train(config, tmp_path / "new", {**given, "distill.weight": 1.0, "train.steps": 40})
    soft = [
        [row["soft_loss"] for row in rows(tmp_path / run) if row["kind"] == "train"]
        for run in ("same", "new")
    ]
    assert abs(soft[0][0]) < 1e-6 < soft[0][-1]
    assert soft[1][-1] < 0.5 * soft[1][0]
