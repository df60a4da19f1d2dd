"""Few labelled texts, from pairs of them to a classifier of vectors, held to PyTorch and scikit-learn."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from jaxft import evaluate, export, load, optim, predict, train
from jaxft.api import make_config
from jaxft.data.tokenizer import load_tokenizer
from jaxft.experiment.build import build
from jaxft.experiment.prepared import prepare, task_at
from jaxft.experiment.steps import devices
from jaxft.models.checkpoint import sentence_transformers
from jaxft.tasks.few_shot import fit_classifier
from tests import tiny, worlds
from tests.tasks.gradients import assert_same, of_first_update
from tests.tasks.test_embedding import plain_base, vectors

CONFIG = worlds.ROOT / "configs/few_shot.py"
EACH = 15


def settings(folder):
    more = {"data.examples_per_class": EACH, "model.normalize": "yes"}
    return worlds.fields(folder, "train.csv", 16, **more)


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, and its data."""
    folder = tmp_path_factory.mktemp("few_shot")
    tiny.bert(folder / "bert", blocks=1, dropout=0.0)
    tiny.texts(folder / "train.csv", 90)
    tiny.texts(folder / "test.csv", 60, seed=9)
    more = {
        "data.test": str(folder / "test.csv"), "train.steps": 40, "optim.lr": 5e-3,
        "eval.every": "50%",
    }  # fmt: skip
    return folder, train(CONFIG, folder / "run", {**settings(folder), **more})


def training_rows(folder):
    """(texts, labels) of the examples that the run has learned from."""
    targets = prepare(make_config(CONFIG, settings(folder))).splits.train.targets
    texts = read(folder / "train.csv")
    return [texts[row]["text"] for row in targets.rows], [targets.names[i] for i in targets.ids]


def scored(directory, texts):
    """(names by class number, logits) of an export, by PyTorch and numpy: what docs/tasks.md says."""
    head = load_file(directory / "sentence_classifier.safetensors")
    found = np.asarray(vectors(directory, texts))
    names = json.loads((directory / "config.json").read_text())["id2label"]
    logits = found @ head["sentence_classifier.weight"].T + head["sentence_classifier.bias"]
    return [names[str(i)] for i in range(len(names))], logits


def test_few_rows_are_enough_and_the_head_is_that_of_scikit_learn(world):
    folder, result = world
    texts, labels = training_rows(folder)
    assert len(texts) == 3 * EACH
    model = LogisticRegression(max_iter=1000).fit(np.asarray(vectors(result.best, texts)), labels)
    test = [row["text"] for row in read(folder / "test.csv")]
    expected = model.predict_proba(np.asarray(vectors(result.best, test)))
    found = load(result.directory).predict(test)
    for one, row in zip(found, expected, strict=True):
        own = [one.probabilities[name] for name in model.classes_]
        np.testing.assert_allclose(own, row, atol=2e-4)
    truth = [row["label"] for row in read(folder / "test.csv")]
    accuracy = np.mean([one.label == label for one, label in zip(found, truth, strict=True)])
    assert result.test["accuracy"] == pytest.approx(accuracy) and accuracy > 0.5


def test_an_export_is_read_by_numpy_by_jaxft_and_as_its_run(world, tmp_path):
    folder, result = world
    test = [row["text"] for row in read(folder / "test.csv")]
    run, exported = load(result.directory), load(result.best)
    np.testing.assert_array_equal(run.logits(test), exported.logits(test))
    names, logits = scored(result.best, test)
    assert list(exported.labels) == names
    np.testing.assert_allclose(exported.logits(test), logits, atol=1e-4)
    for name, model in (("a", result.directory), ("b", result.best)):
        predict.main([
            "predict", f"--run={model}", f"--input={folder}/test.csv", f"--output={tmp_path}/{name}.csv",
        ])  # fmt: skip
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert evaluate(result.best, folder / "test.csv")["accuracy"] == result.test["accuracy"]
    again = tmp_path / "out"
    export.main(["export", f"--run={result.directory}", f"--output={again}"])  # without the data
    for name in ("sentence_classifier.safetensors", "model.safetensors"):
        assert (result.best / name).read_bytes() == (again / name).read_bytes()
    body = load_file(result.best / "model.safetensors")
    assert not any("sentence_classifier" in name for name in body)
    config = json.loads((result.best / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert "temperature" in config["fitted_on_evaluation"]
    page = result.report.read_text()
    assert "confus" in page.lower() and "fitted to the training rows" in page
    assert (result.summary["initialised"], len(result.summary["fitted"])) == ([], 2)
    assert "cross-entropy of the classifier" in page  # has an axis of its own


def test_a_certificate_is_of_the_classifier_too(world, tmp_path, capsys):
    _, result = world
    argv = ["export", f"--run={result.directory}", f"--output={tmp_path / 'out'}", "--verify=8"]
    assert export.main(argv) == 0
    assert "the classifier read back: logits differ by at most 0 " in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "certificate.json").read_text())["classifier"]
    assert found["exported"]["largest difference"] == 0 < found["largest logit"]


