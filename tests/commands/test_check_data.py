"""jaxft.check_data: what was planted is found, data without faults are let be, and mistakes are one line."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxft import check_data
from jaxft.insight import extra
from jaxft.terminal.errors import run_command
from tests import tiny

CONFIGS = Path(__file__).parent.parent.parent / "configs"
TRAIN, EVAL = 240, 60


def sentences(rows: int, seed: int) -> list[tuple[str, str]]:
    """(text, label): eight to fourteen of 400 words, and one that tells the label."""
    spell = random.Random(0)
    words = [
        "".join(spell.choices("abcdefghiklmnoprstuvwy", k=spell.randint(3, 8))) for _ in range(400)
    ]
    draw, found = random.Random(seed), []
    for i in range(rows):
        label = list(tiny.WORDS)[i % 3]
        text = draw.choices(words, k=draw.randint(8, 14))
        text.insert(draw.randrange(len(text)), draw.choice(tiny.WORDS[label]))
        found.append((" ".join(text), label))
    draw.shuffle(found)
    return found


def write(path: Path, rows: list[tuple], heads: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heads, *rows])
    return path


def looked_at(
    folder: Path, train: Path, *more: str, task="text_classification"
) -> dict[str, list[dict]]:
    """What was found, by check; the command's status is 0."""
    assert check_data.main(argv(folder, train, *more, task=task)) == 0
    report = json.loads((folder / "out" / "data_report.json").read_text())
    found: dict[str, list[dict]] = {}
    for one in report["findings"]:
        found.setdefault(one["check"], []).append(one)
    return found


def argv(folder: Path, train: Path, *more: str, task="text_classification") -> list[str]:
    return [
        "check_data", f"--config={CONFIGS / task}.py", f"--config.data.train={train}",
        f"--output={folder / 'out'}", *more,
    ]  # fmt: skip


def test_data_without_faults_are_let_be(trained, tmp_path):
    train = write(tmp_path / "train.csv", sentences(TRAIN, 1))
    held = write(tmp_path / "eval.csv", sentences(EVAL, 2))
    more = (f"--config.data.eval={held}", f"--config.model.path={trained / 'run' / 'best'}")
    found = looked_at(tmp_path, train, *more)
    # The tokenizer of the test knows thirty words.
    assert [
        one["check"] for group in found.values() for one in group if one["level"] != "note"
    ] == ["unknown tokens"]
    assert "after block 1 of 1" in found["suspicious labels"][0]["summary"]
    assert found["truncation"][0]["cut"] == 0
    page = (tmp_path / "out" / "data_report.html").read_text()
    assert "<svg" in page and page.count("<h2>") > 4


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict[str, list[dict]]:
    """What is found in data of which each fault was put into other rows."""
    folder = tmp_path_factory.mktemp("planted")
    train, held = sentences(TRAIN, 1), sentences(EVAL, 2)
    other = {"good": "bad", "bad": "odd", "odd": "good"}
    held[3] = (train[200][0].upper() + "!", train[200][1])
    held[4] = (f"  {train[201][0]}.", train[201][1])
    held[5] = (train[202][0] + " xyz", train[202][1])
    held[6] = (train[203][0].replace("a", "e", 1), train[203][1])
    train[10] = (train[11][0], other[train[11][1]])
    train[20] = (train[20][0] + " cafÃ© itâ€™s", train[20][1])
    train[21] = (train[21][0] + " \ufffd", train[21][1])
    train[22] = ("a\x07" + train[22][0], train[22][1])
    train[23] = ("  ", train[23][1])
    train[24] = ("всё это написано совсем иначе", train[24][1])
    train[30] = (" ".join([train[30][0]] * 30), train[30][1])
    train[31] = (" ".join([train[31][0]] * 30), train[31][1])
    train = [(f"#q {t}" if y == "odd" and i % 2 else t, y) for i, (t, y) in enumerate(train)]
    rows = [(t, y, f"{'xyz'['gbo'.index(y[0])]}{i % 2}", i) for i, (t, y) in enumerate(train)]
    table = write(folder / "train.csv", rows, ("text", "label", "batch", "id"))
    held_file = write(folder / "eval.csv", held)
    return looked_at(
        folder, table, f"--config.data.eval={held_file}", f"--config.model.path={tiny.bert(folder / 'bert')}",
        "--config.model.scratch=true", "--config.data.max_length=40",
    )  # fmt: skip


