"""Updates that are not finite: left out inside the program, gone back from, counted, and written down."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxft.optim import sam
from jaxft.training.gradient import MeanGradient
from jaxft.training.logs import Logs
from jaxft.training.mesh import make_parallel
from jaxft.training.nonfinite import NAME, NonFinite, RollBack
from jaxft.training.parallel import Parallel
from jaxft.training.step import hyperparameters, train_step
from jaxft.training.trials import stack_states, trial_axis

HPARAMS = hyperparameters(jax.random.key(0))
PARALLEL = {
    "jit": lambda: make_parallel("jit"),
    "shard": lambda: make_parallel("shard", data=4, fsdp=2),
    "pmap": lambda: make_parallel("pmap"),
}


def forward(params, batch, key):
    """A product whose square is the loss; NaN where the input is."""
    x = batch["x"] @ params["kernel"] + params["bias"]
    return {"x": x, "moments": {"mean": x.mean(0)}}


def loss(outputs, batch):
    each = (outputs["x"] ** 2).sum(-1) * batch["weight"]
    return each.sum(), batch["weight"].sum()


def begun(parallel: Parallel, tx, mean=None):
    """The state of a matrix, cut over fsdp, a bias, and a statistic that moves where `mean` is given."""
    rng = np.random.default_rng(0)
    specs = {"kernel": PartitionSpec(None, "fsdp"), "bias": PartitionSpec()}
    places = parallel.shardings(specs)
    params = {"kernel": rng.normal(size=(3, 8)).astype(np.float32), "bias": np.ones(8, np.float32)}
    params = {name: jax.device_put(params[name], places[name]) for name in params}
    nothing = dict.fromkeys(("kernel", "bias", "mean"))
    stats = None if mean is None else {**nothing, "mean": mean}
    return parallel.init({**nothing, **params}, nothing, HPARAMS, lambda _: tx, stats)


def steps(parallel: Parallel, tx, nonfinite: str, parts: int = 1, moved=None, mean=None):
    """(first state, compiled step)."""
    state = begun(parallel, tx, mean)
    step = functools.partial(
        train_step, forward=forward, loss=loss, optimizer=lambda _: tx, moved=moved,
        gradient=MeanGradient(parts, parallel.axis_name), nonfinite=nonfinite,
    )  # fmt: skip
    return state, parallel.compile_train(step, state)


def batch(seed: int, bad: float | None = None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    if bad is not None:
        x[5, 1] = bad
    return {"x": x, "weight": np.ones(16, np.float32)}


def everything(parallel: Parallel, state):
    found = parallel.unreplicate((state.params, state.opt_state, state.stats))
    return [np.asarray(x) for x in jax.tree.leaves(found)]


@pytest.mark.parametrize("mode", PARALLEL)
def test_a_skipped_batch_leaves_every_bit_but_the_step_as_it_was(mode):
    parallel, tx = PARALLEL[mode](), optax.adamw(1e-2)
    state, step = steps(parallel, tx, "skip", parts=2)
    state, found = step(state, parallel.put(batch(0)))
    found = parallel.unreplicate(found)
    assert float(found["nonfinite"]) == 0 and not found["leaves"].any()
    before = everything(parallel, state)
    for number, bad in enumerate((np.nan, np.inf, 1e38), 1):
        state, found = step(state, parallel.put(batch(number, bad)))
        found = parallel.unreplicate(found)
        assert float(found["nonfinite"]) == 1 and not np.isfinite(found["grad_norm"])
        for old, new in zip(before, everything(parallel, state), strict=True):
            np.testing.assert_array_equal(old, new)
        assert int(parallel.unreplicate(state.step)) == 1 + number
    state, found = step(state, parallel.put(batch(9)))
    assert np.isfinite(parallel.unreplicate(found)["loss"])
    assert any((a != b).any() for a, b in zip(before, everything(parallel, state), strict=True))


def test_a_second_gradient_and_moved_statistics_count_too():
    """SAM looks uphill, where this loss is infinite; and what a batch norm would keep overflows."""
    parallel = PARALLEL["jit"]()
    state, step = steps(parallel, sam(optax.sgd(0.1), 1e38), "skip")
    before = everything(parallel, state)
    state, metrics = step(state, parallel.put(batch(0)))
    assert float(metrics["nonfinite"]) == 1 and np.isfinite(metrics["grad_norm"])
    assert not metrics["leaves"].any()
    for old, new in zip(before, everything(parallel, state), strict=True):
        np.testing.assert_array_equal(old, new)

    def moved(stats, moments):
        return {**stats, "mean": stats["mean"] + moments["mean"] * jnp.float32(1e38) * 1e38}

    state, step = steps(parallel, optax.sgd(0.0), "skip", moved=moved, mean=jnp.zeros(8))
    state, metrics = step(state, parallel.put(batch(0)))
    assert float(metrics["nonfinite"]) == 1
    np.testing.assert_array_equal(state.stats["mean"], np.zeros(8))


def test_of_trials_only_those_that_are_not_finite_stay_as_they_are():
    parallel, axis = PARALLEL["jit"](), trial_axis(1)
    tx = optax.adam(1e-2)
    state = begun(parallel, tx)
    step = functools.partial(
        train_step, forward=forward, loss=loss, optimizer=lambda _: tx, nonfinite="skip"
    )
    trials, shared = stack_states([state, state], [], axis)
    program = axis.compile_train(step, own_batches=True)
    both = {k: np.stack([batch(0)[k], batch(0, np.nan)[k]]) for k in batch(0)}
    trials, metrics = program(trials, shared, axis.put(both, own=True))
    assert metrics["nonfinite"].tolist() == [0, 1]
    kernel = np.asarray(trials.own.params["kernel"])
    first = np.asarray(begun(parallel, tx).params["kernel"])
    assert (kernel[0] != first).any()
    np.testing.assert_array_equal(kernel[1], first)


def test_stopping_is_the_program_that_it_always_was():
    """Not one operation more: neither a select nor a flag."""
    parallel, tx = PARALLEL["jit"](), optax.adamw(1e-2)
    programs = {}
    for how in ("stop", "rollback", "skip"):
        state = begun(parallel, tx)
        given = {} if how == "stop" else {"nonfinite": how}
        step = functools.partial(train_step, forward=forward, loss=loss, optimizer=lambda _: tx)
        programs[how] = str(jax.make_jaxpr(functools.partial(step, **given))(state, batch(0)))
    assert "is_finite" not in programs["stop"]
    count = {how: text.count("select_n") for how, text in programs.items()}
    assert count["stop"] == count["rollback"] < count["skip"]


def make(directory: Path, how: str, most: int = 3, **more) -> tuple[Logs, NonFinite]:
    nonfinite = NonFinite(
        directory, how=how, most=most, rows=lambda step: [10 * step, 10 * step + 1],
        paths=lambda step: ("kernel", "bias"),
    )  # fmt: skip
    logs = Logs(
        directory, total_steps=40, steps_per_epoch=10, log_every=2, tensorboard=False, enabled=True,
        nonfinite=nonfinite, **more,
    )  # fmt: skip
    return logs, nonfinite


def metrics(value: float, bad: bool = False):
    return {
        "loss": jnp.float32(value), "weight": jnp.float32(8), "grad_norm": jnp.float32(1),
        "nonfinite": jnp.float32(bad), "leaves": jnp.array([False, bad]),
    }  # fmt: skip


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_skipped_updates_are_written_down_and_count_in_no_mean(tmp_path, capsys):
    logs, _ = make(tmp_path, "skip")
    with logs:
        for step, value in enumerate((1.0, np.nan, 3.0, 5.0, np.inf, np.nan, 7.0), 1):
            logs.train(step, metrics(value, not np.isfinite(value)), 1e-3)
    noted = rows(tmp_path / NAME)
    assert [(r["step"], r["done"], r["loss"]) for r in noted] == [
        (2, "skip", "nan"), (5, "skip", "inf"), (6, "skip", "nan"),
    ]  # fmt: skip
    assert (
        noted[0]["rows"] == [20, 21] and noted[0]["paths"] == ["bias"] and noted[0]["leaves"] == 1
    )
    written = rows(tmp_path / "metrics.jsonl")
    trained = [(r["step"], r["loss"], r["nonfinite"]) for r in written if r["kind"] == "train"]
    # Of steps 5 and 6 there is nothing to say: they join the next row.
    assert trained == [(2, 1.0, 1), (4, 4.0, 1), (7, 7.0, 3)]
    said = capsys.readouterr().out
    assert "the loss is nan at step 2, of rows 20, 21: the update is left out" in said


def test_one_more_than_may_be_left_out_ends_the_run(tmp_path):
    logs, _ = make(tmp_path, "skip", most=2)
    with pytest.raises(
        FloatingPointError, match="at step 3, and 2 updates were left out before it"
    ):
        with logs:
            for step in (1, 2, 3):
                logs.train(step, metrics(np.nan, True), 1e-3)
            logs.flush()
    assert [r["done"] for r in rows(tmp_path / NAME)] == ["skip", "skip", "stop"]
    # More are allowed: the same updates are left out again, and the third one, too.
    logs, nonfinite = make(tmp_path, "skip", most=3)
    nonfinite.resume(1)
    with logs:
        for step in (2, 3):
            logs.train(step, metrics(np.nan, True), 1e-3)
    assert [(r["step"], r["done"]) for r in rows(tmp_path / NAME)] == [
        (1, "skip"), (2, "skip"), (3, "skip"),
    ]  # fmt: skip


def test_a_rollback_is_remembered_by_whoever_goes_on(tmp_path):
    logs, nonfinite = make(tmp_path, "rollback")
    with pytest.raises(RollBack) as caught, logs:
        for step in range(1, 9):
            # Never early, so that all processes go back after the same step.
            logs.train(step, metrics(1.0 if step != 3 else np.nan, step == 3), 1e-3)
            assert step < 3 + 5
    assert caught.value.step == 3
    assert nonfinite.leaves_out(3) and not nonfinite.leaves_out(2)
    logs, again = make(tmp_path, "rollback")
    again.resume(0)
    assert again.leaves_out(3) and (again.count(2), again.count(3)) == (0, 1)
    with logs:
        logs.resume(0, "rollback", "back")
        for step in (1, 2):
            logs.train(step, metrics(1.0), 1e-3)
        logs.left_out(3, 1e-3)
        logs.train(4, metrics(5.0), 1e-3)
    trained = [r for r in rows(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert [(r["step"], r["loss"], r["nonfinite"]) for r in trained] == [(2, 1.0, 0), (4, 5.0, 1)]


def test_the_first_one_ends_a_run_by_default_and_is_written_down(tmp_path):
    logs, _ = make(tmp_path, "stop")
    with pytest.raises(
        FloatingPointError, match="the gradient norm is inf at step 2; checkpoints of"
    ):
        with logs:
            logs.train(
                1, step := {k: metrics(1.0)[k] for k in ("loss", "weight", "grad_norm")}, 1e-3
            )
            logs.train(2, {**step, "grad_norm": jnp.float32(np.inf)}, 1e-3)
            logs.flush()
    (noted,) = rows(tmp_path / NAME)
    assert noted == {"step": 2, "done": "stop", "loss": 1.0, "grad_norm": "inf", "rows": [20, 21]}


@pytest.mark.parametrize("foreign", ["", "[1]\n", '{"step": "1", "done": "skip"}\n', '{"step": 1'])
def test_foreign_lines_of_the_file_are_not_ours(tmp_path, foreign):
    (tmp_path / NAME).write_text(foreign)
    _, nonfinite = make(tmp_path, "rollback")
    assert nonfinite.count(9) == 0 and not nonfinite.leaves_out(1)
