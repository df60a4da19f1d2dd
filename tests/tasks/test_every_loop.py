"""What holds of every run also does where an example is several texts or windows, or a batch is compared
with itself: a kill changes no bit, what is frozen leaves as it came, and no step is traced twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import train
from jaxft.tasks.table import TASKS
from jaxft.training.logs import Logs
from tests import tiny, worlds
from tests.tasks import test_embedding, test_multiple_choice, test_question_answering

STEPS, KILLED = 8, 5
WORLDS = {
    "embedding": (test_embedding, test_embedding.write_pairs, "pairs.csv", {}),
    "multiple_choice": (test_multiple_choice, test_multiple_choice.write, "train.csv", {}),
    "question_answering": (test_question_answering, test_question_answering.write, "train.jsonl", {}),
    # The loss of the whole batch, its gradient by the vectors first.
    "embedding in parts": (
        test_embedding, test_embedding.write_pairs, "pairs.csv", {"train.accumulate": 2},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_kill_changes_no_bit_frozen_leaves_stay_and_nothing_is_traced_twice(
    tmp_path, monkeypatch, name
):
    module, write, data, more = WORLDS[name]
    base = Path(tiny.bert(tmp_path / "bert", blocks=2, dropout=0.1))
    write(tmp_path / data, 120)
    fields = {
        **module.settings(tmp_path), "train.steps": STEPS, "eval.every": "4 steps", "optim.lr": 3e-3,
        "checkpoint.every_steps": 2, "train.log_every": 1, "optim.freeze_below": 1, **more,
    }  # fmt: skip
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    traced = _counted(monkeypatch, name.split()[0])

    def run(workdir: str, killed: bool = False) -> Path:
        argv = ["train", f"--config={module.CONFIG}", f"--workdir={tmp_path / workdir}", *flags]
        traced.clear()
        if killed:
            worlds.killed_at(KILLED, argv)
        else:
            assert train.main(argv) == 0
        # Of each start, those of the first step are all: its program serves the others.
        assert traced[-1] == traced[0] > 0 and len(traced) > 2
        return tmp_path / workdir

    whole = run("whole")
    run("broken", killed=True)
    broken = run("broken")
    worlds.assert_same_weights(broken, whole)
    assert worlds.timeless(broken) == worlds.timeless(whole)

    before, after = (
        load_file(base / "model.safetensors"),
        load_file(whole / "best/model.safetensors"),
    )
    moved = {
        path: not np.array_equal(after[path], before[path]) for path in after.keys() & before.keys()
    }
    frozen = {path for path in moved if "embeddings" in path or "layer.0." in path}
    assert len(frozen) == 16 + 5 and not any(moved[path] for path in frozen)
    trained = {path for path in moved if "layer.1." in path}
    assert len(trained) == 16 and all(moved[path] for path in trained if "key.bias" not in path)


def _counted(monkeypatch, name: str) -> list[int]:
    """How often the loss of a task had been traced by the end of each step; cleared, it counts anew."""
    kind, log, found, count = type(TASKS[name]), Logs.train, [], [0]
    method = "contrast" if name == "embedding" else "loss"  # of all vectors of a batch
    loss = getattr(kind, method)

    def counted(self, *given, **named):
        count[0] += 1
        return loss(self, *given, **named)

    def logged(self, *given):
        log(self, *given)
        found.append(count[0])

    monkeypatch.setattr(kind, method, counted)
    monkeypatch.setattr(Logs, "train", logged)
    return found
