"""Few-shot classification against the `setfit` library and against fine-tuning, on the same rows.

    python benchmarks/vs_setfit.py --model DIR --train train.csv --test test.csv --output results.jsonl \
        [--classes a,b] [--shots 8] [--seeds 3] [--iterations 20] [--test_rows 300] [--peer_python PYTHON]

Each seed has its own rows. All methods begin with the same checkpoint and are measured on the same test
rows; the two of pairs have the settings of the library: batches of 16 pairs, oversampling or so many
iterations, one epoch, a rate of 2e-5 after a tenth of warm-up. Fine-tuning has 40 epochs of the rows in
batches of 16, at 5e-5. A run that is in the output is not repeated, so a stopped benchmark goes on. Besides
seconds, CPU seconds of the whole process are counted, which other work on the machine changes less.
`--peer_python` is of an environment with `setfit`; without it, that method is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
METHODS = ("few_shot", "fine_tuning", "setfit")


def main() -> None:
    """Run what is missing, then print a row a method."""
    args = _arguments()
    methods = METHODS if args.peer_python else METHODS[:-1]
    for seed in range(args.seeds):
        for method in methods:
            if not any(row["method"] == method and row["seed"] == seed for row in _done(args)):
                _run(args, method, seed)
    for method in methods:
        rows = [row for row in _done(args) if row["method"] == method]
        print(json.dumps({"method": method, "seeds": len(rows), **_summary(rows)}))


def _summary(rows: Sequence[dict]) -> dict[str, str]:
    """'mean ± standard deviation' of each measure."""
    found = {}
    for name in ("accuracy", "f1_macro", "examples_per_second", "wall", "cpu"):
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = f"{statistics.fmean(values):.4g} ± {spread:.2g}"
    return found


def _run(args: argparse.Namespace, method: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train, test = _rows(args, seed, Path(folder))
        started, before = time.perf_counter(), _cpu()
        found = (_setfit if method == "setfit" else _jaxft)(args, method, seed, train, test, folder)
        row = {
            "method": method,
            "seed": seed,
            "wall": round(time.perf_counter() - started, 2),
            **found,
        }
        row["cpu"] = round(_cpu() - before, 2)
    with open(args.output, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"  {row}", flush=True)


def _cpu() -> float:
    """Seconds of all processors that finished children have had."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rows(args: argparse.Namespace, seed: int, folder: Path) -> tuple[Path, Path]:
    """CSV files of the training rows of a seed, and of the test rows, which are the same for all."""
    classes = set(filter(None, args.classes.split(",")))
    chosen = random.Random(seed)
    by_label: dict[str, list[dict]] = {}
    for row in _read(args.train):
        if not classes or row["label"] in classes:
            by_label.setdefault(row["label"], []).append(row)
    some = [row for label in sorted(by_label) for row in chosen.sample(by_label[label], args.shots)]
    test = [row for row in _read(args.test) if row["label"] in by_label]
    if len(test) > args.test_rows:
        test = random.Random(0).sample(test, args.test_rows)
    paths = folder / "train.csv", folder / "test.csv"
    for path, rows in zip(paths, (some, test), strict=True):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ("text", "label"))
            writer.writeheader()
            writer.writerows({"text": row["text"], "label": row["label"]} for row in rows)
    return paths


def _read(path: str) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _jaxft(
    args: argparse.Namespace, method: str, seed: int, train: Path, test: Path, folder: str
) -> dict:
    config = "few_shot" if method == "few_shot" else "text_classification"
    own = [f"data.pair_iterations={args.iterations}"] * bool(args.iterations)
    extra = own if method == "few_shot" else ["train.batch_size=16", "train.epochs=40"]
    fields = [
        f"model.path={args.model}", f"data.train={train}", f"data.eval={test}", f"train.seed={seed}",
        "data.max_length=256", "eval.every=100%", "log.tensorboard=false", *extra,
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "jaxft.train", f"--config={HERE.parent}/configs/{config}.py",
        f"--workdir={folder}/run", *(f"--config.{field}" for field in fields),
    ]  # fmt: skip
    _call(command)
    summary = json.loads((Path(folder) / "run/summary.json").read_text())
    found = {name: summary["eval"][name] for name in ("accuracy", "f1_macro")}
    return {
        **found,
        "examples_per_second": summary["examples_per_second"],
        "seconds": summary["seconds"],
    }


def _setfit(
    args: argparse.Namespace, method: str, seed: int, train: Path, test: Path, folder: str
) -> dict:
    script, output = HERE / "setfit_trainer.py", Path(folder) / "setfit.json"
    given = (args.model, train, test, seed, args.iterations, output)
    _call([args.peer_python, str(script), *map(str, given)])
    return json.loads(output.read_text())


def _call(command: list[str]) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "train", "test", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--classes", default="", help="only rows of these labels; all by default")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=0, help="of pairs; 0: oversampling")
    parser.add_argument("--test_rows", type=int, default=300)
    parser.add_argument("--peer_python", default="")
    return parser.parse_args()


def _done(args: argparse.Namespace) -> list[dict]:
    path = Path(args.output)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
