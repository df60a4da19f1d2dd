"""Every task on real data: jaxft beside the PyTorch recipe for it, seed by seed.

    python benchmarks/each_task/prepare.py --data DIR --minilm DIR --work WORK
    python benchmarks/each_task/run.py --work WORK --peer_python PYTHON --tasks causal_lm,preference --seeds 3
    python benchmarks/each_task/run.py --work WORK --table

Both sides read the same files, begin with the same checkpoint, and have the same batch, epochs, rate,
schedule, decay and clipping (`settings.py`); each run is a process on one core, from its start to a saved
checkpoint of its last step, with one evaluation at the end. One PyTorch function measures both (`score.py`).
A run that WORK/results.jsonl has is not made again. PYTHON has torch, transformers, scikit-learn, trl and
sentence-transformers; they are no dependencies of jaxft.

Seconds are those that the process had the CPU, so that what else the machine does counts little; they include
imports, reading and compiling, and jaxft's report. `loop` compares steps for each of them between the first
and the last row of the log, so in the steady loop alone. Memory is the peak of the resident set. jaxft
compiles in its first run and finds its programs in the others, so seconds are given of both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from settings import SETTINGS, data_file

HERE = Path(__file__).resolve().parent
SIDES = ("jaxft", "peer")


def main() -> None:
    """Make the runs that are not there, and print the table."""
    args = _arguments()
    results = args.work / "results.jsonl"
    if not args.table:
        for seed in range(args.seeds):
            for task in args.tasks.split(","):
                for side in args.sides.split(","):
                    if (task, side, seed) not in {_key(row) for row in _read(results)}:
                        row = run(args, task, side, seed)
                        with open(results, "a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                        print(json.dumps(row), flush=True)
    table(_read(results))


def run(args: argparse.Namespace, task: str, side: str, seed: int) -> dict[str, Any]:
    """One run and its scores."""
    folder = args.work / "runs" / f"{task}-{side}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = args.work / "start" / SETTINGS[task].start
    if not start.exists():  # that of preference tuning is what another task made
        assert SETTINGS[task].start == "tuned", start
        shutil.copytree(args.work / "runs" / "causal_lm-peer-0" / "best", start)
    command = (_jaxft if side == "jaxft" else _peer)(args, task, seed, start, folder)
    measured = _measure(command, folder, args.core)
    score = [
        args.peer_python, str(HERE / "score.py"), f"--task={task}", f"--checkpoint={folder}/best",
        f"--start={start}", f"--test={data_file(args.work, task, 'test')}",
    ]  # fmt: skip
    said = subprocess.run(score, env=_environment(), capture_output=True, text=True)
    assert not said.returncode, said.stderr[-3000:]
    scores = json.loads(said.stdout.splitlines()[-1])
    if f"{task}-{side}-{seed}" != "causal_lm-peer-0" and not args.keep:
        shutil.rmtree(folder / "best")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return {"task": task, "side": side, "seed": seed, **scores, **measured}


def _jaxft(args, task: str, seed: int, start: Path, folder: Path) -> list[str]:
    """The command of a user; its only evaluation is at the end."""
    setting = SETTINGS[task]
    fields = {
        "model.path": start, "data.train": data_file(args.work, task, "train"),
        "data.eval": data_file(args.work, task, "test"), "data.max_length": setting.length,
        "train.seed": seed, "train.batch_size": setting.batch_size, "train.epochs": setting.epochs,
        "train.log_every": setting.log_every, "optim.lr": setting.lr, "eval.every": "100%",
        "checkpoint.every_steps": 1000000, "log.tensorboard": "false",
        "train.compile_cache": args.work / "compiled", **setting.flags,
    }  # fmt: skip
    return [
        sys.executable, "-m", "jaxft.train", f"--config={HERE.parents[1]}/configs/{task}.py",
        f"--workdir={folder}", *(f"--config.{name}={value}" for name, value in fields.items()),
    ]  # fmt: skip


def _peer(args, task: str, seed: int, start: Path, folder: Path) -> list[str]:
    return [
        args.peer_python, str(HERE / "peer.py"), f"--task={task}", f"--seed={seed}",
        f"--model={start}", f"--train={data_file(args.work, task, 'train')}",
        f"--test={data_file(args.work, task, 'test')}", f"--output={folder}",
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    # One thread in every library: of OpenMP, of MKL, and of XLA, which counts the cores it may use.
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu",
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def _measure(command: list[str], folder: Path, core: int) -> dict[str, Any]:
    """{'cpu_s', 'rss_mb', 'wall_s', 'loop_s', 'loop_steps'} of a process that must succeed."""
    begun = time.perf_counter()
    rows: dict[int, float] = {}  # step -> CPU seconds when its row was in the log
    with open(folder / "output.txt", "wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command], stdout=output, stderr=output, env=_environment()
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            _note(folder / "metrics.jsonl", process.pid, rows)
            time.sleep(0.2)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert not process.returncode, (folder / "output.txt").read_text()[-3000:]
    # The last row may be written after the evaluation.
    steps = sorted(rows)[:-1]
    first, last = steps[0], steps[-1]
    return {
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "rss_mb": round(usage.ru_maxrss / 1024),
        "wall_s": round(time.perf_counter() - begun, 1),
        "loop_s": round(rows[last] - rows[first], 2),
        "loop_steps": last - first,
    }


def _note(path: Path, pid: int, rows: dict[int, float]) -> None:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # half a line
            return
        if row["kind"] == "train" and row["step"] not in rows:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            rows[row["step"]] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(rows: list[dict[str, Any]]) -> None:
    """Means and standard deviations, and the ratios of jaxft to the peer."""
    print("| task | peer | metric | jaxft | peer | CPU s, first | CPU s, others | loop | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task, setting in SETTINGS.items():
        own = {side: [r for r in rows if _key(r)[:2] == (task, side)] for side in SIDES}
        if not all(own.values()):
            continue
        cells = [task, setting.recipe, setting.metric]
        cells += [_spread([row[setting.metric] for row in own[side]]) for side in SIDES]
        for chosen in (lambda row: row["seed"] == 0, lambda row: row["seed"] > 0):
            cpu = [[row["cpu_s"] for row in own[side] if chosen(row)] for side in SIDES]
            a, b = [statistics.median(part) if part else float("nan") for part in cpu]
            cells.append(f"{a:.0f}, {b:.0f} ({b / a:.2f} x)")
        speed = [statistics.median(r["loop_steps"] / r["loop_s"] for r in own[s]) for s in SIDES]
        memory = [statistics.median(row["rss_mb"] for row in own[side]) for side in SIDES]
        cells.append(f"{speed[0] / speed[1]:.2f} x")
        cells.append(f"{memory[0]:.0f}, {memory[1]:.0f} MB ({memory[0] / memory[1]:.2f})")
        print("| " + " | ".join(cells) + " |")


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    each = ", ".join(f"{value:.4f}" for value in values)
    return f"{statistics.mean(values):.4f} ± {deviation:.4f} ({each})"


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["task"], row["side"], row["seed"]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--peer_python", default=sys.executable)
    parser.add_argument("--tasks", default=",".join(SETTINGS))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0, help="on which the runs are")
    parser.add_argument("--keep", action="store_true", help="the checkpoints of all runs")
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
