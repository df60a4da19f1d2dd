"""Whole runs of bridged models: trained, killed, in every parallel mode, loaded by transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxft import load as jaxft_load
from jaxft import select, train
from jaxft.models import hf, load_architecture
from jaxft.training.logs import Logs
from tests import tiny
from tests.bridge.check_writing import same_texts
from tests.bridge.torch_reference import CASES

CONFIGS = Path(__file__).parents[2] / "configs"
COMMON = {
    "train": {"compile_cache": "", "batch_size": 8, "steps": 6, "log_every": 2},
    "optim": {"freeze_below": 1, "layer_decay": 0.8, "lr": 1e-2, "schedule": "constant"},
    "eval": {"every": "100%", "batch_size": 8},
    "log.tensorboard": False,
    "parallel.mode": "jit",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Data, and a checkpoint of each case with a tokenizer or a preprocessor; no classifier in it."""
    place = tmp_path_factory.mktemp("bridged")
    tiny.texts(place / "train.csv")
    tiny.texts(place / "test.csv", 30, seed=9)
    tiny.images(place / "images")
    bert = Path(tiny.bert(place / "bert"))
    for name in ("distilbert", "llama", "deberta-v2", "convnext"):
        checkpoint(place, name, bert)
    return place


def checkpoint(place, name, bert):
    """Random weights, as transformers would save the model without a head."""
    model_type, kind, settings = CASES[name]
    config = transformers.AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(place / name)
    if kind == "image":
        size = {"height": 32, "width": 32}
        (place / name / "preprocessor_config.json").write_text(json.dumps({
            "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size,
            "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        }))  # fmt: skip
    else:
        shutil.copy(bert / "tokenizer.json", place / name)
        said = {"tokenizer_class": "PreTrainedTokenizerFast"}  # and not the model type's own
        (place / name / "tokenizer_config.json").write_text(json.dumps(said))


def run(folder, name, workdir, **changes):
    """A run of a case, to its end; the directory of its best model."""
    image = CASES[name][1] == "image"
    data = {"model.path": str(folder / name), "model.implementation": "bridge",
            "data.train": str(folder / ("images" if image else "train.csv"))}  # fmt: skip
    config = CONFIGS / f"{'image' if image else 'text'}_classification.py"
    text = {} if image else {"data.test": str(folder / "test.csv"), "data.max_shapes": 2}
    train(config, workdir, {**COMMON, **data, **text, **changes})
    return workdir / "best"


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "deberta-v2", "convnext")]


@pytest.mark.parametrize("name", ["distilbert", *SLOW])
def test_a_run_ends_in_a_checkpoint_that_transformers_loads(folder, tmp_path, name):
    best = run(folder, name, tmp_path / "run")
    before, after = (
        load_file(folder / name / "model.safetensors"),
        load_file(best / "model.safetensors"),
    )
    labels = 2 if name == "convnext" else 3
    kind = {"image": transformers.AutoModelForImageClassification}
    auto = kind.get(CASES[name][1], transformers.AutoModelForSequenceClassification)
    model, report = auto.from_pretrained(best, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.num_labels == labels and not model.config.id2label[0].startswith("LABEL")
    architecture = load_architecture(
        str(best), num_labels=labels, head=CASES[name][1], implementation="bridge"
    )
    # What was frozen has the bytes of the source; what was not has moved.
    base, moved = architecture.naming.base, 0
    for path, depth in architecture.depths.items():
        tensor = path.replace("/", ".")
        source = before.get(tensor.removeprefix(f"{base}."))
        if depth <= 1:
            assert source is not None and source.tobytes() == after[tensor].tobytes(), path
        else:
            moved += source is not None and not np.array_equal(source, after[tensor])
    assert moved > 3
    params, _ = hf.read_params(str(best), architecture, key=jax.random.key(0))
    if name == "convnext":
        pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
        given = {"pixel_values": torch.from_numpy(pixels)}
        batch = {"pixel_values": jnp.asarray(pixels).transpose(0, 2, 3, 1)}
    else:
        ids = np.random.default_rng(0).integers(4, 30, (1, 9))
        given = {"input_ids": torch.from_numpy(ids)}
        row = jnp.asarray(ids, jnp.int32)
        batch = {"input_ids": row, "segment_ids": row * 0 + 1, "token_type_ids": row * 0}
    with torch.no_grad():
        theirs = model.eval()(**given).logits.numpy()
    ours = np.asarray(architecture.apply(params, batch)["logits"]).reshape(theirs.shape)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_native_and_bridged_candidates_are_ranked_together(folder, tmp_path, capsys):
    """And what cannot be traced is listed with the reason. Some weights, not all, are of the task."""
    bert = folder / "bert"
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"embedding_size": 16, "intermediate_size": 48, "max_position_embeddings": 64}
    names = {
        "albert": sizes | more,
        "xlm": {"emb_dim": 32, "n_layers": 1, "n_heads": 2, "n_words": 60},
    }
    for model_type, settings in names.items():
        CASES[model_type] = (model_type, "sequence", settings)
        checkpoint(tmp_path, model_type, bert)
        del CASES[model_type]
    config = CONFIGS / "text_classification.py"
    models = [str(bert), str(tmp_path / "xlm"), str(tmp_path / "albert")]
    out = tmp_path / "out"
    assert 0 == select.main([
        "select", f"--config={config}", f"--models={','.join(models)}", f"--output={out}",
        f"--config.data.train={folder / 'train.csv'}", "--rows=60", "--config.eval.batch_size=8",
    ])  # fmt: skip
    found = json.loads((out / "select.json").read_text())
    assert {one["name"] for one in found["candidates"]} == {models[0], models[2]}
    for one in found["candidates"]:
        assert one["flops"] > 0 and one["peak_bytes"] > 4 * one["parameters"]
        assert len(one["gradients"]) == len(one["weights"]) == len(one["blocks"])
        assert all(signal["noise"] > 0 for signal in one["gradients"])
    (left,) = found["unranked"]
    assert left["name"] == models[1] and "cannot be traced into JAX" in left["why"]
    assert f"{models[1]} is not ranked: XLMFor" in capsys.readouterr().out
    assert left["why"] in (out / "select.html").read_text()


def test_a_decoder_goes_on_as_that_of_transformers(tmp_path):
    same_texts("opt", tmp_path)


def test_no_tensor_axis(folder, tmp_path):
    changes = {"parallel.mode": "shard", "parallel.tensor": 2}
    with pytest.raises(
        ValueError, match="parallel.tensor=2, but no matrix product of DistilBertFor"
    ):
        run(folder, "distilbert", tmp_path / "run", **changes)


class Crash(BaseException):
    """Stands for a kill: nothing in the program catches it."""


@pytest.mark.slow
def test_a_run_killed_at_a_step_ends_in_the_same_bits(folder, tmp_path, monkeypatch):
    saving = {"checkpoint.every_steps": 2}
    whole = run(folder, "distilbert", tmp_path / "whole", **saving)
    original = Logs.train

    def crash(self, at, *rest):
        original(self, at, *rest)
        if at == 4:
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Logs, "train", crash)
        run(folder, "distilbert", tmp_path / "broken", **saving)
    resumed = run(folder, "distilbert", tmp_path / "broken", **saving)
    theirs = load_file(whole / "model.safetensors")
    for name, x in load_file(resumed / "model.safetensors").items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)
    # And a finished run predicts, with the classes of its data.
    text = ["the day was bright", "it is a sour meal and so dark"]
    alone = [jaxft_load(resumed.parent).logits([one])[0] for one in text]
    np.testing.assert_allclose(jaxft_load(resumed).logits(text), alone, atol=1e-6)


@pytest.mark.slow
def test_the_parallel_modes_agree(folder, tmp_path):
    """Without dropout, whose masks pmap draws on each device."""
    found = {}
    for mode in ("jit", "shard", "pmap"):
        changes = {"parallel.mode": mode, "model.dropout": 0.0}
        if mode == "shard":
            changes["parallel.fsdp"] = 2
        best = run(folder, "distilbert", tmp_path / mode, **changes)
        found[mode] = load_file(best / "model.safetensors")
    for mode in ("shard", "pmap"):
        for name, x in found["jit"].items():
            np.testing.assert_allclose(found[mode][name], x, atol=2e-5, err_msg=f"{mode} {name}")
