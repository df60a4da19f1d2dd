"""Language models from texts to the exported checkpoint: the next token, and masked ones."""

import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxft import evaluate, export, load, predict, train
from jaxft.config import default_config, override
from jaxft.data.documents import find_document_column, windows
from jaxft.data.files import table
from jaxft.data.tokenizer import load_tokenizer
from jaxft.experiment.encoder import Slicing, make_encoder
from jaxft.experiment.prepared import prepare
from jaxft.models import hf
from jaxft.training import step
from jaxft.training.gradient import MeanGradient
from tests import tiny

ROOT = Path(__file__).parents[2]
KINDS = {
    "causal": ("causal_lm", "AutoModelForCausalLM"),
    "masked": ("masked_lm", "AutoModelForMaskedLM"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def write(path, rows=80, *, seed=0, longest=40):
    """Texts of words that alternate between two lists, so that there is something to learn."""
    rng, lists = random.Random(seed), (tiny.FILLER, sum(tiny.WORDS.values(), []))
    with path.open("w") as file:
        for _ in range(rows):
            words = [rng.choice(lists[i % 2]) for i in range(rng.randint(1, longest))]
            file.write(json.dumps({"id": "x", "text": " ".join(words)}) + "\n")
    return str(path)


def config_of(folder, kind, **more):
    fields = {
        "task": KINDS[kind][0], "eval.metric": "loss", "model.path": str(folder / kind),
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "data.max_length": 24, "data.max_shapes": 1, "train.compile_cache": "", "optim.lr": 1e-2,
        "train.batch_size": 8, "train.steps": 40, "eval.every": "50%", "parallel.mode": "jit",
        "log.tensorboard": False, "optim.frozen": (".*(wpe|position_embeddings)/.*",), **more,
    }  # fmt: skip
    return override(default_config(), fields)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run of each kind, and the data."""
    folder = tmp_path_factory.mktemp("language")
    write(folder / "train.jsonl")
    write(folder / "test.jsonl", 30, seed=9)
    traces, original = [], step.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "jaxft.experiment.steps.train_step",
            lambda *args, **more: traces.append(1) or original(*args, **more),
        )
        results, counts = {}, {}
        for kind in KINDS:
            tiny.language_model(folder / kind, kind)
            before = len(traces)
            results[kind] = train(config_of(folder, kind), folder / f"run_{kind}")
            counts[kind] = len(traces) - before
    return folder, results, counts


# Against transformers, and under packing


def batches_of(folder, kind, **more):
    """(architecture, parameters, batches of the training data) of a run that was not begun."""
    config = config_of(folder, kind, **more)
    prepared = prepare(config)
    params, report = hf.read_params(
        prepared.directory, prepared.architecture, key=jax.random.key(0)
    )
    assert not report.initialised
    encoder = make_encoder(
        config, prepared.task.inputs, prepared.directory, prepared.architecture.limits,
        prepared.splits, None,
    )  # fmt: skip
    batches = encoder.training(prepared.splits.train, config, 4, Slicing(accumulate=2))
    return prepared, params, batches


def torch_sums(folder, kind, batch):
    """The loss that transformers' own model gives for each window alone, times its tokens; summed."""
    model = getattr(transformers, KINDS[kind][1]).from_pretrained(folder / kind)
    total = count = 0
    with torch.no_grad():
        for row, slot in zip(*np.nonzero(batch["index"] >= 0), strict=True):
            own = batch["segment_ids"][row] == slot + 1
            ids = torch.tensor(batch["input_ids"][row, own].astype(np.int64))[None]
            labels, predicted = ids, own.sum() - 1
            if kind == "masked":
                chosen = torch.tensor(batch["chosen"][row, own])[None]
                labels = torch.tensor(batch["original"][row, own].astype(np.int64))[None]
                labels, predicted = torch.where(chosen, labels, -100), int(chosen.sum())
            if predicted:
                total += float(model(input_ids=ids, labels=labels).loss.double()) * predicted
                count += predicted
    return total, count


@every_kind
def test_the_loss_is_that_of_transformers_and_packing_and_accumulation_change_nothing(world, kind):
    folder, *_ = world
    found = {}
    for name, pack, parts in (("packed", True, 1), ("alone", False, 1), ("in parts", True, 2)):
        prepared, params, batches = batches_of(folder, kind, **{"data.pack": pack})
        batch = batches[0]

        def loss_sum(params, part, key, prepared=prepared):
            total, weight = prepared.task.loss(prepared.architecture.apply(params, part), part, 0.0)
            return total, (weight, {})

        gradient = jax.jit(
            lambda p, b, f=loss_sum, n=parts: MeanGradient(n)(f, p, b, jax.random.key(0))
        )
        found[name] = gradient(params, batch)
        if name == "packed":
            assert (batch["segment_ids"].max(1) > 1).any()
            total, count = torch_sums(folder, kind, batch)
    assert found["packed"].weight == count
    assert float(found["packed"].loss) == pytest.approx(total / count, rel=1e-6)
    for other in ("alone", "in parts"):
        assert found[other].weight == count
        assert float(found[other].loss) == pytest.approx(total / count, rel=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            found[other].grads,
            found["packed"].grads,
        )


# Windows


def test_windows_share_one_token_so_that_each_is_predicted_once():
    for count in range(1, 12):
        ids = np.arange(count)
        made, begins = windows(ids, 4)
        parts = np.split(made, np.flatnonzero(begins == 0)[1:])
        assert [token for part in parts for token in part[1:]] == ids[1:].tolist()
        assert all(2 <= len(part) <= 4 for part in parts) or count == 1
        assert all(a[-1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
    assert len(windows(np.arange(0), 4)[0]) == 0


def test_a_document_ends_with_the_end_token_and_long_ones_are_read_whole(world, tmp_path):
    folder, results, _ = world
    tokenizer = load_tokenizer(str(folder / "causal"))
    texts = [json.loads(line)["text"] for line in (folder / "test.jsonl").read_text().splitlines()]
    own = [tokenizer.encode(text).ids for text in texts]
    # Each word is predicted but the first, and the end.
    assert results["causal"].test["tokens"] == sum(map(len, own))
    rows = [
        json.loads(x)
        for x in (folder / "run_causal/predictions/test.jsonl").read_text().splitlines()
    ]
    assert [row["tokens"] for row in rows] == list(map(len, own))
    record = json.loads((folder / "run_causal/source.json").read_text())
    count = record["training windows"]
    assert count > record["training rows"]
    first = json.loads((folder / "run_causal/metrics.jsonl").read_text().splitlines()[0])
    # The speed counts what a batch does: else that of one long document would be next to nothing.
    updates = first["step"] / np.ceil(count / 8)
    speed = first["examples_per_second"] * first["seconds"]
    assert speed == pytest.approx(updates * count, rel=0.02)
    size = sum(len(text.encode()) for text in texts)
    metrics = results["causal"].test
    assert metrics["bits_per_byte"] == pytest.approx(
        metrics["loss"] * metrics["tokens"] / np.log(2) / size
    )


def test_masked_windows_have_their_special_tokens_which_are_never_masked(world):
    folder, *_ = world
    _, _, batches = batches_of(folder, "masked")
    tokenizer = load_tokenizer(str(folder / "masked"))
    ends = {tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")}
    again = batches_of(folder, "masked")[2]
    for number in range(4):
        batch, same = batches[number], again[number]
        assert all((batch[name] == same[name]).all() for name in batch)
        assert batch["chosen"].any()
        for row, slot in zip(*np.nonzero(batch["index"] >= 0), strict=True):
            own = batch["segment_ids"][row] == slot + 1
            ids, chosen = batch["original"][row, own], batch["chosen"][row, own]
            assert {int(ids[0]), int(ids[-1])} == ends and not chosen[[0, -1]].any()
            assert (ids != tokenizer.token_to_id("[MASK]")).all() and own.sum() <= 24


# A run, its export, its predictions


@every_kind
def test_a_run_learns_keeps_what_is_frozen_and_exports_a_model_of_transformers(world, kind, capsys):
    folder, results, traces = world
    result, run = results[kind], folder / f"run_{kind}"
    assert traces[kind] == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evals = [line for line in lines if line.get("split") == "eval"]
    assert evals[-1]["loss"] < evals[0]["loss"] and evals[-1]["perplexity"] == pytest.approx(
        np.exp(evals[-1]["loss"])
    )
    assert 0 < result.test["accuracy"] < 1
    config = json.loads((result.best / "config.json").read_text())
    assert "id2label" not in config
    assert export.main(["export", f"--run={run}", f"--output={run}-out", "--verify=8"]) == 0
    said = capsys.readouterr().out
    certificate = json.loads((Path(f"{run}-out") / "certificate.json").read_text())
    assert certificate["pytorch"]["largest difference"] < 1e-4, said
    kept = certificate["untouched tensors"]
    assert kept and all(entry["identical"] for entry in kept.values())
    # The same loss, by transformers, of what was exported.
    model = getattr(transformers, KINDS[kind][1]).from_pretrained(result.best)
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.best)
    if kind == "causal":
        text = "the good film " * 3
        ids = torch.tensor([tokenizer(text).input_ids + [tokenizer.eos_token_id]])
        expected = float(model(input_ids=ids, labels=ids).loss.detach())
        answer = load(run).predict([text])[0]
        assert answer.loss == pytest.approx(expected, rel=1e-5)
        assert answer.perplexity == pytest.approx(np.exp(expected), rel=1e-4)
    assert evaluate(result.best, folder / "test.jsonl")["examples"] == 30
    again = evaluate(run, folder / "test.jsonl")
    assert again["loss"] == pytest.approx(result.test["loss"], rel=1e-5)
    page = (run / "report.html").read_text()
    assert "nats a token" in page and "Extremes" in page and "unexpected" not in page


@every_kind
def test_predict_writes_the_loss_of_each_text(world, tmp_path, kind):
    folder, *_ = world
    output = tmp_path / "out.jsonl"
    command = [
        "predict", f"--run={folder}/run_{kind}", f"--input={folder}/test.jsonl", f"--output={output}",
    ]  # fmt: skip
    assert predict.main(command) == 0 and predict.main(command) == 0  # also over its own output
    found = [json.loads(line) for line in output.read_text().splitlines()]
    path = folder / f"run_{kind}/predictions/test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(found[0]) == ["id", "text", "perplexity", "loss", "tokens"]
    assert [row["tokens"] for row in found] == [row["tokens"] for row in rows]
    np.testing.assert_allclose([r["loss"] for r in found], [r["loss"] for r in rows], atol=1e-5)


# Mistakes


def test_the_column_of_documents_is_found():
    assert find_document_column(table("t", {"story": ["a"]})) == ("story",)
    assert find_document_column(table("t", {"id": ["a"], "content": ["a"]})) == ("content",)
    with pytest.raises(ValueError, match="one column, got 2: a, b"):
        find_document_column(table("t", {"a": ["a"]}), ("a", "b"))


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("causal", {"data.label": "id"}, "data.label='id' has no meaning for .*causal_lm"),
        ("causal", {"eval.metric": "f1"}, "no metric of .*causal_lm.*loss, perplexity"),
        ("causal", {"data.text": ("txt",)}, "no column 'txt'.*did you mean 'text'"),
        ("causal", {"task": "masked_lm"}, "'masked' is not .* model_type 'gpt2'; .* causal_lm, instr"),
        ("masked", {"task": "causal_lm"}, "'causal' is not .* model_type 'bert'; .* masked_lm, embed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(world, tmp_path, kind, change, message):
    folder, *_ = world
    with pytest.raises(ValueError, match=message) as error:
        train(config_of(folder, kind, **change), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_mask_token_is_refused(world, tmp_path):
    folder, *_ = world
    tiny.bert(tmp_path / "bert", blocks=1)
    with pytest.raises(ValueError, match="no mask token that its model knows.*task='causal_lm'"):
        train(
            config_of(folder, "masked", **{"model.path": str(tmp_path / "bert")}), tmp_path / "run"
        )
