"""Which labels of sets, and which tags of words, `check_data` doubts before and after some were made wrong.

    python benchmarks/planted_labels.py --task multi_label --train train.csv --eval dev.csv
    python benchmarks/planted_labels.py --task token_classification --train train.conll --eval dev.conll

Planted by seed 0: in 5 % of the rows one label is exchanged for another that the row has not, which is two
wrong answers of yes or no; or of 10 % of the entities the type is another, or (three times in as many types
plus two) none. CSV: text and label (a|b); CoNLL: a word and its tag, apart by a tab, in BIO.
"""

from __future__ import annotations

import csv
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxft.config import override
from jaxft.experiment.checking import check_data
from jaxft.terminal.config_file import load
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("task", "multi_label or token_classification", required=True),
    Flag("train", "CSV or CoNLL", required=True),
    Flag("eval", "the same", required=True),
)
_CONFIGS = Path(__file__).parent.parent / "configs"
_SURE = 0.9


def main(argv: Sequence[str]) -> int:
    """Print what is found, as it is and with what was planted."""
    values, _ = parse(argv, FLAGS)
    plant = {"multi_label": _labels, "token_classification": _tags}[values.task]
    with tempfile.TemporaryDirectory() as folder:
        wrong = plant(Path(values.train), path := Path(folder) / Path(values.train).name)
        for name, train in (("as it is", values.train), ("planted", path)):
            began = time.process_time()
            found = _looked_at(Path(folder), values.task, train, values.eval)
            print(f"{name}, {time.process_time() - began:.0f} s of CPU")
            for one in found:
                print(f"  {one['level']:8} {one['check']}: {one['summary']}")
        _score(next(one for one in found if one["check"] == "suspicious labels"), wrong)
    return 0


def _looked_at(folder: Path, task: str, train: Any, held: str) -> list[dict[str, Any]]:
    config = override(
        load(str(_CONFIGS / f"{task}.py")), {"data.train": str(train), "data.eval": held}
    )
    check_data(config, rows=50_000, probed=5_000, output=str(folder / "out"))
    return json.loads((folder / "out" / "data_report.json").read_text())["findings"]


def _score(found: dict[str, Any], wrong: set[tuple[int, Any]]) -> None:
    """Doubts are (row, label, given, probability, is an alarm) or (row, word, tag, type, probability)."""
    surely = [
        one for one in found["rows"] if (one[4] is True or one[4] is not False and one[4] >= _SURE)
    ]
    for name, doubts in (("doubted", found["rows"]), ("surely", surely)):
        right = sum((one[0], one[1]) in wrong for one in doubts)
        print(f"{name}: {right} of {len(doubts)} are planted")
    print(f"planted in all: {len(wrong)}, of which a sample was looked at")


def _labels(source: Path, target: Path) -> set[tuple[int, Any]]:
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = sorted({name for row in rows for name in row["label"].split("|")})
    draw, wrong = random.Random(0), set()
    for i in draw.sample(range(len(rows)), len(rows) // 20):
        has = set(rows[i]["label"].split("|"))
        other, gone = draw.choice([n for n in names if n not in has]), draw.choice(sorted(has))
        rows[i]["label"] = "|".join(sorted(has - {gone} | {other}))
        wrong |= {(i, gone), (i, other)}
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return wrong


def _tags(source: Path, target: Path) -> set[tuple[int, Any]]:
    blocks = source.read_text("utf-8").split("\n\n")
    sentences = [[line.split("\t") for line in b.split("\n") if line] for b in blocks if b.strip()]
    types = sorted({tag[2:] for words in sentences for _, tag in words if tag != "O"})
    begin = [
        (i, j) for i, ws in enumerate(sentences) for j, (_, t) in enumerate(ws) if t[:2] == "B-"
    ]
    draw, wrong = random.Random(0), set()
    for i, j in draw.sample(begin, len(begin) // 10):
        words, own = sentences[i], sentences[i][j][1][2:]
        new = draw.choice([name for name in types if name != own] + ["O"] * 3)
        end = j + 1
        while end < len(words) and words[end][1].startswith("I-"):
            end += 1
        for at in range(j, end):
            words[at][1] = "O" if new == "O" else ("B-" if at == j else "I-") + new
            wrong.add((i, at))
    target.write_text(
        "\n\n".join("\n".join("\t".join(word) for word in words) for words in sentences) + "\n",
        "utf-8",
    )
    return wrong


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
