"""Sweeps: killed anywhere, shared, refused, and what they leave behind."""

from __future__ import annotations

import json
import math
import threading

import optuna
import pytest
from optuna.storages import JournalStorage

from jaxft.base.nested import flatten
from jaxft.config import override
from jaxft.search.sweeps import presence, study
from jaxft.search.sweeps.domains import Choice, Float
from jaxft.search.sweeps.optuna_study import PRUNERS, SAMPLERS
from jaxft.search.sweeps.space import make_space
from jaxft.terminal import config_file
from tests.search.toy import CONFIG, SPACE, Killed, Worlds, plain, played, sweep

OPERATIONS = (
    "create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr",
    "set_trial_system_attr", "set_trial_intermediate_value",
)  # fmt: skip


def killed_at(patch, operation: int) -> None:
    """The storage ends the process before its `operation`-th write, and takes no write after that."""
    count = 0

    def counted(original):
        def call(*given, **named):
            nonlocal count
            count += 1
            if count >= operation:
                raise Killed
            return original(*given, **named)

        return call

    for name in OPERATIONS:
        patch.setattr(JournalStorage, name, counted(getattr(JournalStorage, name)))


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Trials cost nothing."""
    return played(monkeypatch)


@pytest.mark.parametrize(
    ("sampler", "pruner"), [("tpe", "median"), ("cmaes", "hyperband"), ("grid", "halving")]
)
def test_a_sweep_that_is_killed_again_and_again_is_the_undisturbed_one(
    tmp_path, toys, sampler, pruner
):
    asked = {"sampler": sampler, "pruner": pruner, "trials": 14, "seed": 3}
    whole, _ = sweep(tmp_path / "whole", **asked)
    assert {"complete", "pruned"} <= {row.state for row in whole.rows}
    ran = len(toys)
    toys.clear()
    kills, operation = 0, 2
    while True:
        with pytest.MonkeyPatch.context() as patch:
            if kills % 2:
                patch.setattr(Worlds, "reports", operation % 17 + 2)
            killed_at(patch, 10**6 if kills % 2 else operation)
            try:
                found, _ = sweep(tmp_path / "killed", **asked)
                break
            except Killed:
                kills, operation = kills + 1, operation * 5 // 3 % 37 + 7
    assert kills >= 5 and plain(found) == plain(whole) and found.best == whole.best
    assert len(toys) == ran  # none that had ended ran again


def test_every_sampler_and_pruner_proposes_what_the_seed_and_the_trials_say(tmp_path):
    pruned: set[str] = set()
    for sampler, pruner in zip((*SAMPLERS, "tpe"), PRUNERS, strict=True):
        folder = tmp_path / f"{sampler}-{pruner}"
        asked = {"sampler": sampler, "pruner": pruner, "trials": 9, "at_once": 3}
        first, _ = sweep(folder / "a", **asked)
        again, _ = sweep(folder / "b", **asked)
        assert plain(first) == plain(again) and len(first.rows) == 9
        early = [r for r in first.rows if r.state == "pruned" and not r.why]
        pruned |= {pruner} if early else set()
    assert "none" not in pruned and len(pruned) >= 3
    assert plain(sweep(tmp_path / "other", **{**asked, "seed": 1})[0]) != plain(first)


def test_two_processes_share_a_study_and_no_trial_is_run_twice_or_lost(tmp_path, toys):
    """Two threads stand for them; `test_sweep_processes` has real ones."""
    found: list = []
    threads = [
        threading.Thread(
            target=lambda: found.append(sweep(tmp_path / "s", trials=20, at_once=2, pruner="none"))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last, _ = sweep(tmp_path / "s", trials=20, at_once=2, pruner="none")
    assert [row.number for row in last.rows] == list(range(20)) and len(found) == 2
    assert last.count("running") == last.count("waiting") == 0
    assert sorted(t for t in toys if t[0] != "b") == sorted({t for t in toys if t[0] != "b"})
    points = {json.dumps(dict(row.params), sort_keys=True) for row in last.rows}
    assert len(points) == 20


def test_more_trials_go_on_where_fewer_ended(tmp_path, toys):
    sweep(tmp_path / "s", trials=8)
    before = set(toys)
    toys.clear()
    longer, _ = sweep(tmp_path / "s", trials=12)
    assert not before & {name for name in toys if not name.startswith("best")}
    whole, _ = sweep(tmp_path / "w", trials=12)
    assert plain(longer) == plain(whole) and len(longer.rows) == 12


def test_a_grid_ends_with_its_points(tmp_path):
    found, _ = sweep(tmp_path / "s", sampler="grid", pruner="none")
    assert len(found.rows) == len(SPACE.grid()) == (1 + 2) * 3 * 4
    points = {json.dumps(dict(row.params), sort_keys=True) for row in found.rows}
    assert len(points) == len(found.rows)


def test_what_is_lost_or_cannot_be_is_not_the_best_and_the_sweep_goes_on(tmp_path):
    space = make_space({"optim.lr": Float(0.05, 0.1), "optim.optimizer": Choice("sgd")}, CONFIG)
    found, said = sweep(
        tmp_path / "s", space, trials=12, at_once=4, sampler="random", pruner="none"
    )
    for row in found.rows:
        rate = row.changes["optim.lr"]
        expected = "failed" if rate > 0.09 else "pruned" if rate > 0.06 else "complete"
        assert row.state == expected, row
        assert ("too much for a toy" in row.why) == (rate > 0.09)
        assert ("not finite" in row.why) == (0.06 < rate <= 0.09)
    assert {row.state for row in found.rows} == {"failed", "pruned", "complete"}
    assert any("the loss is not finite" in line for line in said)
    bad = make_space({"optim.lr": Float(0.091, 0.1)}, CONFIG)
    with pytest.raises(ValueError, match="none of 4 trials has a config that can work; trial 0"):
        sweep(tmp_path / "b", bad, trials=12, at_once=4)
    lost = make_space({"optim.lr": Float(0.07, 0.08)}, CONFIG)
    found, _ = sweep(tmp_path / "l", lost, trials=4)
    assert found.best == () and not (tmp_path / "l/best.py").exists()


def test_a_trial_without_memory_has_failed_and_the_sweep_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Worlds, "rate_without_memory", 1e-3)
    found, said = sweep(tmp_path / "s", trials=12, sampler="random")
    small = [row for row in found.rows if row.changes["optim.lr"] < 1e-3]
    assert small and len(small) < len(found.rows) and found.best
    assert {(row.state, row.why) for row in small} == {("failed", "out of memory")}
    assert sum("failed, out of memory" in line for line in said) == len(small)


def test_the_memory_of_trials_is_an_objective_for_which_each_runs_by_itself(tmp_path):
    found, _ = sweep(tmp_path / "s", objectives="loss,memory", trials=8)
    done = [row for row in found.rows if row.state == "complete"]
    assert done and {row.values[1] - row.changes["train.seed"] for row in done} == {1000}


def test_several_objectives_have_a_front_and_no_pruning(tmp_path):
    found, _ = sweep(tmp_path / "s", objectives="loss,trainable", trials=16)
    assert found.directions == ("min", "min") and found.count("pruned") == 0
    done = [row for row in found.rows if row.state == "complete"]
    for row in done:
        beaten = any(
            all(a <= b for a, b in zip(o.values, row.values, strict=True))
            and o.values != row.values
            for o in done
        )
        assert (row.number in found.best) == (not beaten), row
    assert found.best[0] == min(found.best, key=lambda n: found.rows[n].values[0])
    for asked, words in (
        ({"pruner": "median"}, "several objectives cannot be pruned"),
        ({"sampler": "cmaes"}, "has one objective"),
    ):
        with pytest.raises(ValueError, match=words):
            sweep(tmp_path / "t", objectives="loss,trainable", **asked)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"config": override(CONFIG, {"optim.weight_decay": 0.5})},
            "config.optim.weight_decay=0.01",
        ),
        ({"space": make_space({"optim.lr": Float(0, 1)}, CONFIG)}, "another space (optim.lr)"),
        ({"seed": 1}, "--seed=0, not 1"),
        ({"sampler": "random"}, "--sampler=tpe, not random"),
        ({"at_once": 2}, "--at_once=4, not 2"),
        ({"objectives": "loss,seconds", "pruner": "none"}, "has other objectives"),
    ],
)
def test_another_sweep_in_the_same_directory_is_refused(tmp_path, changed, words):
    sweep(tmp_path / "s", trials=4)
    with pytest.raises(ValueError) as caught:
        sweep(tmp_path / "s", **changed)
    assert words in str(caught.value), caught.value
    same = override(CONFIG, {"log.tensorboard": False, "data.workers": 2})
    assert len(sweep(tmp_path / "s", config=same, trials=4)[0].rows) == 4


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"sampler": "tep"}, "did you mean 'tpe'?"),
        ({"pruner": "medium"}, "did you mean 'median'?"),
        ({"objectives": "loss,second"}, "did you mean 'seconds'?"),
        ({"objectives": "accuracy"}, "the first is what chooses the best checkpoint"),
        ({"objectives": "loss,loss"}, "is there twice"),
        ({"trials": -1}, "--trials=-1 is negative"),
        ({"storage": "/nowhere/at/all.journal"}, "no such directory"),
        ({"storage": "oracle://me:secret@x"}, "--storage oracle://me:***@x cannot be opened"),
    ],
)
def test_mistakes_are_one_line(tmp_path, asked, words):
    with pytest.raises(ValueError) as caught:
        sweep(tmp_path / "s", **asked)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("config.json", "source.json"):
        (tmp_path / "run" / name).write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/best.py").write_text("precious = 1\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("precious\n")
    for name, words in (
        ("run", "directory of a run"),
        ("mine", "no earlier output"),
        ("other", "'notes.txt'"),
    ):
        with pytest.raises(ValueError, match=words):
            sweep(tmp_path / name)
    assert (tmp_path / "mine/best.py").read_text() == "precious = 1\n"


def test_a_study_of_somebody_else_and_a_file_that_is_no_journal_are_refused(tmp_path):
    where = f"sqlite:///{tmp_path}/studies.db"
    theirs = optuna.create_study(storage=where, study_name="sweep")
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(ValueError, match="no sweep of jaxft began; give another --study"):
        sweep(tmp_path / "s", storage=where)
    found, _ = sweep(tmp_path / "s", storage=where, study="mine", trials=6)
    assert plain(found) == plain(sweep(tmp_path / "t", trials=6)[0])
    (tmp_path / "text").write_text("precious\nmore\n")
    with pytest.raises(ValueError, match="is no journal of Optuna"):
        sweep(tmp_path / "u", storage=str(tmp_path / "text"))


def test_processes_that_begin_together_on_an_empty_database_wait_for_its_tables(
    tmp_path, monkeypatch
):
    tries = []

    def opened(where):
        tries.append(where)
        if len(tries) == 1:
            raise RuntimeError("table studies already exists")
        return optuna.storages.RDBStorage(where)

    monkeypatch.setattr(study, "RDBStorage", opened)
    found, _ = sweep(tmp_path / "s", storage=f"sqlite:///{tmp_path}/new.db", trials=2)
    assert len(found.rows) == len(tries) == 2


def test_a_process_elsewhere_is_dead_after_minutes_without_a_sign(tmp_path, monkeypatch):
    storage = optuna.storages.InMemoryStorage()
    number = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")
    with presence.Presence(storage, number, tmp_path / "here") as here:
        with presence.Presence(storage, number, tmp_path / "here") as near:
            assert here.lives(near.name) and here.lives(here.name)
        with presence.Presence(storage, number, tmp_path / "there") as far:
            assert here.lives(far.name)
            monkeypatch.setattr(presence, "_GRACE_SECONDS", -1.0)
            assert not here.lives(far.name) and here.lives(here.name)
        assert not here.lives("nobody.1.00")


def test_what_is_left_behind_says_the_same(tmp_path, monkeypatch):
    monkeypatch.undo()
    played(monkeypatch, page=True)
    found, said = sweep(tmp_path / "s", trials=16)
    best = min((r for r in found.rows if r.state == "complete"), key=lambda r: r.values[0])
    assert found.best == (best.number,)
    kept = json.loads((tmp_path / "s/sweep.json").read_text())
    assert kept["written by"] == "jaxft sweep" and kept["best"] == [best.number]
    assert [row["number"] for row in kept["rows"]] == list(range(16))
    assert [line for line in said if line.startswith("trial ")][0].startswith("trial 0: ")
    assert len(said) == 16 + 4 + 1 and "by itself" in said[-1]
    config = config_file.load(str(tmp_path / "s/best.py"))
    assert flatten(config) == flatten(override(CONFIG, best.changes))
    text = (tmp_path / "s/sweep.html").read_text()
    for word in ("Parallel coordinates", "Slices", "History", "PED-ANOVA", f"Trial {best.number}:"):
        assert word in text, word
    assert text.count("<svg") >= 4 and "nan" not in text.lower().replace("finance", "")
    assert all(
        0 <= x <= 1 and math.isfinite(x) for m in found.importances.values() for x in m.values()
    )
