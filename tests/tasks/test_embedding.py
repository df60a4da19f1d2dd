"""Embeddings from pairs of texts to the exported checkpoint, however batches are cut."""

import csv
import json
import logging
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers
from scipy import stats

from jaxft import evaluate, export, load, predict, train
from jaxft.analysis import embeddings as analysis
from jaxft.models.checkpoint import sentence_transformers
from jaxft.tasks.embedding import Embedding
from tests import tiny, worlds
from tests.tasks.gradients import assert_same, of_first_update

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/embedding.py"
ALL = sum(tiny.WORDS.values(), [])


def sentence(rng, words):
    found = rng.choices(tiny.FILLER, k=rng.randint(0, 8)) + list(words)
    rng.shuffle(found)
    return " ".join(found)


def write_pairs(path, rows, *, seed=0, negatives=True):
    """Two sentences with the same two words, and one with one of them only."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("anchor", "positive", "negative")[: 2 + negatives])
        for _ in range(rows):
            first, second, third = rng.sample(ALL, 3)
            row = [
                sentence(rng, words) for words in ((first, second), (second, first), (first, third))
            ]
            writer.writerow(row[: 2 + negatives])
    return str(path)


def write_scored(path, rows, *, seed=0):
    """How many of two words two sentences share, of 2."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sentence1", "sentence2", "score"))
        for _ in range(rows):
            words, shared = rng.sample(ALL, 4), rng.randint(0, 2)
            other = words[:shared] + words[2 : 4 - shared]
            writer.writerow((sentence(rng, words[:2]), sentence(rng, other), shared))
    return str(path)


