"""Question answering from rows to the exported checkpoint, against the recipe of transformers."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from jaxft import evaluate, export, load, predict, train
from jaxft.analysis import answers as analysis
from jaxft.tasks.question_answering import QuestionAnswering
from tests import tiny, worlds
from tests.tasks.gradients import assert_same, of_first_update

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/question_answering.py"
LENGTH, STRIDE = 32, 8


def write(path, rows, *, seed=0, none=0.25):
    """'very' asks for the good word of a context, 'quite' for the bad one and the odd one after it."""
    rng = random.Random(seed)
    lines = []
    for number in range(rows):
        question = rng.choice(["very", "quite"])
        words = rng.choices(tiny.FILLER[:8], k=rng.randint(4, 50))
        bad = " ".join(rng.choice(tiny.WORDS[kind]) for kind in ("bad", "odd"))
        spans = {"very": rng.choice(tiny.WORDS["good"]), "quite": bad}
        if rng.random() < none:
            del spans[question]
        for span in spans.values():
            words.insert(rng.randrange(len(words) + 1), span)
        context = "  ".join(words)
        answer = spans.get(question)
        found = {
            "text": [answer] if answer else [],
            "answer_start": [context.index(answer)] if answer else [],
        }
        lines.append(
            json.dumps({"id": number, "question": question, "context": context, "answers": found})
        )
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def settings(folder):
    more = {"data.max_length": LENGTH, "data.stride": STRIDE}
    return worlds.fields(folder, "train.jsonl", 16, **more)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, and its data."""
    folder = tmp_path_factory.mktemp("questions")
    tiny.bert(folder / "bert", blocks=2, dropout=0.0)
    write(folder / "train.jsonl", 400)
    more = {
        "data.test": write(folder / "test.jsonl", 60, seed=9), "train.steps": 220,
        "optim.lr": 5e-3, "eval.every": "50%",
    }  # fmt: skip
    return folder, train(CONFIG, folder / "run", {**settings(folder), **more})