def test_the_first_loss_is_that_of_pytorch(world):
    folder, _ = world
    texts, labels = training_rows(folder)
    prepared = prepare(make_config(CONFIG, settings(folder)))
    from jaxft.data.pairs import PairSampler

    pairing = prepared.task.pairing(prepared.splits.train.targets)
    assert prepared.length.epoch == -(-pairing.count // 16)
    first, second = np.divmod(PairSampler(pairing, 16, 0)(0)[0], len(texts))
    own = [vectors(plain_base(folder), [texts[i] for i in of]) for of in (first, second)]
    wanted = torch.tensor(
        [float(labels[i] == labels[j]) for i, j in zip(first, second, strict=True)]
    )
    loss = torch.nn.functional.mse_loss(torch.cosine_similarity(*own), wanted)
    found = of_first_update(CONFIG, settings(folder))
    assert found[0] == pytest.approx(loss.item(), rel=1e-4)
    assert not any("sentence_classifier" in path for path in found[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data__pack": False},
        {"train__accumulate": 4},
        {"parallel__mode": "shard", "train__accumulate": 2},
        {"parallel__mode": "pmap"},
    ],
)
def test_the_gradient_is_the_same_however_the_batch_is_cut(world, changes):
    expected = of_first_update(CONFIG, settings(world[0]))
    assert_same(of_first_update(CONFIG, settings(world[0]), **changes), expected)


@pytest.mark.slow
def test_the_head_is_fitted_to_what_is_kept_of_a_frozen_prefix(world, tmp_path):
    heads = {}
    for mode in ("on", "off"):
        more = {"optim.freeze_below": 0, "data.cache_prefix": mode}
        prepared = prepare(make_config(CONFIG, {**settings(world[0]), **more}))
        run, state = build(prepared, devices(prepared.config), cache=str(tmp_path))
        fitting = run.fitting(1)
        assert ("after_block_0" in fitting.batches[0]) == (mode == "on")
        heads[mode] = optim.by_path(fitting(prepared.task, state, state.whole).stats)
    assert heads["on"].keys() == heads["off"].keys() != set()
    for path, value in heads["off"].items():
        np.testing.assert_allclose(heads["on"][path], value, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        ("--config.parallel.mode=jit",),
        ("--config.parallel.mode=pmap",),
        ("--config.parallel.mode=shard", "--config.optim.average=ema"),
        (
            "--config.optim.wise_ft=0.5",
            "--config.data.cache_prefix=on",
            "--config.optim.freeze_below=0",
        ),
    ],
)
def test_a_run_killed_and_continued_ends_bitwise_equal(world, tmp_path, extra):
    """Also its head, which follows from the weights that are evaluated."""
    folder, _ = world

    def arguments(workdir):
        fields = {
            **settings(folder), "train.steps": 12, "eval.every": "4 steps", "eval.batch_size": 16,
            "checkpoint.every_steps": 3, "model.dropout": 0.1, "train.log_every": 1,
        }  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        return ["jaxft.train", f"--config={CONFIG}", f"--workdir={workdir}", *flags, *extra]

    assert train.main(arguments(tmp_path / "whole")) == 0
    for step in (5, 10):
        worlds.killed_at(step, arguments(tmp_path / "broken"))
    assert train.main(arguments(tmp_path / "broken")) == 0
    worlds.assert_same_weights(tmp_path / "broken", tmp_path / "whole")
    assert worlds.timeless(tmp_path / "broken") == worlds.timeless(tmp_path / "whole")
    heads = [
        load_file(tmp_path / run / "best/sentence_classifier.safetensors")
        for run in ("broken", "whole")
    ]
    for name, array in heads[0].items():
        np.testing.assert_array_equal(array, heads[1][name])
    # The head is of the weights that were exported.
    texts, labels = training_rows(folder)
    model = LogisticRegression(max_iter=1000)
    model.fit(np.asarray(vectors(tmp_path / "whole/best", texts)), labels)
    np.testing.assert_allclose(
        heads[1]["sentence_classifier.weight"], model.coef_, atol=2e-3 * np.abs(model.coef_).max()
    )
    if "freeze" in extra[-1]:
        ours = load_file(tmp_path / "whole/best/model.safetensors")
        base = load_file(folder / "bert/model.safetensors")
        name = "bert.embeddings.word_embeddings.weight"
        assert ours[name].tobytes() == base[name].tobytes()