def test_planted_duplicates_are_found(planted):
    assert planted["duplicates across splits"][0]["rows"] == [3, 4]
    assert planted["duplicates across splits"][0]["level"] == "serious"
    across = planted["near duplicates across splits"][0]["pairs"]
    assert {(pair[1], pair[3]) for pair in across} == {(202, 5), (203, 6)}
    assert planted["conflicting labels"][0]["groups"] == [[["train", 10], ["train", 11]]]


def test_planted_damage_is_found(planted):
    for name, row in (
        ("mojibake", 20), ("replacement characters", 21), ("control characters", 22), ("empty texts", 23),
        ("scripts", 24),
    ):  # fmt: skip
        assert planted[name][0]["rows"] == [["train", row]], name
    cut = planted["truncation"][0]
    assert cut["cut"] == 2 and 0.05 < cut["lost"] < 0.3 and cut["level"] != "note"


def test_planted_leaks_are_found(planted):
    assert planted["words that leak the label"][0]["words"][0][:2] == ["#", "odd"]
    assert planted["words that leak the label"][0]["level"] != "note"
    assert list(planted["columns that leak the label"][0]["columns"]) == ["batch"]
    assert "order of the rows" not in planted


def test_images(tmp_path, trained):
    folder, draw = tmp_path / "images", np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("round", "square"):
            (folder / split / name).mkdir(parents=True)
            for i in range(30 if split == "train" else 8):
                size = (48, 40) if name == "round" else (40, 48)
                coarse = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
                image.save(folder / split / name / f"{i:02}.png")
    first = folder / "train" / "round" / "00.png"
    Image.open(first).save(folder / "train" / "round" / "01.png", optimize=True)
    Image.open(folder / "train" / "square" / "03.png").convert("RGB").resize((80, 96)).save(
        folder / "test" / "square" / "03.jpg", quality=60
    )
    Image.new("RGB", (48, 40), (9, 9, 9)).save(folder / "train" / "round" / "05.png")
    (folder / "train" / "square" / "06.png").write_bytes(first.read_bytes()[:200])
    found = looked_at(
        tmp_path, folder / "train", f"--config.data.eval={folder / 'test'}",
        task="image_classification",
    )  # fmt: skip
    assert found["duplicates"][0]["rows"] == [1]
    (pair,) = found["near duplicates across splits"][0]["pairs"]
    assert pair[:4] == ["train", 33, "eval", 11] and pair[4] > 0.9
    assert found["flat images"][0]["rows"] == [["train", 5]]
    assert found["unreadable images"][0]["rows"] == [["train", 36]]
    assert found["unreadable images"][0]["level"] == "serious"
    assert "width" in found["files that leak the label"][0]["columns"]
    assert (tmp_path / "out" / "data_report.html").read_text().count("<img") >= 3


def test_planted_faults_of_several_labels_are_found(tmp_path):
    draw, train = random.Random(3), []
    held = [(text, label) for text, label in sentences(EVAL, 2) if label != "odd"]
    for text, label in sentences(3 * TRAIN, 1):  # two labels where two words are there, else one
        more = draw.choice([*tiny.WORDS, "", ""])
        text += f" {draw.choice(tiny.WORDS[more])}" if more else ""
        train.append((text, ";".join(sorted({label, more} - {""}))))
    rows = list(train)
    rows[10] = (rows[11][0], "odd" if "odd" not in rows[11][1] else "bad;good;odd")
    planted = range(20, len(rows), 20)
    flipped = {}
    for i in planted:  # a label that is not there is given, or one that is there is not
        given = set(rows[i][1].split(";"))
        flipped[i] = draw.choice(list(tiny.WORDS))
        rows[i] = (rows[i][0], ";".join(sorted(given ^ {flipped[i]})))
    found = looked_at(
        tmp_path, write(tmp_path / "train.csv", rows),
        f"--config.data.eval={write(tmp_path / 'eval.csv', held)}", task="multi_label",
    )  # fmt: skip
    assert found["conflicting labels"][0]["groups"] == [[["train", 10], ["train", 11]]]
    doubts = [one for one in found["suspicious labels"][0]["rows"] if one[0] != 10]
    sure = [one for one in doubts if one[4]]
    for told, precise, share in ((doubts, 0.6, 0.7), (sure, 0.9, 0.25)):
        right = [one for one in told if flipped.get(one[0]) == one[1]]
        assert len(right) >= precise * len(told) and len(right) >= share * len(planted)
    assert found["suspicious labels"][0]["level"] == "warning"
    assert found["suspicious labels"][0]["known"] == sorted(tiny.WORDS)
    assert found["label balance"][0]["train"]["odd"] == sum("odd" in label for _, label in rows)
    drift = found["label drift"][0]
    assert (drift["level"], drift["labels"][0][0]) == ("serious", "odd")


