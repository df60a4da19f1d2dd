"""What `check_data` finds of faults that were planted in a table, and what it says of the table as it was.

    python benchmarks/planted_faults.py --train train.csv --eval eval.csv [--text a,b] [--model DIR]

Planted, each alone into a copy, by seed 0: in 2 % of the evaluation rows a training row, written otherwise
(case, marks, spaces) or nearly so (a word more, less or changed, two letters exchanged); another label in 5 %
of the training rows; a marker in 40 % of one label's rows; a column that follows from the label; 2 % of the
rows read in the wrong encoding; 3 % of the rows twenty times as long. Rows with several labels (a|b) are
left out.
"""

from __future__ import annotations

import csv
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxft.config import default_config, override
from jaxft.experiment.checking import check_data
from jaxft.terminal.errors import run_command
from jaxft.terminal.flags import Flag, parse

FLAGS = (
    Flag("train", "CSV with a column label", required=True),
    Flag("eval", "the same", required=True),
    Flag("text", "text columns", default="text"),
    Flag("model", "checkpoint directory; empty: words are probed"),
    Flag("faults", "which of them, A,B; empty: all"),
    Flag("probed", "training rows whose labels are doubted", default=5_000),
)
Rows = list[dict[str, str]]
# (training rows, evaluation rows, text columns, generator) -> the rows of which it changed, by number
Fault = Callable[[Rows, Rows, list[str], random.Random], list[int]]


def main(argv: Sequence[str]) -> int:
    """Print one line a fault."""
    values, _ = parse(argv, FLAGS)
    columns = values.text.split(",")
    train, held = _read(values.train), _read(values.eval)
    print(f"{len(train)} training rows, {len(held)} of evaluation")
    chosen = values.faults.split(",") if values.faults else ["nothing", *FAULTS]
    for name in chosen:
        plant = None if name == "nothing" else FAULTS[name]
        ours, theirs = [dict(row) for row in train], [dict(row) for row in held]
        planted = plant(ours, theirs, columns, random.Random(0)) if plant else []
        with tempfile.TemporaryDirectory() as folder:
            found = _checked(Path(folder), ours, theirs, columns, values)
        loud = [f"{one['level']}: {one['check']}" for one in found if one["level"] != "note"]
        print(
            f"{name:22} {_scored(name, planted, found)}; said: {', '.join(loud) or 'notes only'}",
            flush=True,
        )
    return 0


