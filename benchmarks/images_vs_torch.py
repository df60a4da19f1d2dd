"""A VGG, a ResNet and a ViT on few small images: jaxft beside a plain PyTorch loop, from the same weights.

    python benchmarks/images_vs_torch.py --work DIR [--data FOLDER] [--seeds 3] [--models vgg,resnet,vit]
    python benchmarks/images_vs_torch.py --work DIR --check

FOLDER has train/CLASS/… and test/CLASS/…; without it, 2,000 and 1,000 pictures are made
(digit_photos.py). Each seed of a model is one checkpoint, made by PyTorch, from which both sides start,
head and all; the order of the images is each side's own. Batch size, AdamW and its decay, clipping,
warm-up, cosine and epochs are the same, batch norms train (`model.batch_stats='train'`), nothing is
augmented. Both sides run at once, each on a core, jaxft by its command. What counts is the last epoch,
and one PyTorch function measures both checkpoints on the test images. Runs that DIR/results.jsonl has are
not made again.

`--check` compares what 6 updates on one batch do to the loss and to every tensor in jaxft's float32 and in
PyTorch's float64, whose own float32 strays further from it. They are of SGD: Adam divides gradients that
are 0 but for rounding, as those of biases before a batch norm, by themselves. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import digit_photos
import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
# Epochs and rates with which the PyTorch loop learns the pictures of digit_photos.py.
SETTINGS = {"vgg": (2, 3e-4), "resnet": (5, 1e-3), "vit": (15, 1e-3)}
CHECKED: dict[str, Any] = {
    "batch_size": 48, "epochs": 6, "lr": 0.02, "optimizer": "sgd", "precision": "float64",
}  # fmt: skip


def main() -> None:
    """One line a run, and a table."""
    args = _arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    names = args.models.split(",")
    if args.check:
        return check(args.work, names)
    data = args.data or _made(args.work / "data", {"train": 2000, "test": 1000})
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    _make(args.work, names, seeds, data)
    log = args.work / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for name in names:
        epochs, lr = SETTINGS[name]
        options = {
            "epochs": args.epochs or epochs,
            "lr": lr,
            "batch_size": 32,
            "optimizer": "adamw",
        }
        for seed in seeds:
            if any((run["model"], run["seed"]) == (name, seed) for run in done):
                continue
            run = side_by_side(args.work / f"{name}-{seed}", data, seed, options)
            done.append({"model": name, "seed": seed, **run})
            print(
                f"{name} seed {seed}: {_brief(run['jaxft'])}, PyTorch {_brief(run['torch'])}",
                flush=True,
            )
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print("\n".join(table(done)))


def side_by_side(start: Path, data: Path, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Both sides at once from the checkpoint `start`, in which jaxft/best and torch are their results."""
    fields = {
        "model.path": start, "model.batch_stats": "train" if _has_norms(start) else "frozen",
        "data.train": data / "train", "data.eval": data / "test", "data.augment": "none",
        "train.seed": seed, "train.epochs": options["epochs"], "train.batch_size": options["batch_size"],
        "optim.lr": options["lr"], "optim.optimizer": options["optimizer"], "optim.layer_decay": 1,
        "optim.weight_decay": 0.05, "eval.every": "100%", "log.tensorboard": "false",
        "checkpoint.every_steps": 1000000, "train.log_every": 1,
    }  # fmt: skip
    ours = [
        "-m", "jaxft.train", f"--config={ROOT}/configs/image_classification.py",
        f"--workdir={start}/jaxft", *(f"--config.{name}={value}" for name, value in fields.items()),
    ]  # fmt: skip
    flags = [f"--{name}={value}" for name, value in {**options, "seed": seed, "data": data}.items()]
    peer = f"{ROOT}/benchmarks/torch_images.py"
    theirs = [peer, "train", start, f"--output={start}/torch", *flags]
    shutil.rmtree(start / "jaxft", ignore_errors=True)  # of a run that was not finished
    # A core each, and the other one with the next seed.
    jaxft, torch = _both({"jaxft": ours, "torch": theirs}, seed)
    jaxft.pop("output")
    torch |= json.loads(torch.pop("output").splitlines()[-1])
    summary = json.loads((start / "jaxft/summary.json").read_text())
    logged = [json.loads(row) for row in (start / "jaxft/metrics.jsonl").read_text().splitlines()]
    measured = json.loads(_torch("accuracy", start / "jaxft/best", f"--data={data}"))["accuracy"]
    spent = {"loop_seconds": summary["seconds"]["train"], "says": summary["eval"]["accuracy"]}
    losses = [row["loss"] for row in logged if row["kind"] == "train"]
    return {
        "jaxft": {**jaxft, **spent, "accuracy": measured, "losses": losses},
        "torch": torch,
    }


