"""The loss of mixed images: that of mixed targets, and a run that accumulates, stops and goes on with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxft import train
from jaxft.experiment.build import begin, read_params, share
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.tasks.mixed import mixed_loss
from jaxft.tasks.table import TASKS
from jaxft.terminal import config_file
from tests.worlds import ROOT, arguments, assert_same_weights, killed_at, weights

SHARE = np.array([0.3, 1.0, 0.0, 0.7, 0.5], np.float32)
WEIGHT = np.array([1, 1, 1, 1, 0], np.float32)


def mean_and_gradient(task, logits, batch, smoothing=0.0):
    def mean(logits):
        total, weight = mixed_loss(
            {"logits": logits}, batch, loss=lambda o, b: TASKS[task].loss(o, b, smoothing)
        )
        return total / weight

    return jax.value_and_grad(mean)(jnp.asarray(logits))


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_pytorchs_cross_entropy_of_soft_targets(logits, smoothing):
    labels, others = np.array([0, 1, 2, 1, 0]), np.array([2, 0, 0, 1, 1])
    batch = {"labels": labels, "other_labels": others, "share": SHARE, "weight": WEIGHT}
    value, gradient = mean_and_gradient("image_classification", logits, batch, smoothing)
    theirs = torch.tensor(logits, requires_grad=True)
    one, two = (torch.eye(3)[torch.tensor(x)] for x in (labels, others))
    share = torch.tensor(SHARE)[:, None]
    soft = (share * one + (1 - share) * two)[:4]
    loss = torch.nn.functional.cross_entropy(theirs[:4], soft, label_smoothing=smoothing)
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)


def test_it_is_the_loss_of_mixed_labels_and_has_the_gradient_of_mixed_numbers(logits):
    random = np.random.default_rng(1)
    first, second = random.integers(0, 2, (2, 5, 3)).astype(np.float32)
    batch = {"labels": first, "other_labels": second, "share": SHARE, "weight": WEIGHT}
    found = mean_and_gradient("image_multi_label", logits, batch)
    soft = SHARE[:, None] * first + (1 - SHARE[:, None]) * second
    expected = mean_and_gradient("image_multi_label", logits, {"labels": soft, "weight": WEIGHT})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    batch |= {"labels": first[:, 0], "other_labels": second[:, 0]}
    _, gradient = mean_and_gradient("image_regression", logits[:, :1], batch)
    soft_batch = {"labels": soft[:, 0], "weight": WEIGHT}
    _, expected = mean_and_gradient("image_regression", logits[:, :1], soft_batch)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


MIXED = (
    "--config.data.mixup=0.8", "--config.data.cutmix=1.0", "--config.train.label_smoothing=0.1",
    "--config.train.steps=6", "--config.eval.every=3 steps", "--config.checkpoint.every_steps=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def first_steps(world):
    """Parts of a batch -> (the first batch of a run, metrics of the step with it)."""

    def made(parts):
        values = dict(flag.removeprefix("--config.").split("=", 1) for flag in arguments(
            world, world, *MIXED, f"--config.train.accumulate={parts}", model="vit"
        )[3:])  # fmt: skip
        config = config_file.load(f"{ROOT}/configs/image_classification.py", list(values.items()))
        prepared, parallel = prepare(config), devices(config)
        params, report = read_params(prepared, parallel)
        run, state = begin(prepared, share(prepared, parallel, report, cache=None), params)
        batch = run.train_batches[0]
        _, metrics = run.stages.at(0).program(state, parallel.put(batch))
        return batch, {name: float(x) for name, x in metrics.items()}

    return {parts: made(parts) for parts in (1, 4)}


def test_a_step_of_several_parts_is_the_step_of_the_batch(first_steps):
    (batch, whole), (same, parts) = first_steps[1], first_steps[4]
    assert 0 < batch["share"].min() < 1 and batch["share"].shape == (16,)
    jax.tree.map(np.testing.assert_array_equal, batch, same)
    assert whole["weight"] == (batch["index"] >= 0).sum() and whole == pytest.approx(
        parts, rel=1e-4
    )


@pytest.mark.slow
def test_a_run_goes_on_bitwise(world, tmp_path):
    argv = arguments(world, tmp_path / "run", *MIXED, model="vit")
    killed_at(4, argv)
    assert train.main(argv) == 0
    whole = arguments(world, tmp_path / "whole", *MIXED, model="vit")
    assert train.main(whole) == 0
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "shard"])
def test_every_way_of_execution_learns_the_same(world, tmp_path, mode):
    ways = {"jit": ("--config.parallel.data=1",), mode: ()}
    for name, extra in ways.items():
        argv = arguments(world, tmp_path / name, *MIXED, *extra, model="vit", mode=name)
        assert train.main(argv) == 0
    one, other = weights(tmp_path / "jit"), weights(tmp_path / mode)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("task", "flag", "what"),
    [
        ("image", "--config.data.mix_switch=0.3", r"mix_switch=0.3 needs config.data.mixup, which is 0"),
        ("image", "--config.data.mix_probability=0.5", "mix_probability=0.5 is of images that are mixed"),
        ("image", "--config.data.cutmix=-1", "config.data.cutmix=-1.0 must be at least 0|between 0 and 1000"),
        ("text", "--config.data.mixup=0.2", "data.mixup=0.2 is for images, and .*reads text"),
        ("image", "--config.data.mixup_alpha=0.2", "did you mean 'data.mixup'"),
        ("image", "--config.task=image_regression --config.eval.metric=rmse --config.data.cutmix=1",
         "data.cutmix=1.0 has no meaning for .*image_regression"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(world, tmp_path, task, flag, what):
    model = "vit" if task == "image" else "one_block"
    with pytest.raises(ValueError, match=what) as error:
        train.main(arguments(world, tmp_path / "run", *flag.split(), model=model))
    assert "\n" not in str(error.value)