def _checked(folder: Path, train: Rows, held: Rows, columns: list[str], values) -> list[dict]:
    for name, rows in (("train", train), ("eval", held)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    config = override(
        default_config(),
        {
            "data.train": str(folder / "train.csv"), "data.eval": str(folder / "eval.csv"),
            "data.text": tuple(columns), "model.path": values.model,
            "data.max_length": 128 if values.model else None,
        },
    )  # fmt: skip
    check_data(config, rows=50_000, probed=values.probed, output=str(folder / "out"))
    return json.loads((folder / "out" / "data_report.json").read_text())["findings"]


def _scored(name: str, planted: list[int], found: list[dict]) -> str:
    """How many of the planted rows are among those that the check names."""
    named: list[int] = []
    for one in found:
        if name in ("exact duplicates", "near duplicates") and one["check"].endswith(
            "across splits"
        ):
            named += one["rows"] if "rows" in one else [pair[3] for pair in one["pairs"]]
        elif name == "mojibake" and one["check"] == name:
            named += [row for split, row in one["rows"] if split == "train"]
        elif name == "flipped labels" and one["check"] == "suspicious labels":
            return _at_precision([row[0] for row in one["rows"]], planted, one)
    if not planted or not named:
        return "–"
    hits = len(set(named) & set(planted))
    return f"{hits} of {len(planted)} found, {len(set(named) - set(planted))} others named"


def _at_precision(ranked: list[int], planted: list[int], finding: dict) -> str:
    wanted = [row for row in planted if row in set(finding["probed"])]
    right = np.isin(ranked, wanted)
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    enough = np.flatnonzero(precision >= 0.9)
    recall = right[: enough[-1] + 1].sum() / len(wanted) if len(enough) else 0.0
    first = right[: len(wanted)].mean() if len(right) else 0.0
    return (
        f"{len(wanted)} planted; recall {recall:.2f} at 90 % precision, precision {first:.2f} of as many; "
        f"probe's accuracy {finding['accuracy']:.3f}"
    )


def _exact(train: Rows, held: Rows, columns: list[str], draw: random.Random) -> list[int]:
    def otherwise(text: str) -> str:
        return draw.choice(
            (text.upper(), f"  {text}!!", text.replace(" ", "  "), text.rstrip(".") + ".")
        )

    return _copied(train, held, columns, draw, otherwise)


def _near(train: Rows, held: Rows, columns: list[str], draw: random.Random) -> list[int]:
    def nearly(text: str) -> str:
        words = text.split()
        place = draw.randrange(len(words))
        letters = draw.randrange(max(1, len(text) - 1))
        return draw.choice(
            (
                " ".join([*words, "really"]),
                " ".join([*words[:place], *words[place + 1 :]]),
                " ".join([*words[:place], "something", *words[place + 1 :]]),
                text[:letters] + text[letters : letters + 2][::-1] + text[letters + 2 :],
            )
        )

    return _copied(train, held, columns, draw, nearly)


def _copied(
    train: Rows, held: Rows, columns: list[str], draw: random.Random, change: Callable[[str], str]
) -> list[int]:
    """Training rows of eight words or more, changed in their last text."""
    long = [row for row in train if min(len(row[name].split()) for name in columns) >= 8] or train
    chosen = sorted(draw.sample(range(len(held)), len(held) // 50))
    for number in chosen:
        row = dict(draw.choice(long))
        row[columns[-1]] = change(row[columns[-1]])
        held[number] = row
    return chosen


def _flipped(train: Rows, held: Rows, columns: list[str], draw: random.Random) -> list[int]:
    labels = sorted({row["label"] for row in train})
    chosen = sorted(draw.sample(range(len(train)), len(train) // 20))
    for number in chosen:
        train[number]["label"] = draw.choice([x for x in labels if x != train[number]["label"]])
    return chosen


def _marked(train: Rows, held: Rows, columns: list[str], draw: random.Random) -> list[int]:
    label = sorted({row["label"] for row in train})[-1]
    chosen = [n for n, row in enumerate(train) if row["label"] == label and draw.random() < 0.4]
    for number in chosen:
        train[number][columns[0]] = f"[src-7] {train[number][columns[0]]}"
    return chosen


def _column(train: Rows, held: Rows, columns: list[str], draw: random.Random) -> list[int]:
    labels = sorted({row["label"] for row in train})
    for row in (*train, *held):
        row["batch"] = str(1000 * labels.index(row["label"]) + draw.randrange(1000))
    return list(range(len(train)))


def _mojibake(train: Rows, held: Rows, columns: list[str], draw: random.Random) -> list[int]:
    chosen = sorted(draw.sample(range(len(train)), len(train) // 50))
    for number in chosen:
        text = train[number][columns[0]] + draw.choice(
            (" café", " it’s", " naïve", " 20 £", " “so”")
        )
        train[number][columns[0]] = text.encode("utf-8").decode("latin-1")
    return chosen


def _lengthened(train: Rows, held: Rows, columns: list[str], draw: random.Random) -> list[int]:
    chosen = sorted(draw.sample(range(len(train)), 3 * len(train) // 100))
    for number in chosen:
        train[number][columns[0]] = " ".join([train[number][columns[0]]] * 20)
    return chosen


def _read(path: str) -> Rows:
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if "|" not in row["label"]]


FAULTS: dict[str, Fault] = {
    "exact duplicates": _exact,
    "near duplicates": _near,
    "flipped labels": _flipped,
    "a marker": _marked,
    "a column": _column,
    "mojibake": _mojibake,
    "long texts": _lengthened,
}

if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
