"""The losses of a mixture's sources are those of their examples alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.tasks.table import TASKS
from jaxft.training.by_source import losses_by_source


def example_loss(outputs, batch):
    return TASKS["text_classification"].loss(outputs, batch, 0.1)


def token_loss(outputs, batch):
    """As a language model has it: what counts follows from the segments."""
    weight = (batch["segment_ids"] > 0).astype(jnp.float32)
    return jnp.sum(outputs["losses"] * weight), jnp.sum(weight)


def word_loss(outputs, batch):
    return jnp.sum(outputs["losses"] * batch["weight"]), jnp.sum(batch["weight"])


@pytest.mark.parametrize("texts", [1, 2])
def test_rows_of_texts(texts):
    random = np.random.default_rng(0)
    rows, slots, length = 3, 4, 24
    index = random.permutation(rows * slots).reshape(rows, slots)
    index[0, 3] = index[2, 1] = -1
    segments = np.repeat(np.arange(1, slots * texts + 1), length // (slots * texts))
    segments = np.where(
        np.take_along_axis(index, np.tile((segments - 1) // texts, (rows, 1)), 1) < 0, 0, segments
    )
    batch = {
        "index": index,
        "source": random.integers(0, 3, (rows, slots)),
        "segment_ids": segments,
        "starts": np.zeros((rows, slots * texts), int),
        "labels": random.integers(0, 5, (rows, slots)),
        "weight": (index >= 0).astype(np.float32),
    }
    outputs = {
        "logits": random.normal(size=(rows, slots, 5)).astype(np.float32),
        "losses": random.random((rows, length)).astype(np.float32),
    }
    of_token = np.take_along_axis(batch["source"], np.maximum((segments - 1) // texts, 0), 1)
    words = {**batch, "weight": ((segments > 0) * random.random(segments.shape)).astype(np.float32)}
    cases = ((example_loss, batch), (token_loss, batch), (word_loss, words))
    for loss, given in cases:
        found = losses_by_source(outputs, given, loss=loss, count=3)
        assert found.shape == (3, 2)
        np.testing.assert_allclose(found.sum(0), jnp.stack(loss(outputs, given)), rtol=1e-5)
        for number in range(3):
            own = {**given, "segment_ids": np.where(of_token == number, segments, 0)}
            mask = batch["source"] if loss is example_loss else of_token
            if given["weight"].shape == mask.shape:
                own["weight"] = np.where(mask == number, given["weight"], 0)
            np.testing.assert_allclose(
                found[number], jnp.stack(loss(outputs, own)), rtol=1e-4, atol=1e-5
            )


def test_images_and_no_gradient():
    random = np.random.default_rng(1)
    batch = {
        "index": np.arange(6), "source": np.array([0, 1, 0, 1, 1, 0]),
        "labels": random.integers(0, 3, 6), "weight": np.array([1, 1, 1, 1, 0, 0], np.float32),
    }  # fmt: skip
    logits = random.normal(size=(6, 3)).astype(np.float32)

    def sums(logits):
        return losses_by_source({"logits": logits}, batch, loss=example_loss, count=2)

    for number, own in enumerate(([0, 2], [1, 3])):
        part = {name: array[own] for name, array in batch.items()}
        alone = example_loss({"logits": logits[own]}, part)
        np.testing.assert_allclose(sums(logits)[number], jnp.stack(alone), rtol=1e-5)
    assert not jax.grad(lambda x: sums(x).sum())(logits).any()
