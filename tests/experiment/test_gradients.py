"""Gradients of blocks: what is planted in one of them is found there, and not in the other."""

from __future__ import annotations

import types

import jax
import numpy as np

from jaxft.config import default_config
from jaxft.data.files import Source
from jaxft.data.labels import Labels
from jaxft.data.mixture import Mixture
from jaxft.experiment import gradients
from jaxft.experiment.features import Frozen
from jaxft.experiment.split import Split
from jaxft.tasks.table import TASKS

# Of a mixture, of which batches of a run hold some rows several times.
SOURCE = Source(
    "planted", (), 0, lambda columns, rows: [], mixture=Mixture(("a", "b"), (1, 400), (1, 1))
)


class Batches:
    """Of rows [n, D] in the order that they have."""

    def __init__(self, rows, split, size, count):
        assert split.source.mixture is None
        self.rows, self.split, self.size, self.count = rows, split, size, count

    def __len__(self):
        return self.count

    def __getitem__(self, step):
        slots = np.arange(step * self.size, (step + 1) * self.size)
        filled = self.split.targets.fill(slots, {})
        return {"rows": self.rows[self.split.targets.rows[slots]], **filled}


def signals(monkeypatch, labels, rows):
    """Of a model of two blocks and three rows of numbers an example: what the head reads is
    first + a * second + b * third, and a and b are 0."""
    architecture = types.SimpleNamespace(
        depths={"a": 1, "b": 2, "head": 3, "stem": 0}, num_blocks=2
    )
    monkeypatch.setattr(
        gradients, "block_features",
        lambda architecture, params, batch: (
            batch["rows"][:, 0] + batch["rows"][:, 1] * params["a"] + batch["rows"][:, 2] * params["b"],
        ),
    )  # fmt: skip
    encoder = types.SimpleNamespace(
        training=lambda split, config, steps, cut: Batches(
            rows, split, config.train.batch_size, steps
        )
    )
    split = Split(SOURCE, Labels(("no", "yes"), np.arange(len(labels)), labels.astype(np.int32), 0))
    one = Frozen("planted", "", architecture, encoder, None)
    params = {name: jax.numpy.zeros(rows.shape[-1]) for name in ("stem", "a", "b", "head")}
    plan = gradients.plan_gradients(labels, 16, 8, seed=0)
    assert (plan.batches, plan.batch_size) == (16, 8)
    return gradients.block_signals(
        one, params, split, rows[:, 0], np.eye(2)[labels], default_config(),
        TASKS["text_classification"], plan, classes=True,
    )  # fmt: skip


def test_a_signal_is_found_in_the_block_that_has_it(monkeypatch):
    """What the first block can add is of the label, and the head does not see it yet; what the second can
    add is as large, and of nothing."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    rows = rng.normal(size=(400, 3, 6))
    rows[:, :2] += 0.5 * (2 * labels - 1)[:, None, None]
    rows = rows.astype(np.float32)
    first, second = signals(monkeypatch, labels, rows)
    assert first.is_clear and first.ratio > 3 * abs(second.ratio)
    assert not second.is_clear and abs(second.ratio) < 3 * second.noise


def test_labels_at_random_are_noise_in_every_block(monkeypatch):
    """Over many draws of them: in the mean no signal, and hardly ever one that is called clear."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(8):
        labels = rng.permutation(np.arange(400) % 2)
        rows = rng.normal(size=(400, 3, 6)).astype(np.float32)
        found += signals(monkeypatch, labels, rows)
    ratios, noise = np.array([[one.ratio, one.noise] for one in found]).T
    assert abs(ratios.mean()) < 3 * noise.mean() / np.sqrt(len(found)), (ratios, noise)
    assert sum(one.is_clear for one in found) <= 2


def test_rows_that_are_few_make_smaller_batches():
    plan = gradients.plan_gradients(np.arange(60) % 2, 16, 32, seed=0)
    assert len(plan.fitted) == len(plan.asked) == 30 and not set(plan.fitted) & set(plan.asked)
    assert plan.batch_size * plan.batches <= 30 and plan.batches >= gradients.FEWEST