def _both(commands: dict[str, list[Any]], seed: int) -> list[dict[str, Any]]:
    """CPU seconds, peak resident MB and output of processes that run at once, a core each."""
    cores = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    running: list[tuple[Any, ...]] = []
    found: list[dict[str, Any]] = []
    for number, (name, command) in enumerate(commands.items()):
        core = cores[(number + seed) % len(cores)]
        out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        child = subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, *map(str, command)],
            stdout=out, stderr=err, env=environment,
        )  # fmt: skip
        running.append((name, child, out, err))
    for name, child, out, err in running:
        _, status, used = os.wait4(child.pid, 0)
        out.seek(0)
        err.seek(0)
        if status:
            raise SystemExit(f"{name} failed:\n{out.read()}{err.read()[-3000:]}")
        found.append({
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "rss_mb": used.ru_maxrss // 1024, "output": out.read(),
        })  # fmt: skip
    return found


def table(done: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table, one row a model; of speed and memory medians of jaxft over PyTorch."""
    lines = [
        "| | jaxft | PyTorch | difference of equal seeds | CPU seconds | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run["model"] for run in done):
        runs = [run for run in done if run["model"] == name]
        ours, theirs = ([run[side]["accuracy"] for run in runs] for side in ("jaxft", "torch"))
        gains = [a - b for a, b in zip(ours, theirs, strict=True)]
        ratios = [
            statistics.median(run["jaxft"][field] / run["torch"][field] for run in runs)
            for field in ("cpu_seconds", "rss_mb")
        ]
        each = " | ".join(f"{_spread(one)} ({_listed(one)})" for one in (ours, theirs))
        lines.append(
            f"| {name} | {each} | {_spread(gains)} | {ratios[0]:.2f} x | {ratios[1]:.2f} x |"
        )
    return lines


def check(work: Path, names: list[str]) -> None:
    """The same updates on one batch: the largest differences of losses, and of the tensors' elements."""
    count = CHECKED["batch_size"]
    data = _made(work / "check_data", {"train": count, "test": count})
    _make(work / "check", names, range(1), data)
    for name in names:
        start = work / "check" / f"{name}-0"
        run = side_by_side(start, data, 0, CHECKED)
        ours, theirs = (
            load_file(start / side / "model.safetensors") for side in ("jaxft/best", "torch")
        )
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        before = load_file(start / "model.safetensors")
        worst = max(ours, key=lambda tensor: _apart(ours[tensor], theirs[tensor]))
        losses = np.abs(np.subtract(run["jaxft"]["losses"], run["torch"]["losses"])).max()
        print(
            f"{name}: losses {losses:.1e} of {run['torch']['losses'][0]:.3f} to "
            f"{run['torch']['losses'][-1]:.3f}; tensors {_apart(ours[worst], theirs[worst]):.1e} in {worst}, "
            f"of which the updates moved {_apart(before[worst], theirs[worst]):.1e}",
            flush=True,
        )


def _brief(side: dict[str, Any]) -> str:
    loss = statistics.mean(side["losses"][-20:])
    return f"{side['accuracy']:.3f} (loss {loss:.3f}, {side['cpu_seconds']:.0f} CPU s)"


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _has_norms(start: Path) -> bool:
    return any(name.endswith("running_var") for name in load_file(start / "model.safetensors"))


def _made(folder: Path, counts: dict[str, int]) -> Path:
    if not folder.exists():
        digit_photos.write(folder, "0123456789", counts)
    return folder


def _make(work: Path, names: list[str], seeds: range, data: Path) -> None:
    missing = [work / f"{n}-{s}" for n in names for s in seeds]
    missing = [path for path in missing if not path.exists()]
    if missing:
        _torch("make", *missing, f"--data={data}")


def _torch(*arguments: Any) -> str:
    """What torch_images.py prints last."""
    command = [sys.executable, f"{ROOT}/benchmarks/torch_images.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, runs and results")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--models", default=",".join(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="in place of each model's own")
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