@pytest.fixture(scope="module")
def exported(world):
    """The exported model in PyTorch, and its tokenizer as transformers uses it."""
    _, result = world
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(result.best / "tokenizer.json"), cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]",
    )  # fmt: skip
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(result.best).eval()
    assert type(model).__name__ == "BertForQuestionAnswering"
    return tokenizer, model


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def recipe(exported, row):
    """The steps of the recipe for one question: windows, labels, logits, n-best spans, the score of none.

    Returns (best span and its score, score of none, losses of the windows).
    """
    tokenizer, model = exported
    windows = tokenizer(
        row["question"], row["context"], truncation="only_second", max_length=LENGTH, stride=STRIDE,
        return_overflowing_tokens=True, return_offsets_mapping=True, return_token_type_ids=True,
    )  # fmt: skip
    spans, none, losses = [], [], []
    for j, offsets in enumerate(windows["offset_mapping"]):
        parts = windows.sequence_ids(j)
        first, last = label(row["answers"], offsets, parts)
        given = {name: torch.tensor([windows[name][j]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            out = model(
                **given, start_positions=torch.tensor([first]), end_positions=torch.tensor([last])
            )
        losses.append(out.loss.item())
        starts, ends = (x[0].numpy() for x in (out.start_logits, out.end_logits))
        none.append(starts[0] + ends[0])
        for start in np.argsort(-starts)[:20]:
            for end in np.argsort(-ends)[:20]:
                if parts[start] == parts[end] == 1 and 0 <= end - start < 30:
                    place = offsets[start][0], offsets[end][1]
                    spans.append((float(starts[start] + ends[end]), place))
    score, (begin, end) = max(spans, key=lambda span: span[0])
    return row["context"][begin:end], score, min(none), losses


def label(answers, offsets, parts):
    """Tokens of the answer where this window holds it, else (0, 0)."""
    if not answers["text"]:
        return 0, 0
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    own = [i for i, part in enumerate(parts) if part == 1]
    if offsets[own[0]][0] > begin or offsets[own[-1]][1] < end:
        return 0, 0
    return (
        max(i for i in own if offsets[i][0] <= begin),
        min(i for i in own if offsets[i][1] >= end),
    )


def test_it_learns_to_answer_and_to_know_what_has_no_answer(world):
    folder, result = world
    assert result.test["exact_match"] > 0.8 and result.test["f1"] >= result.test["exact_match"]
    assert result.test["no_answer_accuracy"] > 0.8 and result.test["has_answer_f1"] > 0.7
    assert result.test["windows"] > result.test["examples"] == 60
    page = result.report.read_text()
    assert "without an answer" in page and "not wholly right" in page
    assert result.summary["epochs"] < result.summary["steps"] * 16 / 360  # they count windows


def test_loss_and_answers_are_those_of_the_recipe(world, exported):
    folder, result = world
    losses = []
    written = rows_of(folder / "run/predictions/test.jsonl")
    for row, ours in zip(rows_of(folder / "test.jsonl"), written, strict=True):
        text, score, none, own = recipe(exported, row)
        losses += own
        assert ours["no_answer"] == pytest.approx(none - score, abs=1e-4)
        said = "" if ours["no_answer"] > result.eval["null_threshold"] else text
        assert (ours["predicted"], ours["start"]) == (
            said, row["context"].index(said) if said else None
        )  # fmt: skip
    assert result.test["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert result.test["windows"] == len(losses)


def test_predictions_are_the_answers_as_they_stand_in_the_context(world):
    folder, result = world
    out = folder / "out.csv"
    predict.main(
        ["predict", f"--run={result.directory}", f"--input={folder}/test.jsonl", f"--output={out}"]
    )
    expected = [row["predicted"] for row in rows_of(folder / "run/predictions/test.jsonl")]
    import csv

    with out.open() as file:
        found = list(csv.DictReader(file))
    assert [row["predicted"] for row in found] == expected and "" in expected
    for row in found:
        start = row["start"]
        assert not start or row["context"][int(start) :].startswith(row["predicted"])
    pairs = [(row["question"], row["context"]) for row in rows_of(folder / "test.jsonl")]
    for model in (load(result.directory), load(result.best)):
        if model._inference.directory is None:  # a checkpoint does not say how it was read
            model._inference.config.data.stride = STRIDE
            encoder = model._inference.encoder
            object.__setattr__(encoder, "max_length", LENGTH)
            encoder.settings["data.stride"] = STRIDE
        assert [one.text for one in model.predict(pairs)] == expected
    with pytest.raises(ValueError, match="give pairs of texts: a question and its context"):
        load(result.directory).predict(["very"])
    assert evaluate(result.best, folder / "test.jsonl")["examples"] == 60


def test_an_export_is_held_to_its_run_and_to_pytorch(world, tmp_path):
    _, result = world
    export.main(["export", f"--run={result.directory}", f"--output={tmp_path}/out", "--verify=8"])
    found = json.loads((tmp_path / "out/certificate.json").read_text())
    assert found["exported"]["largest difference"] == 0
    assert found["pytorch"]["largest difference"] < 1e-4 * max(1, found["largest logit"])


@pytest.fixture(scope="module")
def expected(world):
    folder, _ = world
    return of_first_update(CONFIG, settings(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"data__pack": False},
        {"parallel__mode": "shard", "train__accumulate": 2},
        pytest.param({"train__accumulate": 3}, marks=pytest.mark.slow),
        pytest.param({"parallel__mode": "pmap"}, marks=pytest.mark.slow),
    ],
)
def test_packing_accumulation_and_devices_change_no_loss_and_no_gradient(world, expected, changes):
    folder, _ = world
    assert_same(of_first_update(CONFIG, settings(folder), **changes), expected)


@pytest.mark.parametrize(
    ("found", "answers", "exact", "f1"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("a black cat", ["the cat", "dog"], 0, 2 / 3),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["the"], 1, 1),
        ("Zoë’s café", ["zoë’s  café."], 1, 1),
        ("it's 3,000", ["its 3000"], 1, 1),
    ],
)
def test_scores_are_squads(found, answers, exact, f1):
    assert analysis.exact_and_f1(found, answers) == (exact, pytest.approx(f1))


def test_the_threshold_is_the_best_there_is():
    rng = np.random.default_rng(0)
    margin = rng.integers(-3, 4, 200).astype(float)
    answered = margin + rng.normal(0, 2, 200) < 0.5
    f1 = np.where(answered, rng.uniform(0, 1, 200), 0.0)
    grades = analysis.Graded(f1 > 0.5, f1, (~answered).astype(float))

    def worth(threshold):
        return np.where(margin > threshold, grades.empty, grades.f1).mean()

    best = analysis.best_threshold(margin, grades)
    assert worth(best) == max(worth(t) for t in (*np.unique(margin), -9.0))
    metrics = analysis.answer_metrics(grades, margin > best, answered)
    assert metrics["f1"] == pytest.approx(worth(best))
    share = answered.mean()
    assert metrics["f1"] == pytest.approx(
        share * metrics["has_answer_f1"] + (1 - share) * metrics["no_answer_accuracy"]
    )


def test_what_was_fitted_is_used_only_if_it_is_a_number():
    task = QuestionAnswering()
    assert task.fits({"f1": 1.0}) == {} and task.fitted({}, ()).threshold is None
    kept = task.fits({"f1": 1.0, "null_threshold": 0.5})
    assert task.fitted(json.loads(json.dumps(kept)), ()).threshold == 0.5
    for value in ("1", None, True, float("nan"), [1]):
        assert task.fitted({"null_threshold": value}, ()).threshold is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.stride": 40},
            "the question has so many tokens that 28 of config.data.max_length=32",
        ),
        (
            {"data.text": ("context",)},
            "two columns are needed, the question and the context, got 1",
        ),
        ({"data.text": ("question", "contxt")}, "has no column 'contxt'.*'context'"),
        ({"data.label": "id"}, "column 'id' has no answers .0."),
        ({"eval.metric": "f1_macro"}, "f1_macro.* is no metric of .*question_answering"),
        ({"train.label_smoothing": 0.1}, "label_smoothing=0.1 has no meaning"),
    ],
)
def test_a_mistake_is_one_line(world, tmp_path, changes, message):
    folder, _ = world
    with pytest.raises(ValueError, match=message) as caught:
        train(CONFIG, tmp_path / "run", {**settings(folder), **changes})
    assert "\n" not in str(caught.value)
