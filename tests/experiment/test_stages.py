"""Gradual unfreezing in the trainer: stages that grow, keep their moments, resume and never stall."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import export, optim, train
from jaxft.experiment.build import build
from jaxft.experiment.optimizer import OptimizerOf
from jaxft.experiment.stages import split_for
from jaxft.experiment.steps import devices
from jaxft.tasks import classification
from jaxft.training.step import train_step
from tests import worlds
from tests.worlds import assert_same_weights, killed_at, rows, weights

PLANS = {
    "top_down": ("--config.optim.unfreeze=top_down", "--config.optim.unfreeze_every=3 steps"),
    "bottom_up": ("--config.optim.unfreeze=bottom_up", "--config.optim.unfreeze_every=3 steps"),
    "chain_thaw": ("--config.optim.unfreeze=chain_thaw", "--config.optim.unfreeze_every=2 steps"),
    "lp_ft": ("--config.optim.unfreeze=lp_ft", "--config.optim.unfreeze_every=5 steps"),
    "explicit": ("--config.optim.unfreeze=explicit",
                 "--config.optim.unfreeze_at=((0, (3,)), ('4 steps', (1, 2)))"),
}  # fmt: skip


# Two blocks, so that a stage has something below it.
arguments = functools.partial(worlds.arguments, model="bert")


def built(world: Path, *extra: str, mode: str = "jit"):
    prepared = worlds.prepared(arguments(world, world / "unused", *extra, mode=mode))
    return build(prepared, devices(prepared.config), cache=None)


def stepped(run, state, stop: int, start: int = 0):
    """The state after updates start..stop - 1."""
    return worlds.updated(run, state, stop, start)[0]


def host(tree) -> dict[str, np.ndarray]:
    return {path: np.array(leaf) for path, leaf in optim.by_path(tree).items()}


@pytest.mark.parametrize("mode", ["jit", "shard", pytest.param("pmap", marks=pytest.mark.slow)])
def test_a_stage_change_keeps_every_slot_and_parameter_bit_for_bit(world, mode):
    run, state = built(world, *PLANS["top_down"], mode=mode)
    state = stepped(run, state, 6)
    before_slots, before = host(state.opt_state), host(optim.merge(state.params, state.frozen))
    after = run.stages.advance(state, 6)
    slots = host(after.opt_state)
    assert set(before_slots) < set(slots)
    for path, value in before_slots.items():
        np.testing.assert_array_equal(slots[path], value, err_msg=path)
    for path, value in host(optim.merge(after.params, after.frozen)).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    # What begins to train has fresh moments and its own Adam count, so its own bias correction.
    fresh = [value for path, value in slots.items() if path not in before_slots]
    assert fresh and all(not value.any() for value in fresh)


# One by hand: the others are made of the same.
@pytest.mark.parametrize(
    "plan", [p if p == "explicit" else pytest.param(p, marks=pytest.mark.slow) for p in PLANS]
)
def test_only_the_plan_moves_parameters(world, plan):
    run, state = built(world, *PLANS[plan])
    depths = run.prepared.architecture.depths
    for step in range(12):
        before = host(optim.merge(state.params, state.frozen))
        state = stepped(run, state, step + 1, start=step) if step == 0 else state
        if step:
            if run.stages.begins(step):
                state = run.stages.advance(state, step)
            state = stepped(run, state, step + 1, start=step)
        after = host(optim.merge(state.params, state.frozen))
        trains = run.prepared.decisions.plan[
            optim.stage_index(run.prepared.decisions.plan, step)
        ].groups
        for path, value in after.items():
            same = np.array_equal(value, before[path])
            if depths[path] not in trains:
                assert same, (step, path)
            elif step and path.endswith("output/dense/kernel"):  # update 0 has rate 0: warm-up
                assert not same, (step, path)


@pytest.mark.slow
def test_stages_equal_the_gated_single_program(world):
    """The library's one-program way and the trainer's program a stage give the same numbers."""
    extra = ("--config.model.dropout=0", *PLANS["chain_thaw"])
    run, state = built(world, *extra)
    prepared = run.prepared
    optimizer = OptimizerOf(prepared.config, prepared.decisions)
    whole = jax.tree.map(np.asarray, optim.merge(state.params, state.frozen))
    params, frozen, _ = split_for(frozenset(), frozenset(), jax.tree.map(jax.numpy.asarray, whole))
    single = run.parallel.init(params, frozen, jax.tree.map(np.asarray, state.hparams), optimizer)
    step = run.parallel.compile_train(
        functools.partial(train_step, forward=prepared.architecture.apply, loss=classification.loss,
                          optimizer=optimizer), single)  # fmt: skip
    for i in range(10):
        single, _ = step(single, run.parallel.put(run.train_batches[i]))
    staged = stepped(run, state, 10)
    expected = host(single.params)
    for path, value in host(optim.merge(staged.params, staged.frozen)).items():
        np.testing.assert_allclose(value, expected[path], atol=5e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["top_down", "chain_thaw"])
def test_a_kill_inside_and_at_the_edge_of_a_stage_changes_nothing(world, tmp_path, plan):
    extra = (*PLANS[plan], "--config.checkpoint.every_steps=1")
    assert train.main(arguments(world, tmp_path / "whole", *extra)) == 0
    for step in (3, 7):
        killed_at(step, arguments(world, tmp_path / "broken", *extra))
    assert train.main(arguments(world, tmp_path / "broken", *extra)) == 0
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")
    events = [row for row in rows(tmp_path / "whole") if row["kind"] == "event"]
    assert [e["name"] for e in events] == ["stage"] * (len(events))
    assert len(events) == (3 if plan == "top_down" else 4)


def test_the_best_step_of_an_earlier_stage_is_exported_as_it_was(world, tmp_path):
    """What trained only after the best step leaves with the source's bytes."""
    extra = ("--config.optim.unfreeze=lp_ft", "--config.optim.unfreeze_every=6 steps",
             "--config.optim.lr=0.05", "--config.optim.lr_mult=(('bert/.*', 40.0),)",
             "--config.optim.warmup=0", "--config.eval.every=1 steps",
             "--config.eval.metric=loss", "--config.optim.clip=none")  # fmt: skip
    assert train.main(arguments(world, tmp_path / "run", *extra)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_step"] <= 6 < summary["steps"]
    source = load_file(world / "bert" / "model.safetensors")
    found = weights(tmp_path / "run")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert found[name].tobytes() == source[name].tobytes()
    assert not np.array_equal(found["classifier.weight"], source["classifier.weight"][:1])
    argv = ["export", f"--run={tmp_path}/run", f"--output={tmp_path}/out"]
    assert export.main(argv) == 0
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(again[k], v) for k, v in found.items())


