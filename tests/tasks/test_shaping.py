"""Class weights, the focal loss and R-Drop: their values, what they ask for, and who has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.utils.class_weight
import torch

from jaxft import train
from jaxft.config import default_config, override
from jaxft.config_check import validate
from jaxft.data.files import table
from jaxft.data.label_sets import read_label_sets
from jaxft.data.labels import read_labels
from jaxft.tasks import classification, multi_label
from jaxft.tasks.shaping import divergence, label_divergence
from tests import tiny
from tests.worlds import arguments, assert_same_weights, killed_at, rows, weights

F = torch.nn.functional


def batch_of(targets):
    return targets.fill(np.append(np.arange(len(targets)), -1), {})


def mean_and_gradient(loss, logits, batch):
    def mean(logits):
        total, weight = loss({"logits": logits}, batch)
        return total / weight

    return jax.value_and_grad(mean)(jnp.asarray(logits))


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32) * 3


def test_class_weights_are_those_of_pytorch_and_scikit_learn(logits):
    names = ["a", "a", "b", "c", "a", "c"]
    labels = read_labels(table("t", {"label": names}), "label").weighted("balanced")
    expected = sklearn.utils.class_weight.compute_class_weight(
        "balanced", classes=np.arange(3), y=labels.ids
    )
    np.testing.assert_allclose(labels.weights, expected)
    for given in (labels, labels.weighted((("b", 4.0),))):
        value, gradient = mean_and_gradient(classification.loss, logits, batch_of(given))
        theirs = torch.tensor(logits[:6], requires_grad=True)
        weight = torch.tensor(given.weights, dtype=torch.float32)
        loss = F.cross_entropy(theirs, torch.tensor(given.ids).long(), weight=weight)
        loss.backward()
        assert float(value) == pytest.approx(loss.item(), rel=1e-5)
        np.testing.assert_allclose(gradient[:6], theirs.grad, atol=1e-6)
        assert not gradient[6].any() and given.take(np.array([2])).weights is given.weights
    with pytest.raises(ValueError, match="no class 'aa'; the classes are a, b, c.*mean 'a'"):
        labels.weighted((("aa", 2.0),))


def test_weights_of_labels_are_pytorchs_pos_weight(logits):
    cells = ["a|b", "", "c", "a", "a|c", "a"]
    sets = read_label_sets(table("t", {"label": cells}), "label").weighted("balanced")
    np.testing.assert_allclose(sets.weights, [2 / 4, 5 / 1, 4 / 2])
    value, gradient = mean_and_gradient(multi_label.loss, logits, batch_of(sets))
    theirs = torch.tensor(logits[:6], requires_grad=True)
    truth = torch.tensor(sets.dense(np.arange(6)), dtype=torch.float32)
    loss = F.binary_cross_entropy_with_logits(
        theirs, truth, pos_weight=torch.tensor(sets.weights, dtype=torch.float32)
    )
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient[:6], theirs.grad, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_is_that_of_its_formula(logits, gamma):
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    batch = {"labels": labels, "weight": np.ones(7, np.float32)}
    value, gradient = mean_and_gradient(
        lambda outputs, batch: classification.loss(outputs, batch, 0.0, gamma), logits, batch
    )
    theirs = torch.tensor(logits.astype(float), requires_grad=True)
    p = theirs.softmax(-1)[torch.arange(7), torch.tensor(labels)]
    loss = (-((1 - p) ** gamma) * p.log()).mean()
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)
    truth = (logits > 1).astype(np.float32)
    value, gradient = mean_and_gradient(
        lambda outputs, batch: multi_label.loss(outputs, batch, gamma),
        logits, {"labels": truth, "weight": np.ones(7, np.float32)},
    )  # fmt: skip
    theirs = torch.tensor(logits.astype(float), requires_grad=True)
    p = torch.where(torch.tensor(truth) > 0, theirs.sigmoid(), 1 - theirs.sigmoid())
    loss = (-((1 - p) ** gamma) * p.log()).mean()
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)
    sure = np.array([[90.0, -90, -90]], np.float32)
    found = mean_and_gradient(
        lambda outputs, batch: classification.loss(outputs, batch, 0.0, gamma),
        sure, {"labels": np.array([0]), "weight": np.ones(1, np.float32)},
    )  # fmt: skip
    assert np.isfinite(found[1]).all() and float(found[0]) < 1e-6


def test_divergences_are_those_of_pytorch(logits):
    first, second = torch.tensor(logits), torch.tensor(logits[::-1].copy())
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    both = (F.kl_div(p, q, log_target=True, reduction="none")
            + F.kl_div(q, p, log_target=True, reduction="none"))  # fmt: skip
    ours = divergence(jnp.asarray(logits), jnp.asarray(logits[::-1]))
    np.testing.assert_allclose(ours, both.sum(-1) / 2, atol=1e-5)
    p, q = (torch.distributions.Bernoulli(logits=x) for x in (first, second))
    kl = torch.distributions.kl_divergence
    ours = label_divergence(jnp.asarray(logits), jnp.asarray(logits[::-1]))
    np.testing.assert_allclose(ours, (kl(p, q) + kl(q, p)).mean(-1) / 2, atol=1e-5)


SHAPED = (
    "--config.train.class_weights=(('good',2.0),('odd',0.5))", "--config.train.focal_gamma=1.5",
    "--config.train.r_drop=0.7", "--config.optim.freeze_below=1", "--config.train.steps=6",
)  # fmt: skip


@pytest.fixture(scope="module")
def shaped(world, tmp_path_factory):
    """A finished run with all of it, whose embeddings and first block are frozen."""
    run = tmp_path_factory.mktemp("shaped") / "run"
    assert train.main(arguments(world, run, *SHAPED, model="bert")) == 0
    return run


@pytest.mark.slow
def test_a_run_with_all_of_them_keeps_the_frozen_and_goes_on_bitwise(world, shaped, tmp_path):
    argv = arguments(world, tmp_path / "run", *SHAPED, model="bert")
    killed_at(5, argv)
    assert train.main(argv) == 0
    assert_same_weights(tmp_path / "run", shaped)
    from safetensors.numpy import load_file

    before, after = load_file(world / "bert/model.safetensors"), weights(shaped)
    for name, tensor in after.items():
        kept = name.startswith(("bert.embeddings", "bert.encoder.layer.0."))
        source = before.get(name, before.get(name.removeprefix("bert.")))
        assert source is None or (tensor.tobytes() == source.tobytes()) == kept, name


@pytest.mark.slow
def test_accumulation_is_the_big_batch_and_passes_that_agree_add_nothing(
    tmp_path, world, monkeypatch
):
    model = f"--config.model.path={tiny.bert(tmp_path / 'still', blocks=1, dropout=0.0)}"
    runs = {
        "all": SHAPED[:3],
        "parts": (*SHAPED[:3], "--config.train.accumulate=4"),
        "without": SHAPED[:2],
    }
    # Masks differ from microbatch to microbatch, so there is no dropout, which a user is refused.
    with pytest.raises(
        ValueError, match="r_drop=0.7 compares two passes .*nothing .* has any"
    ) as e:
        train.main(arguments(world, tmp_path / "refused", model, *SHAPED[:3]))
    assert "\n" not in str(e.value)
    monkeypatch.setattr("jaxft.experiment.build.check_passes_differ", lambda *_: None)
    losses = {}
    for name, flags in runs.items():
        argv = arguments(world, tmp_path / name, model, *flags, "--config.train.steps=4")
        assert train.main(argv) == 0
        found = rows(tmp_path / name)
        losses[name] = [row["loss"] for row in found if row["kind"] == "train"]
    np.testing.assert_allclose(losses["parts"], losses["all"], rtol=1e-5)
    np.testing.assert_allclose(losses["without"], losses["all"], rtol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train.class_weights": "balance"}, "class_weights='balance' is not a list .or 'balanced'"),
        ({"train.class_weights": ("a", "b")}, "'a' is not a .label, weight. pair, nor 'balanced'"),
        ({"train.class_weights": (("a", -1),)}, "weight -1 of 'a' is not a number between 0"),
        ({"train.focal_gamma": 2.0, "train.label_smoothing": 0.1}, "focal_gamma=2.0 needs .*smoothing"),
        ({"train.focal_gamma": -1.0}, "focal_gamma=-1.0 must be between 0 and 10"),
        ({"train.r_drop": 1.0, "model.batch_stats": "train"}, "r_drop=1.0 needs .*batch_stats"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        validate(override(default_config(), change))
    assert "\n" not in str(error.value)


def test_tasks_without_classes_have_none_of_it(world, tmp_path, capsys):
    argv = arguments(world, tmp_path / "run", "--config.task=token_classification")
    argv += ["--config.eval.metric=f1", "--config.train.r_drop=1.0"]
    with pytest.raises(ValueError, match="train.r_drop=1.0 has no meaning for .*token_class"):
        train.main(argv)
