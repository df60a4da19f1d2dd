"""Multiple choice from rows to the exported checkpoint, and the many ways in which choices are given."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from jaxft import evaluate, export, load, predict, train
from jaxft.data.choices import choice_fault, find_choice_columns, parts_of, read_choices
from jaxft.data.files import table
from tests import tiny, worlds
from tests.tasks.gradients import assert_same, of_first_update

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/multiple_choice.py"
HEADS = ("sent1", "sent2", "ending0", "ending1", "ending2", "label")


def write(path, rows, *, seed=0, kind="good"):
    """As SWAG; the right ending is the one that begins with a word of this kind."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", *HEADS))
        for number in range(rows):
            kinds = rng.sample(["good", "bad", "odd"], 3)
            endings = [
                " ".join(
                    [rng.choice(tiny.WORDS[k]), *rng.choices(tiny.FILLER[:8], k=rng.randint(0, 4))]
                )
                for k in kinds
            ]
            context = " ".join(rng.choices(tiny.FILLER[:8], k=rng.randint(1, 6)))
            right = kinds.index(kind)
            writer.writerow((number, context, "it is very", *endings, right))
    return str(path)


def settings(folder):
    return worlds.fields(folder, "train.csv", 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, and its data."""
    folder = tmp_path_factory.mktemp("choices")
    tiny.bert(folder / "bert", blocks=1, dropout=0.0)
    write(folder / "train.csv", 300)
    more = {
        "data.test": write(folder / "test.csv", 40, seed=9), "train.steps": 60,
        "optim.lr": 1e-2, "eval.every": "100%",
    }  # fmt: skip
    return folder, train(CONFIG, folder / "run", {**settings(folder), **more})


def test_it_learns_to_choose(world):
    folder, result = world
    assert result.test["accuracy"] > 0.9 and result.test["choices"] == 3
    page = result.report.read_text()
    assert "by guessing it would be in 33.3%" in page and "Confusion matrix" in page


def test_logits_and_loss_are_those_of_transformers(world):
    folder, result = world
    model = transformers.AutoModelForMultipleChoice.from_pretrained(result.best).eval()
    assert type(model).__name__ == "BertForMultipleChoice"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(result.best / "tokenizer.json"), pad_token="[PAD]"
    )
    with (folder / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    given = tokenizer(
        [row["sent1"] for row in rows for _ in range(3)],
        [f"{row['sent2']} {row[f'ending{i}']}" for row in rows for i in range(3)],
        padding=True, return_tensors="pt", return_token_type_ids=True,
    )  # fmt: skip
    labels = torch.tensor([int(row["label"]) for row in rows])
    with torch.no_grad():
        out = model(**{k: v.reshape(40, 3, -1) for k, v in given.items()}, labels=labels)
    assert result.test["loss"] == pytest.approx(out.loss.item(), abs=1e-5)
    pairs = [(row["sent1"], row["sent2"], [row[f"ending{i}"] for i in range(3)]) for row in rows]
    for place in (result.directory, result.best):
        np.testing.assert_allclose(load(place).logits(pairs), out.logits.numpy(), atol=1e-5)
    found = load(result.directory).predict(pairs)
    assert [one.number for one in found] == out.logits.argmax(-1).tolist()
    assert sum(found[0].probabilities) == pytest.approx(1)


def test_rows_are_labelled_in_a_file(world):
    folder, result = world
    out = folder / "out.jsonl"
    predict.main(
        ["predict", f"--run={result.directory}", f"--input={folder}/test.csv", f"--output={out}"]
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = np.mean([row["predicted"] == row["label"] for row in rows])
    assert right == pytest.approx(result.test["accuracy"]) and len(rows[0]["probabilities"]) == 3
    found = evaluate(result.best, folder / "test.csv")
    assert found["accuracy"] == pytest.approx(result.test["accuracy"])


def test_an_export_is_held_to_its_run_and_to_pytorch(world, tmp_path):
    _, result = world
    export.main(["export", f"--run={result.directory}", f"--output={tmp_path}/out", "--verify=8"])
    found = json.loads((tmp_path / "out/certificate.json").read_text())
    assert found["exported"]["largest difference"] == 0
    assert found["pytorch"]["largest difference"] < 1e-4 * max(1, found["largest logit"])


@pytest.fixture(scope="module")
def unlearning(world):
    """What a trained model does not expect: choices whose features differ, and large gradients."""
    folder, result = world
    other = {"model.path": str(result.best), "data.train": write(folder / "b.csv", 60, kind="bad")}
    return {**settings(folder), **other}


@pytest.fixture(scope="module")
def expected(unlearning):
    return of_first_update(CONFIG, unlearning)


@pytest.mark.parametrize(
    "changes",
    [
        {"data__pack": False},
        {"parallel__mode": "shard", "train__accumulate": 2},
        pytest.param({"train__accumulate": 3}, marks=pytest.mark.slow),
        pytest.param({"parallel__mode": "pmap"}, marks=pytest.mark.slow),
    ],
)
def test_packing_accumulation_and_devices_change_no_loss_and_no_gradient(
    unlearning, expected, changes
):
    assert_same(of_first_update(CONFIG, unlearning, **changes), expected)


SWAG = {
    "label": [0, 1], "sent2": ["b", "b"], "sent1": ["a", "a"], "ending0": ["c", "c"],
    "ending1": ["d", "d"], "gold-source": ["x", "x"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "given", "found", "prompt", "choices"),
    [
        (SWAG, (), ("sent1", "sent2", "ending0", "ending1"), ["a", "b"], ["c", "d"]),
        ({"question": ["q"], "choices": [["c", "d"]]}, (), ("question", "choices"), ["q"], ["c", "d"]),
        (
            {"question": ["q"], "choices": [{"text": ["c", "d"], "label": ["A", "B"]}]},
            (), ("question", "choices"), ["q"], ["c", "d"],
        ),
        (
            {"article": ["a"], "question": ["q"], "options": ['["c", "d"]']},
            (), ("article", "question", "options"), ["a", "q"], ["c", "d"],
        ),
        (
            {"goal": ["g"], "sol1": ["c"], "sol2": ["d"]},
            (), ("goal", "sol1", "sol2"), ["g"], ["c", "d"],
        ),
        (
            {"x": ["q"], "option_a": ["c"], "option_b": ["d"], "answer": ["a"]},
            ("x", "option_a", "option_b"), ("x", "option_a", "option_b"), ["q"], ["c", "d"],
        ),
        ({"x": ["q"], "y": [["c", "d"]]}, ("x", "y"), ("x", "y"), ["q"], ["c", "d"]),
    ],
)  # fmt: skip
def test_choices_are_found_in_lists_and_in_columns(columns, given, found, prompt, choices):
    source = table("c.jsonl", columns)
    assert find_choice_columns(source, given, "label") == found
    assert parts_of(found, [source[0][name] for name in found]) == (prompt, choices)


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        ([0, 2, 1], ("0", "1", "2"), [0, 2, 1]),
        ([1, 3, 2], ("1", "2", "3"), [0, 2, 1]),
        (["1.0", "2", " 0"], ("0", "1", "2"), [1, 2, 0]),
        (["B", "A", "C"], ("A", "B", "C"), [1, 0, 2]),
        (["b", "a", "a"], ("a", "b", "c"), [1, 0, 0]),
        (["two", "one", "three"], ("0", "1", "2"), [1, 0, 2]),
    ],
)
def test_the_right_choice_is_a_number_a_letter_or_a_text(labels, names, ids):
    source = table("c", {"q": ["?"] * 3, "choices": [["one", "two", "three"]] * 3, "label": labels})
    found = read_choices(source, "label", ("q", "choices"))
    assert found.names == names and found.ids.tolist() == ids
    again = read_choices(source, "label", ("q", "choices"), names=names)
    assert again.ids.tolist() == ids


def test_keys_of_a_row_name_its_choices():
    choices = [{"text": ["x", "y"], "label": ["1", "2"]}, {"text": ["x", "y"], "label": ["A", "B"]}]
    source = table("arc", {"question": ["?"] * 2, "choices": choices, "answerKey": ["2", "A"]})
    assert read_choices(source, "answerKey", ("question", "choices")).ids.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"label": [0, 5, None]}, "'5' is none of the choices, which are called 0, 1; 2 rows"),
        ({"label": ["0", "", "1"]}, "line 2: column 'label': says of no choice that it is right"),
        ({"choices": [["a", "b"], ["a", "b"], ["a"] * 3]}, "line 3: 3 choices, where the first row has 2"),
        ({"choices": [["a", "b"], ["a"], ["a", "b"]]}, "line 2: column 'choices' holds 1 choices"),
        ({"choices": [["a", "b"], ["a", None], ["a", "b"]]}, "line 2: column 'choices' has no text .None."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(world, tmp_path, rows, message):
    columns = {"question": ["?"] * 3, "choices": [["a", "b"]] * 3, "label": [0, 1, 0], **rows}
    lines = [
        json.dumps(dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as caught:
        train(
            CONFIG,
            tmp_path / "run",
            {**settings(world[0]), "data.train": str(tmp_path / "c.jsonl")},
        )
    assert "\n" not in str(caught.value)


def test_what_are_no_choices_is_said():
    source = table("c", {"question": ["?"], "x": ["a"], "y": ["b"]})
    with pytest.raises(ValueError, match="no choices found among 'question', 'x', 'y'"):
        find_choice_columns(source, (), "")
    with pytest.raises(ValueError, match="has no column 'z'"):
        find_choice_columns(source, ("z",), "")
    odd = table("c", {"w": ["?"], "ending0": ["a"], "ending1": ["b"]})
    with pytest.raises(ValueError, match="are for one text or two, not for nothing"):
        find_choice_columns(odd, (), "")
    assert find_choice_columns(odd, ("w", "ending0", "ending1"), "") == ("w", "ending0", "ending1")
    assert "no list under 'text'" in choice_fault({"texts": []}) and not choice_fault(["a", "b"])
