"""What `find_lr` suggests beside the best rate of a grid, on four data sets.

    python benchmarks/find_lr_grid.py --data DIR --model DIR --workdir DIR [--only spam,fashion] [--seeds 2]

`--data` holds sms_spam, goemotions, wnut17 and fashion_mnist_900 (train and dev or test each); `--model` is a
small BERT such as all-MiniLM-L6-v2. Each rate of a grid (factors of about 3) is a run to its end with the
linear schedule and 10 % warm-up, for each seed; the best is the one with the best mean of the metric, of
equal ones that with the least evaluation loss. The test reads the training rows only. What was run is in the
workdir and is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from jaxft.config import ConfigDict, override
from jaxft.search.finding_lr import find_lr
from jaxft.search.trials.trial import Trial, run_trials
from jaxft.tasks.names import minimised
from jaxft.terminal import config_file

CONFIGS = Path(__file__).parent.parent / "configs"
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    # The upper two of six blocks and a new head.
    "spam": ("text_classification", {
        "data.train": "{data}/sms_spam/train.csv[:10%]", "data.eval": "{data}/sms_spam/dev.csv[:50%]",
        "optim.freeze_below": 4, "train.batch_size": 16, "train.epochs": 2.0, "data.max_length": 64,
        "eval.metric": "f1_macro",
    }),
    # The head alone, 28 labels.
    "emotions": ("multi_label", {
        "data.train": "{data}/goemotions/train.csv[:6%]", "data.eval": "{data}/goemotions/dev.csv[:20%]",
        "optim.freeze_below": "all", "train.batch_size": 32, "train.epochs": 4.0, "data.max_length": 64,
        "eval.metric": "f1_micro",
    }),
    # Tagged words, the upper block and a new head, with layer-wise decay.
    "entities": ("token_classification", {
        "data.train": "{data}/wnut17/train.conll[:12%]", "data.eval": "{data}/wnut17/dev.conll[:20%]",
        "optim.freeze_below": 5, "optim.layer_decay": 0.8, "train.batch_size": 16, "train.epochs": 3.0,
        "data.max_length": 64, "eval.metric": "f1",
    }),
    # All of a small vision transformer that knows digits.
    "fashion": ("image_classification", {
        "data.train": "{data}/fashion_mnist_900/train", "data.eval": "{data}/fashion_mnist_900/test",
        "model.path": "{digits}", "train.batch_size": 32, "train.epochs": 8.0,
        "eval.metric": "accuracy", "optim.freeze_below": None, "optim.layer_decay": 1.0,
    }),
}  # fmt: skip
COMMON = {"eval.every": "1 epochs", "parallel.mode": "jit", "data.max_shapes": 1}


def main() -> None:
    """Run what is missing, then print a row a data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "model", "workdir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    for name in args.only.split(","):
        config, folder = _config(args, name), Path(args.workdir) / name
        folder.mkdir(parents=True, exist_ok=True)
        grid = _grid(config, folder, args.seeds)
        print(json.dumps({"data": name, **_compared(config, grid, _tested(config, folder, args))}))


def _config(args: argparse.Namespace, name: str) -> ConfigDict:
    task, values = SETS[name]
    places = {"data": args.data, "digits": _digits(Path(args.workdir))}
    values = {field: x.format(**places) if isinstance(x, str) else x for field, x in values.items()}
    base = config_file.load(str(CONFIGS / f"{task}.py"), [])
    return override(base, {"model.path": args.model}, COMMON, values)


def _digits(workdir: Path) -> str:
    """A copy of the small transformer that reads images of any size, at 8 x 8."""
    copy = workdir / "digits_vit"
    if not copy.exists():
        shutil.copytree(CONFIGS / "digits_vit", copy)
        path = copy / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "do_resize": True}))
    return str(copy)


def _tested(config: ConfigDict, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """find_lr.json of a test of so many seeds."""
    path = folder / "find_lr.json"
    if not path.exists():
        find_lr(config, lowest=1e-7, highest=10.0, steps=100, seeds=args.seeds, output=str(folder))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _grid(config: ConfigDict, folder: Path, seeds: int) -> dict[float, dict[str, float]]:
    """Rate -> mean over seeds of the metric and of the loss, of each run's best evaluation."""
    trials = [
        Trial(f"lr{rate:g}-seed{seed}", override(config, {"optim.lr": rate, "train.seed": seed}))
        for rate in RATES
        for seed in range(seeds)
    ]
    outcomes = run_trials(trials, directory=folder)
    found = {}
    for number, rate in enumerate(RATES):
        own = outcomes[number * seeds : (number + 1) * seeds]
        best = [one.best for one in own if one.best]
        if best:  # else its loss was not finite
            found[rate] = {
                "metric": fmean(row[config.eval.metric] for row in best),
                "loss": fmean(min(row["loss"] for row in one.history) for one in own),
            }
    return found


def _compared(
    config: ConfigDict, grid: dict[float, dict[str, float]], tested: dict[str, Any]
) -> dict[str, Any]:
    sign = 1 if config.eval.metric in minimised(config.task) else -1
    best = min(grid, key=lambda rate: (sign * grid[rate]["metric"], grid[rate]["loss"]))
    by_loss = min(grid, key=lambda rate: grid[rate]["loss"])
    near = min(grid, key=lambda rate: abs(math.log(rate / tested["recommended"]["rate"])))
    return {
        "best": best, "best by loss": by_loss, "recommended": tested["recommended"],
        "ratio": tested["recommended"]["rate"] / best,
        "metric": config.eval.metric, "at best": grid[best]["metric"],
        "at the rate nearest to the recommended": grid[near]["metric"],
        "rules": {one["name"]: [one["rate"], one["rate"] / best] for one in tested["suggestions"]},
        "grid": {f"{rate:g}": values for rate, values in grid.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
