"""jaxft against PyTorch's `transformers.Trainer` on this machine: speed, memory and accuracy as ratios.

    python benchmarks/vs_hf_trainer.py --model DIR --train train.csv --test test.csv [--repeats 3]

The same checkpoint, data, batch size, schedule and epochs, each as a whole process from start to saved
model, alternating so that a slow minute of the machine hits both. Settings: every parameter (full),
embeddings and the lower half frozen (half), all blocks frozen (head), layer-wise decay (layerwise).
Each repeat has its own seed. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run everything and print one row a setting."""
    args = _arguments()
    blocks = json.loads((Path(args.model) / "config.json").read_text())["num_hidden_layers"]
    freeze = {"full": -1, "layerwise": -1, "half": blocks // 2, "head": blocks}
    with open(args.train, newline="", encoding="utf-8") as file:
        examples = sum(1 for _ in csv.DictReader(file)) * args.epochs
    peers = {"hf": [], "hf grouped": ["--group_by_length"]}
    peers = {name: extra for name, extra in peers.items() if name in args.peers.split(",")}
    rows = []
    for setting in args.settings.split(","):
        runs: dict[str, list[dict]] = {"jaxft": [], **{name: [] for name in peers}}
        for seed in range(args.repeats):
            runs["jaxft"].append(_jaxft(args, freeze[setting], setting, seed))
            for name, extra in peers.items():
                runs[name].append(_peer(args, freeze[setting], setting, seed, extra))
            for name, done in runs.items():
                print(f"  {setting} seed {seed} {name}: {done[-1]}", flush=True)
        rows.append(_row(setting, runs, examples))
    print("\n" + "\n".join(json.dumps(row) for row in rows))


def _row(setting: str, runs: dict[str, list[dict]], examples: float) -> dict:
    """Medians, and their ratios to the peers'."""

    def median(name: str, field: str) -> float:
        return statistics.median(run[field] for run in runs[name])

    row: dict = {
        "setting": setting,
        "jaxft_examples_per_s": round(examples / median("jaxft", "wall"), 1),
    }
    for name in runs:
        scores = [run["accuracy"] for run in runs[name]]
        row[f"accuracy {name}"] = [round(s, 4) for s in scores]
        if name != "jaxft":
            row[f"speed vs {name}"] = round(median(name, "wall") / median("jaxft", "wall"), 2)
            row[f"training loop vs {name}"] = round(
                median(name, "train_seconds") / median("jaxft", "train_seconds"), 2
            )
            row[f"memory vs {name}"] = round(median("jaxft", "rss_mb") / median(name, "rss_mb"), 2)
    return row


def _jaxft(args: argparse.Namespace, freeze_below: int, setting: str, seed: int) -> dict:
    workdir = tempfile.mkdtemp(prefix="jaxft-bench-")
    command = [
        sys.executable, "-m", "jaxft.train", f"--config={HERE.parent}/configs/text_classification.py",
        f"--workdir={workdir}", f"--config.model.path={args.model}", f"--config.data.train={args.train}",
        f"--config.data.eval={args.test}", f"--config.data.text={args.text}",
        f"--config.data.label={args.label}", f"--config.train.batch_size={args.batch_size}",
        f"--config.train.epochs={args.epochs}", f"--config.optim.lr={args.lr}",
        f"--config.train.seed={seed}", f"--config.eval.every={args.epochs} epochs",
        "--config.checkpoint.every_steps=1000000",
    ]  # fmt: skip
    if setting == "layerwise":
        command.append(f"--config.optim.layer_decay={args.layer_decay}")
    if freeze_below >= 0:
        command.append(f"--config.optim.freeze_below={freeze_below}")
    result = _timed(command)
    result.pop("output")
    summary = json.loads((Path(workdir) / "summary.json").read_text())
    seconds = summary["seconds"]
    shutil.rmtree(workdir)
    return {
        **result, "accuracy": summary["eval"]["accuracy"], "train_seconds": seconds["train"],
        "compile_seconds": seconds["compile"],
    }  # fmt: skip


def _peer(
    args: argparse.Namespace, freeze_below: int, setting: str, seed: int, extra: list
) -> dict:
    output = tempfile.mkdtemp(prefix="hf-bench-")
    command = [
        sys.executable, str(HERE / "hf_trainer.py"), f"--model={args.model}", f"--train={args.train}",
        f"--test={args.test}", f"--text={args.text}", f"--label={args.label}", f"--output={output}",
        f"--batch_size={args.batch_size}", f"--epochs={args.epochs}", f"--lr={args.lr}",
        f"--freeze_below={freeze_below}", f"--seed={seed}", *extra,
    ]  # fmt: skip
    if setting == "layerwise":
        command.append(f"--layer_decay={args.layer_decay}")
    result = _timed(command)
    shutil.rmtree(output)
    return {**result, **json.loads(result.pop("output").splitlines()[-1])}


def _timed(command: list[str]) -> dict:
    """Wall seconds and peak resident MB of one child process, with its output."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=out, stderr=err, env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        if status:
            err.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{err.read()[-3000:]}")
        out.seek(0)
        return {"wall": round(wall, 2), "rss_mb": usage.ru_maxrss // 1024, "output": out.read()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "train", "test"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--text", default="text", help="one or two columns: a,b")
    parser.add_argument("--label", default="label")
    parser.add_argument("--settings", default="full,half,head,layerwise")
    parser.add_argument("--peers", default="hf,hf grouped")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--layer_decay", type=float, default=0.9)
    return parser.parse_args()


if __name__ == "__main__":
    main()