@pytest.mark.slow
def test_training_goes_on_from_an_export_and_vectors_may_be_left_as_they_are(world, tmp_path):
    folder, result = world
    assert task_at(make_config(CONFIG, {}), str(result.best)).normalize == "yes"
    assert task_at(make_config(CONFIG, {}), str(folder / "bert")).normalize == "no"
    more = {**settings(folder), "model.path": str(result.best), "train.steps": 2}
    first = train(CONFIG, tmp_path / "a", {**more, "model.normalize": "no", "model.pooling": "cls"})
    auto = {**more, "model.path": str(first.best), "model.normalize": "auto"}
    again = train(CONFIG, tmp_path / "b", auto)
    for run in (first, again):
        assert sentence_transformers.pooling_of(str(run.best)) == "cls"
        assert not sentence_transformers.normalizes(str(run.best))
    text = training_rows(folder)[0][0]
    ids = load_tokenizer(str(again.best)).encode(text).ids
    body = transformers.AutoModel.from_pretrained(again.best).eval()
    with torch.no_grad():
        vector = body(torch.tensor([ids])).last_hidden_state[0, 0].numpy()
    head = load_file(again.best / "sentence_classifier.safetensors")
    logits = vector @ head["sentence_classifier.weight"].T + head["sentence_classifier.bias"]
    np.testing.assert_allclose(again.load().logits([text])[0], logits, atol=1e-4)
    # Other tasks take the body, and leave the classifier.
    more = {**settings(folder), "model.path": str(result.best), "train.steps": 1}
    more["model.normalize"] = "auto"
    train(worlds.ROOT / "configs/text_classification.py", tmp_path / "c", more)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("c", [0.1, 10.0])
def test_the_softmax_of_the_head_is_scikit_learns(classes, c):
    random = np.random.default_rng(0)
    ids = np.arange(40) % classes
    features = (random.normal(size=(40, 5)) + ids[:, None]).astype(np.float32)
    kernel, bias = fit_classifier(features, ids, c)
    assert kernel.dtype == bias.dtype == np.float32 and kernel.shape == (5, classes)
    logits = features @ kernel + bias
    found = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    model = LogisticRegression(C=c, max_iter=1000).fit(features.astype(np.float64), ids)
    np.testing.assert_allclose(found, model.predict_proba(features), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.label_smoothing": 0.1}, "train.label_smoothing=0.1 has no meaning"),
        ({"train.focal_gamma": 1.0}, "train.focal_gamma=1.0 has no meaning"),
        ({"train.class_weights": "balanced"}, "train.class_weights='balanced' has no meaning"),
        ({"data.token_dropout": 0.1}, "data.token_dropout=0.1 has no meaning"),
        ({"train.temperature": 0.1}, "train.temperature=0.1 has no meaning"),
        ({"data.pair_sampling": "uniqe"}, "data.pair_sampling='uniqe' is not one of .*'unique'"),
        ({"data.pair_sampling": "unique", "data.pair_iterations": 5}, "needs config.data.pair_sampling"),
        ({"task": "text_classification", "data.pair_iterations": 5}, "data.pair_iterations=5 has no meaning"),
        ({"data.classes": ("good",)}, "good"),
        ({"data.examples_per_class": 500}, "the smallest class has"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(CONFIG, tmp_path / "run", {**settings(world[0]), **changes})
    assert "\n" not in str(caught.value)


def test_a_row_a_class_is_enough_to_begin_with(world):
    """The only pair that is alike is then a row with itself."""
    prepared = prepare(make_config(CONFIG, {**settings(world[0]), "data.examples_per_class": 1}))
    pairing = prepared.task.pairing(prepared.splits.train.targets)
    assert pairing.there == pairing.drawn == (3, 3)
    assert Path(prepared.directory).is_dir()