def settings(folder):
    return worlds.fields(folder, "pairs.csv", 32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run on pairs, and its data."""
    folder = tmp_path_factory.mktemp("embeddings")
    tiny.bert(folder / "bert", blocks=1, dropout=0.0)
    write_pairs(folder / "pairs.csv", 300)
    more = {
        "data.test": write_pairs(folder / "test.csv", 60, seed=9), "train.steps": 80,
        "optim.lr": 5e-3, "eval.every": "100%",
    }  # fmt: skip
    return folder, train(CONFIG, folder / "run", {**settings(folder), **more})


def vectors(directory, texts, pooling="mean"):
    """As sentence-transformers makes them: the averaged tokens, or the first, of unit length."""
    model = transformers.AutoModel.from_pretrained(directory).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(Path(directory) / "tokenizer.json"), pad_token="[PAD]"
    )
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1) if pooling == "mean" else hidden[:, 0]
    return torch.nn.functional.normalize(pooled)


def columns(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_pairs_find_each_other_after_training(world):
    folder, result = world
    assert result.test["recall_at_1"] > 0.5 and result.test["mrr"] > 0.65
    assert result.test["recall_at_1"] <= result.test["recall_at_5"] <= result.test["recall_at_10"]
    assert result.test["candidates"] == 120
    before = evaluate(plain_base(folder), folder / "test.csv")
    assert before["mrr"] < result.test["mrr"]
    assert "more similar to their own positive" in result.report.read_text()


def plain_base(folder):
    """The checkpoint as transformers saves one without a head, which embeds texts as it is."""
    path = folder / "base"
    if not path.exists():
        transformers.AutoModel.from_pretrained(folder / "bert").save_pretrained(path)
        (path / "tokenizer.json").write_bytes((folder / "bert/tokenizer.json").read_bytes())
    return path


def test_vectors_and_metrics_are_those_of_the_exported_model_in_pytorch(world):
    folder, result = world
    texts = columns(folder / "test.csv")
    a, p, n = (vectors(result.best, texts[name]) for name in ("anchor", "positive", "negative"))
    np.testing.assert_allclose(
        np.stack([one.vector for one in load(result.directory).predict(texts["anchor"])]),
        a,
        atol=1e-5,
    )
    logits = a @ torch.cat([p, n]).T / 0.05
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(60))
    assert result.test["loss"] == pytest.approx(loss.item(), rel=1e-4)
    rank = 1 + (logits > logits.diagonal()[:, None] + 1e-4).sum(1)
    assert result.test["mrr"] == pytest.approx((1 / rank).mean().item(), abs=1e-3)
    assert evaluate(result.best, folder / "test.csv")["mrr"] == pytest.approx(result.test["mrr"])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_vectors_are_written(world, suffix):
    folder, result = world
    texts = columns(folder / "test.csv")["anchor"]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    out = folder / f"out.{suffix}"
    predict.main(
        ["predict", f"--run={result.directory}", f"--input={folder}/texts.jsonl", f"--output={out}"]
    )
    if suffix == "parquet":
        found = pyarrow.parquet.read_table(out)["predicted_embedding"].to_pylist()
    elif suffix == "csv":
        found = [json.loads(cell) for cell in columns(out)["predicted_embedding"]]
    else:
        found = [json.loads(line)["predicted_embedding"] for line in out.read_text().splitlines()]
    np.testing.assert_allclose(found, vectors(result.best, texts), atol=1e-5)
    predict.main(  # over its own output
        ["predict", f"--run={result.directory}", f"--input={folder}/texts.jsonl", f"--output={out}"]
    )


def test_one_column_is_embedded_at_a_time(world):
    folder, result = world
    arguments = [
        f"--run={result.directory}",
        f"--input={folder}/test.csv",
        f"--output={folder}/o.jsonl",
    ]
    with pytest.raises(ValueError, match="texts of one column are embedded at a time"):
        predict.main(["predict", *arguments])
    predict.main(["predict", *arguments, "--text=positive"])
    with pytest.raises(ValueError, match="the model reads single texts, not pairs"):
        result.load().predict([("a", "b")])


def test_the_layout_of_sentence_transformers_stands_beside_the_checkpoint(world, tmp_path):
    folder, result = world
    modules = json.loads((result.best / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == [
        "Transformer", "Pooling", "Normalize"
    ]  # fmt: skip
    pooling = json.loads((result.best / "1_Pooling/config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] and pooling["word_embedding_dimension"] == 32
    assert (
        json.loads((result.best / "sentence_bert_config.json").read_text())["max_seq_length"] == 64
    )
    assert json.loads((result.best / "config.json").read_text())["architectures"] == ["BertModel"]
    # What is trained on from it pools alike, and an export may be replaced by the next.
    more = {
        **settings(folder), "model.path": str(result.best), "train.steps": 1,
        "data.train": write_scored(tmp_path / "s.csv", 60), "data.score_scale": 2.0,
        "eval.metric": "spearman",
    }  # fmt: skip
    first = train(CONFIG, tmp_path / "run", {**more, "model.pooling": "cls"})
    assert sentence_transformers.pooling_of(str(first.best)) == "cls"
    again = train(CONFIG, tmp_path / "again", {**more, "model.path": str(first.best)})
    assert sentence_transformers.pooling_of(str(again.best)) == "cls"
    texts = ["fine day", "cold"]
    found = np.stack([one.vector for one in again.load().predict(texts)])
    np.testing.assert_allclose(found, vectors(again.best, texts, "cls"), atol=1e-5)
    odd = tmp_path / "odd"
    (odd / "1_Pooling").mkdir(parents=True)
    (odd / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="pooling_mode_max_tokens is not implemented"):
        sentence_transformers.pooling_of(str(odd))


def test_an_export_is_held_to_its_run_and_to_pytorch(world, tmp_path, monkeypatch, caplog):
    _, result = world
    transformers.utils.logging.set_verbosity_warning()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    export.main(["export", f"--run={result.directory}", f"--output={tmp_path}/out", "--verify=8"])
    # Not of the pooler that the export lacks, and that nothing reads.
    assert not [record for record in caplog.records if record.name.startswith("transformers")]
    found = json.loads((tmp_path / "out/certificate.json").read_text())
    assert found["exported"]["largest difference"] == 0
    assert found["pytorch"]["largest difference"] < 1e-4 * max(1, found["largest logit"])


@pytest.fixture(scope="module")
def expected(world):
    return of_first_update(CONFIG, settings(world[0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"data__pack": False},
        {"parallel__mode": "shard", "train__accumulate": 2},
        {"parallel__mode": "pmap"},
        pytest.param({"train__accumulate": 4}, marks=pytest.mark.slow),
        pytest.param({"parallel__mode": "pmap", "train__accumulate": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_text_is_told_from_all_others_however_the_batch_is_cut(world, expected, changes):
    """Also over microbatches and devices: the gradient is that of the whole batch."""
    assert_same(of_first_update(CONFIG, settings(world[0]), **changes), expected)


def test_the_first_loss_is_that_of_pytorch(world, expected):
    folder, _ = world
    from jaxft.api import make_config
    from jaxft.data.sampler import Sampler
    from jaxft.experiment.prepared import prepare

    rows = prepare(make_config(CONFIG, settings(folder))).splits.train.targets.rows
    chosen = rows[Sampler(len(rows), 32, 0)(0)[0]]
    texts = columns(folder / "pairs.csv")
    a, p, n = (
        vectors(plain_base(folder), [texts[name][i] for i in chosen])
        for name in ("anchor", "positive", "negative")
    )
    loss = torch.nn.functional.cross_entropy(a @ torch.cat([p, n]).T / 0.05, torch.arange(32))
    assert expected[0] == pytest.approx(loss.item(), rel=1e-4)


def test_similarities_follow_scores(world, tmp_path):
    folder, _ = world
    changes = {
        **settings(folder), "data.train": write_scored(tmp_path / "s.csv", 300), "train.steps": 80,
        "data.test": write_scored(tmp_path / "t.csv", 60, seed=9), "data.score_scale": 2.0,
        "optim.lr": 5e-3, "eval.every": "100%",
    }  # fmt: skip
    result = train(f"{CONFIG}:scores", tmp_path / "run", changes)
    assert result.test["spearman"] > 0.6
    texts = columns(tmp_path / "t.csv")
    a, b = (vectors(result.best, texts[name]) for name in ("sentence1", "sentence2"))
    similar, scores = (a * b).sum(1).numpy(), np.array(texts["score"], float) / 2
    assert result.test["loss"] == pytest.approx(((similar - scores) ** 2).mean(), rel=1e-3)
    assert result.test["spearman"] == pytest.approx(
        stats.spearmanr(similar, scores).statistic, abs=1e-3
    )
    assert "rank as the scores do" in result.report.read_text()


def test_ranks_count_what_stands_before_the_own():
    rng = np.random.default_rng(0)
    given = rng.normal(size=(50, 3, 8)).astype(np.float32)
    given /= np.linalg.norm(given, axis=-1, keepdims=True)
    given[1, 1] = given[0, 1]  # the same text is not before itself
    rank, loss = analysis.ranks(given, 0.1)
    similar = given[:, 0] @ np.concatenate([given[:, 1], given[:, 2]]).T
    for i in range(50):
        assert rank[i] == 1 + (similar[i] > similar[i, i] + 1e-6).sum()
    np.testing.assert_allclose(
        loss,
        np.logaddexp.reduce(similar / 0.1, axis=1) - similar[:, :50].diagonal() / 0.1,
        rtol=1e-4,
    )
    constant = analysis.similarity_metrics(np.ones(3), np.arange(3.0))
    assert constant["spearman"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.text": ("anchor",)}, "at least an anchor and a positive are needed, and there is anchor"),
        ({"data.label": "negative", "data.text": ("anchor", "positive")}, "negative"),
        ({"eval.metric": "accuracy"}, "no metric of config.task='embedding'"),
        ({"eval.metric": "spearman"}, "such evaluation data as .*, which are recall_at_1, .* mrr, loss"),
        ({"train.label_smoothing": 0.1}, "has no meaning"),
        ({"train.beta": 0.3}, "train.beta=0.3 has no meaning for .*embedding"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(CONFIG, tmp_path / "run", {**settings(world[0]), **changes})
    assert "\n" not in str(caught.value)


def test_scores_that_are_no_cosines_are_refused(world, tmp_path):
    changes = {**settings(world[0]), "data.train": write_scored(tmp_path / "s.csv", 60)}
    with pytest.raises(ValueError, match=r"holds 2, .* give config.data.score_scale=2, by which"):
        train(f"{CONFIG}:scores", tmp_path / "run", changes)
    scaled = changes | {"data.score_scale": 2.0}
    with pytest.raises(
        ValueError, match="'mrr' is not among .*, which are spearman, pearson, loss"
    ):
        train(CONFIG, tmp_path / "run", scaled)
    assert Embedding().recognises({"architectures": ["BertModel"]})
    assert not Embedding().recognises({"architectures": ["GPT2LMHeadModel"]})