def test_planted_faults_of_tags_are_found(tmp_path):
    draw = random.Random(4)
    tag = {word: f"B-{kind}" for kind, words in tiny.WORDS.items() for word in words}
    train = [
        [[word, tag.get(word, "O")] for word in text.split()] for text, _ in sentences(TRAIN, 1)
    ]
    planted = set()
    for i in range(20, TRAIN, 25):
        at = next(j for j, (_, tag) in enumerate(train[i]) if tag != "O")
        train[i][at][1] = (
            "O" if draw.random() < 0.5 else "B-bad" if train[i][at][1] == "B-odd" else "B-odd"
        )
        planted.add((i, at))
    train.append([[word, "O"] for word, _ in train[12]])
    text = "\n\n".join("\n".join(map(" ".join, words)) for words in train)
    (tmp_path / "train.conll").write_text(text + "\n")
    found = looked_at(
        tmp_path, tmp_path / "train.conll", "--config.data.text=tokens", "--config.data.label=tags",
        "--config.data.eval_fraction=0.1", task="token_classification",
    )  # fmt: skip
    assert len(found["conflicting labels"][0]["groups"]) == 1
    told = found["suspicious labels"][0]
    assert told["level"] == "warning"
    surely = {tuple(one[:2]) for one in told["rows"] if one[4] >= 0.9}
    assert len(surely & planted) >= 0.6 * 0.9 * len(planted)
    assert len(surely & planted) >= 0.9 * len(surely - {(TRAIN, j) for j in range(99)})
    assert set(found["label balance"][0]["train"]) == set(tiny.WORDS)


def test_other_tasks(tmp_path):
    draw = random.Random(0)
    rows = [(text, round(draw.gauss(3, 1), 3)) for text, _ in sentences(120, 1)]
    rows[7] = (rows[7][0], 3000)
    found = looked_at(
        tmp_path, write(tmp_path / "numbers.csv", rows, ("text", "score")), task="text_regression"
    )
    assert found["targets"][0]["rows"] == [7] and "suspicious labels" not in found
    words = "\n\n".join(
        "\n".join(f"{w} {'B-x' if len(w) == 5 else 'O'}" for w in text.split())
        for text, _ in sentences(40, 1)
    )
    (tmp_path / "words.conll").write_text(words + "\n\n" + words.split("\n\n")[0] + "\n")
    more = ("--config.data.eval_fraction=0.3",)
    found = looked_at(tmp_path, tmp_path / "words.conll", *more, task="token_classification")
    assert {"duplicates", "duplicates across splits"} & set(found)
    assert found["label balance"][0]["train"].keys() == {"x"}


def test_what_train_would_stop_at_is_told(tmp_path, capsys):
    rows = sentences(30, 1)
    rows[4] = (rows[4][0], "")
    train = write(tmp_path / "train.csv", rows)
    found = looked_at(tmp_path, train)
    assert found["rows without label or input"][0]["rows"] == [
        ["train.csv, line 6", "has no label"]
    ]
    assert check_data.main([*argv(tmp_path, train), "--strict"]) == 3
    capsys.readouterr()


def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch):
    train = write(tmp_path / "train.csv", sentences(30, 1))

    def refused(*more: str) -> str:
        assert run_command(check_data.main, argv(tmp_path, train, *more)) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("jaxft: error: ") and "\n" not in error, error
        return error

    assert "--rows=1" in refused("--rows=1")
    assert "no_such" in refused("--config.model.path=no_such")
    assert "did you mean" in refused("--config.data.text=tex")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data_report.json").write_text("{}")
    assert "left as it is" in refused()

    def missing(name: str):
        raise ImportError(name)

    monkeypatch.setattr(extra.importlib, "import_module", missing)
    assert "pip install 'jaxft[check]'" in refused()