def test_the_next_stage_is_compiled_before_it_begins(world, monkeypatch):
    run, state = built(world, *PLANS["lp_ft"], "--config.data.max_shapes=2")
    run.stages.compile(0, run.train_batches)
    assert run.stages.at(0).program.traced >= 1 and run.stages.at(5).program.traced == 0
    run.stages.compile_ahead(0, run.train_batches)
    run.stages.wait()
    shapes = len(run.train_batches.blank())
    assert [run.stages.at(step).program.traced for step in (0, 5)] == [shapes, shapes]
    stepped(run, state, 8)
    assert [run.stages.at(step).program.traced for step in (0, 5)] == [shapes, shapes]
    monkeypatch.setattr("threading.Thread", lambda **_: pytest.fail("nothing is left to compile"))
    run.stages.compile_ahead(0, run.train_batches)


def test_depths_that_are_frozen_for_good_are_no_stages_and_the_default_spacing_fits(world):
    """Depths 0 and 1 of 0 to 3 stay: two stages, of one third and two thirds of 12 steps."""
    extra = ("--config.optim.unfreeze=top_down", "--config.optim.freeze_below=1")
    run, state = built(world, *extra)
    plan = run.prepared.decisions.plan
    assert [(stage.start, sorted(stage.groups)) for stage in plan] == [(0, [3]), (4, [2, 3])]
    assert run.stages.describe(4).startswith("stage 2 of 2")
    before = host(optim.merge(state.params, state.frozen))
    state = stepped(run, state, 4)
    state = stepped(run, run.stages.advance(state, 4), 8, start=4)
    depths = run.prepared.architecture.depths
    for path, value in host(optim.merge(state.params, state.frozen)).items():
        assert depths[path] > 1 or np.array_equal(value, before[path]), path


