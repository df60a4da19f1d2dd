"""What is evaluated and exported when weights are averaged, mixed, or taken uphill: the whole command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import describe, evaluate, export, optim, train
from jaxft.experiment.weights import weights_of
from jaxft.models import by_path
from tests import worlds
from tests.experiment.test_stages import arguments, built, host, stepped
from tests.worlds import assert_same_weights, killed_at, weights

CONSTANT = ("--config.optim.schedule=constant", "--config.optim.warmup=0")
RECIPES = {
    "ema": ("--config.optim.average=ema", "--config.optim.average_decay=0.7"),
    "swa": ("--config.optim.average=swa", "--config.optim.average_from=5 steps"),
    "schedule_free": ("--config.optim.schedule_free=true", *CONSTANT),
    "sam": ("--config.optim.sam_radius=0.05", "--config.train.accumulate=2"),
    "wise_ft": ("--config.optim.wise_ft=0.25",),
    "sam, unfreezing, average": ("--config.optim.sam_radius=0.05", "--config.optim.average=ema",
                                 "--config.optim.unfreeze=lp_ft", "--config.optim.unfreeze_every=3 steps"),
}  # fmt: skip
KERNEL = "bert/encoder/layer/1/output/dense/kernel"


def measured(run, state) -> dict[str, np.ndarray]:
    """The weights that stand for a state, as numpy."""
    whole = run.parallel.unreplicate(weights_of(run, state))
    return {path: np.array(leaf) for path, leaf in by_path(whole).items()}


def history(world: Path, recipe: str, steps: int):
    """The weights that stand for the state after `steps` updates, and the parameters after each."""
    run, state = built(world, *RECIPES[recipe])
    seen = [host(state.params)]
    for step in range(steps):
        state = stepped(run, state, step + 1, start=step)
        seen.append(host(state.params))
    return measured(run, state), [params[KERNEL] for params in seen]


def test_ema_and_swa_are_the_averages_they_are_called(world):
    found, seen = history(world, "ema", 6)
    expected = seen[0]
    for step, params in enumerate(seen[1:], start=1):
        decay = min(0.7, (1 + step) / (10 + step))  # the average warms up
        expected = decay * expected + (1 - decay) * params
    np.testing.assert_allclose(found[KERNEL], expected, atol=1e-6)
    assert np.abs(found[KERNEL] - seen[-1]).max() > 1e-3

    found, seen = history(world, "swa", 9)
    np.testing.assert_allclose(found[KERNEL], np.mean(seen[5:], axis=0), atol=1e-6)
    found, seen = history(world, "swa", 3)  # before it begins: the weights as they are
    np.testing.assert_array_equal(found[KERNEL], seen[-1])


def test_wise_ft_mixes_what_was_pretrained_and_leaves_a_new_head_alone(world):
    run, state = built(world, *RECIPES["wise_ft"], "--config.optim.freeze_below=0")
    source = host(optim.merge(state.params, state.frozen))
    state = stepped(run, state, 6)
    trained, found = host(state.params), measured(run, state)
    np.testing.assert_allclose(
        found[KERNEL], 0.75 * source[KERNEL] + 0.25 * trained[KERNEL], atol=1e-7
    )
    np.testing.assert_array_equal(found["classifier/kernel"], trained["classifier/kernel"])
    embeddings = "bert/embeddings/word_embeddings/embedding"
    np.testing.assert_array_equal(found[embeddings], host(state.frozen)[embeddings])


# Of those that work alike, one in every run of the tests: the last recipe has an average and SAM.
_ALIKE = ("sam", "swa", "ema", "wise_ft", "schedule_free")


@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=pytest.mark.slow) if r in _ALIKE else r for r in RECIPES]
)
def test_what_was_measured_is_what_is_exported_also_after_a_kill(world, tmp_path, recipe):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main(worlds.arguments(world, whole, *RECIPES[recipe])) == 0
    killed_at(7, worlds.arguments(world, broken, *RECIPES[recipe]))
    assert train.main(worlds.arguments(world, broken, *RECIPES[recipe])) == 0
    assert_same_weights(broken, whole)

    again = tmp_path / "again"
    assert export.main(["export", f"--run={whole}", f"--output={again}"]) == 0
    assert (again / "model.safetensors").read_bytes() == (
        whole / "best" / "model.safetensors"
    ).read_bytes()
    out = tmp_path / "metrics.json"
    assert evaluate.main(["evaluate", f"--run={whole}", f"--output={out}"]) == 0
    summary = json.loads((whole / "summary.json").read_text())
    assert json.loads(out.read_text())["loss"] == pytest.approx(summary["eval"]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("recipe", "modes"),
    [
        pytest.param("schedule_free", ("shard",), marks=pytest.mark.slow),
        ("wise_ft", ("pmap",)),
        *(
            pytest.param("sam, unfreezing, average", (mode,), marks=pytest.mark.slow)
            for mode in ("shard", "pmap")
        ),
    ],
)
def test_every_way_to_compile_measures_the_same_weights(world, recipe, modes):
    # A large eps: the true gradient of a key's bias is zero, and Adam makes steps of its rounding.
    extra = (*RECIPES[recipe], "--config.model.dropout=0", "--config.optim.eps=1e-3")
    found = {}
    for mode in ("jit", *modes):
        run, state = built(world, *extra, mode=mode)
        found[mode] = measured(run, stepped(run, state, 5))
    for mode in modes:
        for path, value in found["jit"].items():
            np.testing.assert_allclose(found[mode][path], value, atol=1e-5, err_msg=path)


def test_sam_takes_its_gradient_uphill(world):
    common = ("--config.optim.optimizer=sgd", "--config.optim.b1=0", "--config.optim.clip=none",
              "--config.optim.weight_decay=0", "--config.optim.lr=0.1", *CONSTANT,
              "--config.model.dropout=0")  # fmt: skip
    run, state = built(world, *common)
    start, batch = host(state.params), run.parallel.put(run.train_batches[0])
    plain = host(stepped(run, state, 1).params)
    gradient = {path: (start[path] - plain[path]) / 0.1 for path in start}
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    run, state = built(world, *common)
    uphill = jax.tree.map(
        lambda p, g: p + 0.5 * g / norm,
        state.params,
        jax.tree.unflatten(jax.tree.structure(state.params), list(gradient.values())),
    )
    moved = host(run.stages.at(0).program(_with_params(state, uphill), batch)[0].params)
    expected = {p: start[p] - 0.1 * (host(uphill)[p] - moved[p]) / 0.1 for p in start}
    run, state = built(world, *common, "--config.optim.sam_radius=0.5")
    found = host(stepped(run, state, 1).params)
    for path in start:
        np.testing.assert_allclose(found[path], expected[path], atol=2e-6, err_msg=path)
    assert np.abs(found[KERNEL] - plain[KERNEL]).max() > 1e-5


def _with_params(state, params):
    return dataclasses.replace(state, params=jax.tree.map(jax.numpy.copy, params))


@pytest.mark.parametrize(("name", "size"), [("lion", 1e-2), ("sgd", None)])
def test_a_group_may_have_an_optimizer_of_its_own(world, name, size):
    groups = f"(('classifier/.*', {{'optimizer': '{name}', 'lr': 1e-2}}),)"
    run, state = built(world, *CONSTANT, "--config.optim.weight_decay=0", "--config.optim.lr=1e-3",
                       "--config.optim.clip=none", f"--config.optim.groups={groups}")  # fmt: skip
    before = host(state.params)
    after = host(stepped(run, state, 1).params)
    step = np.abs(after["classifier/kernel"] - before["classifier/kernel"])
    if size:  # the sign of the gradient, times the rate
        np.testing.assert_allclose(step, size, rtol=1e-3)
    else:  # the gradient, times the rate: no two alike
        assert len(np.unique(step)) > step.size / 2 and step.max() < 1e-2
    assert np.abs(after[KERNEL] - before[KERNEL]).max() == pytest.approx(1e-3, rel=1e-2)


def test_what_counts_is_said(world, capsys):
    argv = [a for a in arguments(world, world / "none", *RECIPES["ema"]) if "--workdir" not in a]
    assert describe.main([*argv, "--config.optim.wise_ft=0.25"]) == 0
    assert (
        "evaluated and exported: the moving average of the weights (decay 0.7), 25% of that and "
        "75% of the pretrained weights"
    ) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--config.optim.schedule_free=true",), "needs config.optim.schedule='constant', not 'linear'"),
        (("--config.optim.schedule_free=true", *CONSTANT, "--config.optim.average=ema"),
         "needs config.optim.average='none'"),
        (("--config.optim.schedule_free=true", *CONSTANT, "--config.optim.b1=0"),
         "needs config.optim.b1, which is 0.0"),
        (("--config.optim.average=em",), r"not one of none, ema, swa \(did you mean 'ema'\?\)"),
        (("--config.optim.average=swa", "--config.optim.average_from=100 steps"), "the run has 12"),
        (("--config.optim.wise_ft=2",), "between 0 and 1"),
        (("--config.optim.groups=(('classifier/.*', {'optimizer': 'adam'}),)",), "one of adamw, sgd, lion"),
        (("--config.optim.groups=(('classifier/.*', {'lr': 'high'}),)",), "a number between 0 and 10"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(world, extra, message):
    with pytest.raises(ValueError, match=message):
        built(world, *extra)


def test_tensors_that_never_trained_keep_their_bytes_beside_averaged_ones(world, tmp_path):
    run = tmp_path / "run"
    extra = (*RECIPES["ema"], "--config.optim.freeze_below=1")
    assert train.main(arguments(world, run, *extra)) == 0
    source, found = load_file(world / "bert" / "model.safetensors"), weights(run)
    same = [name for name in source if np.array_equal(found[name], source[name])]
    assert any("layer.0" in name for name in same) and not any("layer.1" in name for name in same)
