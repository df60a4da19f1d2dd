"""The distance from a teacher: PyTorch's formulas, sums that can be cut anywhere, and what is filled in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxft.data.files import table
from jaxft.data.label_sets import read_label_sets
from jaxft.data.labels import read_labels
from jaxft.data.numbers import read_numbers
from jaxft.data.tags import read_tags
from jaxft.data.taught import Taught
from jaxft.tasks.distillation import (
    DistillationLoss,
    class_distance,
    label_distance,
    number_distance,
)
from jaxft.tasks.table import TASKS
from jaxft.training.by_source import losses_by_source

F = torch.nn.functional
T = 3.0


def of_classes(student, teacher):
    """Hinton et al. 2015, as PyTorch's tutorial on distillation has it; a value for each row."""
    log_p, log_q = (F.log_softmax(logits / T, -1) for logits in (teacher, student))
    return T**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def of_labels(student, teacher):
    """What the cross-entropy with the teacher's probabilities has beyond their own entropy."""
    p = torch.sigmoid(teacher / T)
    pair = [
        F.binary_cross_entropy_with_logits(logits / T, p, reduction="none").mean(-1)
        for logits in (student, teacher)
    ]
    return T**2 * (pair[0] - pair[1])


@pytest.mark.parametrize(
    ("ours", "theirs", "width"),
    [
        (lambda s, t: class_distance(s, t, T), of_classes, 5),
        (lambda s, t: label_distance(s, t, T), of_labels, 5),
        (number_distance, lambda s, t: F.mse_loss(s, t, reduction="none").sum(-1), 1),
    ],
)
def test_distances_and_gradients_are_pytorchs(ours, theirs, width):
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(2, 6, width)).astype(np.float32) * 4 for _ in range(2))
    given = torch.tensor(student, requires_grad=True)
    expected = theirs(given, torch.tensor(teacher))
    weights = rng.random((2, 6)).astype(np.float32)
    (expected * torch.tensor(weights)).sum().backward()
    found = ours(student, teacher)
    np.testing.assert_allclose(found, expected.detach(), rtol=2e-5, atol=1e-5)
    gradient = jax.grad(lambda s: jnp.sum(ours(s, teacher) * weights))(student)
    np.testing.assert_allclose(gradient, given.grad, rtol=1e-4, atol=1e-5)
    same = jax.value_and_grad(lambda s: jnp.sum(ours(s, teacher)))(teacher)
    assert same[0] == 0 and np.abs(same[1]).max() < 1e-6
    # Logits that are far from 0: nothing overflows.
    far = jax.value_and_grad(lambda s: jnp.sum(ours(s, -s)))(student * 1e3)
    assert all(np.isfinite(part).all() for part in far)


def targets():
    """(task, its targets with a teacher) of each kind with a target for a whole example."""
    names = ["a", "a", "b", "c", "a", "c", "a", "b"]
    sets = ["a|b", "", "c", "a", "a|c", "a", "b", "c"]
    values = [str(i / 3) for i in range(8)]
    rng = np.random.default_rng(1)
    labels = read_labels(table("t", {"label": names}), "label").weighted((("b", 7.0),))
    for task, own, width in (
        ("text_classification", labels, 3),
        ("multi_label", read_label_sets(table("t", {"label": sets}), "label").weighted("balanced"), 3),
        ("text_regression", read_numbers(table("t", {"label": values}), "label"), 1),
    ):  # fmt: skip
        yield task, Taught(own, rng.normal(size=(8, width)).astype(np.float32))


@pytest.mark.parametrize("case", range(3))
def test_the_mean_is_that_of_both_parts_however_the_batch_is_cut(case):
    name, taught = list(targets())[case]
    task, rng = TASKS[name], np.random.default_rng(2)
    loss = DistillationLoss(task, lambda o, b: task.loss(o, b, 0.1), 0.4, T)
    slots = np.array([[3, 0, 7], [1, 5, -1], [2, 4, 6], [-1, -1, -1]])
    batch = taught.fill(slots, {})
    logits = rng.normal(size=batch["teacher"].shape).astype(np.float32)
    total, weight = loss({"logits": logits}, batch)
    hard, own = task.loss({"logits": logits}, batch, 0.1)
    real = slots >= 0
    apart = np.asarray(task.distance({"logits": logits}, {"teacher": taught.logits[slots]}, T))
    # All 8 examples: class weights change the labels' part alone, and not how both are balanced.
    assert float(weight) == float(own)
    expected = 0.6 * float(hard / own) + 0.4 * float(apart[real].mean())
    assert float(total / weight) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        loss.parts({"logits": logits}, batch),
        [[hard, own], [apart[real].mean() * float(own), float(own)]],
        rtol=1e-5,
    )
    parts = [
        loss({"logits": logits[row]}, {key: array[row] for key, array in batch.items()})
        for row in ([0, 3], [1], [2])
    ]
    np.testing.assert_allclose(np.sum(parts, 0), [total, weight], rtol=1e-5)
    sources = {**batch, "source": np.where(real, slots % 2, 0)}
    found = losses_by_source({"logits": logits}, sources, loss=loss, count=2)
    np.testing.assert_allclose(found.sum(0), [total, weight], rtol=1e-5)
    odd = taught.fill(np.where(slots % 2 == 1, slots, -1), {})
    np.testing.assert_allclose(found[1], jnp.stack(loss({"logits": logits}, odd)), rtol=1e-4)


def test_examples_keep_their_teacher():
    for _, taught in targets():
        some = taught.take(np.array([6, 2]))
        batch = some.fill(np.array([1, -1, 0]), {})
        np.testing.assert_array_equal(batch["teacher"][[2, 0]], taught.logits[[6, 2]])
        assert not batch["teacher"][1].any() and batch["teacher_weight"].tolist()[1] == 0
        assert some.rows.tolist() == [6, 2] and some.contents()[0].tolist() == [6, 2]


def test_words_have_the_teachers_logits_but_those_it_has_not_read():
    source = table("t", {"words": [["x", "y", "z"], ["u"], ["v", "w"]],
                         "tags": [["O", "A", "O"], ["A"], ["O", "A"]]})  # fmt: skip
    logits = np.arange(12, dtype=np.float32).reshape(6, 2)
    logits[5] = np.nan
    taught = Taught(read_tags(source, "tags", "words"), logits).take(np.array([2, 0]))
    # Two texts in one row; the second word of the first is two tokens long.
    inputs = {
        "words": np.array([[-1, 0, 1, -1, -1, 0, 1, 2, -1]]),
        "segment_ids": np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0]]),
    }
    batch = taught.fill(np.array([[0, 1]]), inputs)
    assert batch["teacher_weight"].tolist() == [[0, 1, 0, 0, 0, 1, 1, 1, 0]]
    assert batch["weight"].tolist() == [[0, 1, 1, 0, 0, 1, 1, 1, 0]]
    expected = [[0, 0], [8, 9], [0, 0], [0, 0], [0, 0], [0, 1], [2, 3], [4, 5], [0, 0]]
    assert batch["teacher"].tolist() == [expected]