def test_two_durations_of_one_update_unfreeze_together(world):
    at = "((0, (3,)), ('50%', (2,)), ('6 steps', (1,)))"
    extra = ("--config.optim.unfreeze=explicit", f"--config.optim.unfreeze_at={at}")
    plan = built(world, *extra)[0].prepared.decisions.plan
    assert [(stage.start, sorted(stage.groups)) for stage in plan] == [(0, [3]), (6, [1, 2, 3])]


def test_the_report_speaks_of_what_trained_in_the_exported_weights(world, tmp_path):
    """Stopped in the first stage: only the head had moved."""
    extra = ("--config.optim.unfreeze=lp_ft", "--config.optim.unfreeze_every=9 steps",
             "--config.eval.every=1 steps", "--config.eval.patience=1", "--config.optim.lr=1e-9")  # fmt: skip
    assert train.main(arguments(world, tmp_path / "run", *extra)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] < 9
    table = json.loads((tmp_path / "run" / "parameters.json").read_text())
    assert {row["path"] for row in table if row["trained"]} == {
        row["path"] for row in table if row["depth"] == 3
    }
    counts = summary["parameters"]
    assert counts["trained"] == sum(row["size"] for row in table if row["trained"])
    assert counts["trained"] < counts["trainable"] == counts["total"]
    assert f"{counts['trained']:,} trained" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--config.optim.unfreeze=top_down", "--config.optim.freeze_below=all"),
         "nothing to unfreeze"),
        (("--config.optim.unfreeze=top_down", "--config.optim.unfreeze_every=9 steps"),
         "begins its last stage at update 27, but the run has 12"),
        (("--config.optim.unfreeze=topdown",), "did you mean 'top_down'"),
        (("--config.optim.unfreeze=explicit",), "needs config.optim.unfreeze_at"),
        (("--config.optim.unfreeze=explicit", "--config.optim.unfreeze_at=((0, (3,)), (2, (9,)))"),
         "no parameter is in the group 9"),
        (("--config.optim.groups=(('classifier/.*', {'rate': 1}),)",), "sets 'rate'"),
        (("--config.optim.groups=(('clasifier/.*', {'lr': 1}),)",), "matches no parameter"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_work_is_refused(world, extra, message):
    with pytest.raises(ValueError, match=message):
        built(world, *extra)


def test_groups_have_rates_decay_and_schedules_of_their_own(world):
    groups = "(('classifier/.*', {'lr': 1e-2, 'weight_decay': 0.0, 'schedule': 'constant'}),)"
    extra = ("--config.optim.lr=1e-3", "--config.optim.warmup=0", "--config.optim.weight_decay=0.0",
             f"--config.optim.groups={groups}")  # fmt: skip
    run, state = built(world, *extra)
    before = host(state.params)
    after = host(stepped(run, state, 1).params)
    moved = {p: float(np.abs(after[p] - before[p]).max()) for p in before}
    # Adam's first update is the rate itself, wherever the gradient is not tiny.
    assert moved["classifier/kernel"] == pytest.approx(1e-2, rel=1e-2)
    assert moved["bert/encoder/layer/1/output/dense/kernel"] == pytest.approx(1e-3, rel=1e-2)


def test_decay_towards_pretrained_pulls_back_to_the_source(world):
    extra = (
        "--config.optim.decay_towards=pretrained",
        "--config.optim.warmup=0",
        "--config.optim.b1=0",
    )
    far, near = (
        host(stepped(*built(world, *extra, f"--config.optim.weight_decay={d}"), 8).params)
        for d in (0.0, 10.0)
    )
    run, state = built(world, *extra)
    source = host(state.params)
    path = "bert/encoder/layer/0/output/dense/kernel"
    assert np.abs(near[path] - source[path]).mean() < np.abs(far[path] - source[path]).mean()
