"""Fine-tuning the shipped digits checkpoint over several seeds, each purpose against the first one.

    python benchmarks/digits_seeds.py
    python benchmarks/digits_seeds.py --file configs/digits_recipes.py --purposes plain,layerwise,gradual

Every run is the command a user would type, `jaxft.train --config FILE:PURPOSE`, as a process of its
own; more `--config.a.b=value` go to all of them. A seed decides which few labels there are, which images
are held out, the new parameters and the order of the batches; the purposes of a seed have the same
labels. Printed are test accuracies (digits 5-9 of the test split), their mean and standard deviation,
the differences of equal seeds, and wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run everything, print a line a run and then the table."""
    args, overrides = _arguments()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.purposes.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for purpose, done in runs.items():
                done.append(_train(args.file, purpose, seed, overrides, Path(folder)))
                print(f"  {purpose} seed {seed}: {_line(done[-1])}", flush=True)
    print("\n" + "\n".join(table(runs)))


def table(runs: dict[str, list[dict[str, float]]]) -> list[str]:
    """Lines of a Markdown table: one row a purpose, with the differences of equal seeds to the first."""
    lines = [
        "| | test accuracy | each seed | over the first | wall time |",
        "|---|---|---|---|---|",
    ]
    first = next(iter(runs.values()))
    for purpose, done in runs.items():
        seconds = statistics.median(run["wall"] for run in done)
        gains = [a["test"] - b["test"] for a, b in zip(done, first, strict=True)]
        each = ", ".join(f"{run['test']:.3f}" for run in done)
        lines.append(
            f"| {purpose} | {_spread([run['test'] for run in done])} | {each} | {_spread(gains)} "
            f"| {seconds:.0f} s |"
        )
    return lines


def _spread(values: Sequence[float]) -> str:
    """'mean ± sample standard deviation'."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def _train(
    file: str, purpose: str, seed: int, overrides: list[str], folder: Path
) -> dict[str, float]:
    """One whole run: accuracies of its summary, and its seconds."""
    workdir = folder / f"{purpose}-{seed}"
    command = [
        sys.executable, "-m", "jaxft.train", "--config", f"{file}:{purpose}",
        "--workdir", str(workdir), f"--config.train.seed={seed}",
        f"--config.data.split_seed={seed}", *overrides,
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu", **os.environ},
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    summary = json.loads((workdir / "summary.json").read_text("utf-8"))
    return {
        "test": summary["test"]["accuracy"],
        "held out": summary["eval"]["accuracy"],
        "best step": summary["best_step"],
        "steps": summary["steps"],
        "wall": wall,
    }


def _line(run: dict[str, float]) -> str:
    return (
        f"test {run['test']:.3f}, held out {run['held out']:.3f} at step "
        f"{run['best step']:.0f} of {run['steps']:.0f}, {run['wall']:.1f} s"
    )


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and the overrides that go to every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--file", default="configs/quickstart.py")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--purposes", default="finetune,scratch")
    args, overrides = parser.parse_known_args()
    unknown = [word for word in overrides if not word.startswith("--config.")]
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}; overrides are --config.FIELD=VALUE")
    return args, overrides


if __name__ == "__main__":
    main()
