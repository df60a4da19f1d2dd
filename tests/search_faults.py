"""Searches that are killed at random moments: the same command ends with what an undisturbed one finds.

`python -m tests.search_faults --kills 5` kills each of find_lr, sweep, cross_validate and soup so often.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.faults import Server, server
from tests.worlds import ROOT, fields

_SPACE = """
from jaxft.search.sweeps.domains import Float, Integer


def get_space():
    return {"optim.lr": Float(1e-4, 1e-1, log=True), "train.seed": Integer(0, 2)}
"""


def _argv(world: Path, *flags: str, **more: object) -> list[str]:
    short = {"train.steps": 6, "eval.every": "2 steps", "eval.metric": "loss", **more}
    own = {"model.path": world / "one_block", "optim.frozen": "(r'.*embeddings.*',)", **short}
    given = [
        f"--config.{name}={value}" for name, value in fields(world, "train.csv", 16, **own).items()
    ]
    return ["command", f"--config={ROOT}/configs/text_classification.py", *given, *flags]


def commands(world: Path, folder: Path) -> dict[str, Callable[[Path], list[str]]]:
    """The command lines of the searches, each into a folder that it is given.

    folder: of what they read: the space of the sweep, and a sweep for the soup.
    """
    (folder / "space.py").write_text(_SPACE)
    return {
        "find_lr": lambda out: _argv(
            world, f"--output={out}", "--steps=60", "--lowest=1e-5", "--seeds=2"
        ),
        "sweep": lambda out: _argv(
            world, f"--workdir={out}", f"--space={folder}/space.py", "--trials=8", "--at_once=2"
        ),
        "cross_validate": lambda out: _argv(world, f"--output={out}", "--folds=3"),
        "soup": lambda out: [
            "soup", f"--trials={folder}/sweep", f"--output={out}", "--kind=uniform", "--top=3"
        ],
    }  # fmt: skip


def found(folder: Path, name: str) -> dict[str, Any]:
    """What a search has found, without times and without the name of its folder."""
    text = (folder / f"{name}.json").read_text().replace(str(folder), "FOLDER")
    kept = [*folder.glob("predictions.jsonl"), *folder.glob("soup/*.safetensors")]
    return {"json": _timeless(json.loads(text)), **{path.name: path.read_bytes() for path in kept}}


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _timeless(v) for k, v in value.items() if not k.endswith("seconds")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def kill_one(
    started: Server, name: str, argv: Callable[[Path], list[str]], folder: Path, kills: int,
    rng: random.Random, seconds: float,
) -> int:  # fmt: skip
    """Kill a search until it has died `kills` times, over as many folders as that takes; returns how many."""
    died, folders, expected = 0, 0, found(folder / name, name)
    while died < kills:
        folders += 1
        out = folder / f"{name}{folders}"
        while True:
            after = rng.uniform(0, seconds) if died < kills else None
            status, err = started.run(argv(out), kill_after=after, module=f"jaxft.{name}")
            if status == 0:
                break
            assert status == -signal.SIGKILL, (name, status, err)
            died += 1
        assert found(out, name) == expected, f"{name} in {out}"
        assert not list(out.rglob("*.tmp")), list(out.rglob("*.tmp"))
    return folders


def kill_each(
    world: Path, folder: Path, kills: int, seed: int = 0, only: str = "", say=print
) -> None:
    """See the head of this file. folder: empty; only: a search, '' for all."""
    rng = random.Random(seed)
    with server(folder) as started:
        needed = {only, "sweep"} if only == "soup" else {only}
        for name, argv in commands(world, folder).items():
            if only and name not in needed:
                continue
            for out in (folder / f"{name}-first", folder / name):  # the first compiles
                status, err = started.run(argv(out), module=f"jaxft.{name}")
                assert status == 0, err
            if only not in ("", name):
                continue
            seconds = started.seconds
            folders = kill_one(started, name, argv, folder, kills, rng, seconds)
            say(
                f"{name}, of {seconds:.1f} CPU s: as undisturbed after {kills} kills over {folders} folders"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="find_lr, sweep, cross_validate or soup")
    given = parser.parse_args()
    from tests import conftest, worlds  # noqa: F401 its settings of XLA and the cache

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "world").mkdir()
        world = worlds.make(Path(folder) / "world")
        (Path(folder) / "searches").mkdir()
        kill_each(world, Path(folder) / "searches", given.kills, given.seed, given.only)


if __name__ == "__main__":
    main()
