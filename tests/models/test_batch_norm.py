"""The batch norm alone against torch.nn.BatchNorm2d: normalised values, gradients, kept statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxft.models import move_statistics
from jaxft.models.layers.batch_norm import BatchNorm, Sample, Statistic

WIDTH = 3


def images(rows: int, seed: int) -> np.ndarray:
    """[rows, 4, 5, WIDTH], twenty standard deviations from the kept mean of a new norm."""
    return np.random.default_rng(seed).normal(10, 0.5, (rows, 4, 5, WIDTH)).astype(np.float32)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x.transpose(0, 3, 1, 2))


def pair() -> tuple[torch.nn.BatchNorm2d, BatchNorm]:
    theirs, ours = torch.nn.BatchNorm2d(WIDTH), BatchNorm(WIDTH, path="a/norm")
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        theirs.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    ours.scale[...], ours.bias[...] = jnp.array([0.5, 2.0, -1.0]), jnp.array([0.1, 0.0, 3.0])
    return theirs, ours


def statistics(norm: BatchNorm) -> dict:
    return {"a": {"norm": nnx.to_pure_dict(nnx.state(norm, Statistic))}}


def assert_kept_equal(found: dict, theirs: torch.nn.BatchNorm2d) -> None:
    norm = found["a"]["norm"]
    np.testing.assert_allclose(norm["running_mean"], theirs.running_mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(norm["running_var"], theirs.running_var.numpy(), rtol=1e-4)
    assert int(norm["num_batches_tracked"]) == int(theirs.num_batches_tracked)


def test_values_gradients_and_kept_statistics_are_torchs_over_unequal_batches():
    theirs, ours = pair()
    for seed, rows in enumerate((6, 2, 1, 5)):
        x, cotangent = images(rows, seed), images(rows, 10 + seed) - 10
        entered = channels_first(x).requires_grad_()
        expected = theirs(entered)
        (expected * channels_first(cotangent)).sum().backward()
        found, back, moments = jax.vjp(lambda x: ours(x, Sample()), jnp.asarray(x), has_aux=True)
        np.testing.assert_allclose(channels_first(found), expected.detach(), atol=1e-4)
        assert entered.grad is not None
        np.testing.assert_allclose(
            channels_first(back(jnp.asarray(cotangent))[0]), entered.grad, atol=1e-4
        )
        moved = move_statistics(statistics(ours), moments)
        nnx.update(ours, moved["a"]["norm"])
        assert_kept_equal(moved, theirs)
    x = images(3, 20)
    found, moments = ours(jnp.asarray(x), None)
    expected = theirs.eval()(channels_first(x)).detach()
    np.testing.assert_allclose(channels_first(np.asarray(found)), expected, rtol=1e-5, atol=1e-5)
    assert moments == {}


def test_padding_counts_for_nothing():
    theirs, ours = pair()
    x = images(6, 0)
    padded = jnp.asarray(np.concatenate([x[:4], 0 * x[4:]]))
    found, moments = ours(padded, Sample(present=jnp.arange(6) < 4))
    expected = theirs(channels_first(x[:4])).detach()
    np.testing.assert_allclose(channels_first(np.asarray(found))[:4], expected, atol=1e-4)
    assert_kept_equal(move_statistics(statistics(ours), moments), theirs)


def test_a_sample_of_nothing_moves_nothing_and_stays_finite():
    _, ours = pair()
    x = jnp.zeros((2, 4, 5, WIDTH))
    found, moments = ours(x, Sample(present=jnp.zeros(2, bool)))
    assert np.isfinite(found).all()
    jax.tree.map(
        np.testing.assert_array_equal, move_statistics(statistics(ours), moments), statistics(ours)
    )


def test_moments_of_microbatches_add_up_to_those_of_the_batch():
    _, ours = pair()
    x = jnp.asarray(images(6, 0))
    _, whole = ours(x, Sample())
    parts = [ours(part, Sample())[1] for part in (x[:2], x[2:])]
    added = jax.tree.map(jnp.add, *parts)
    once, twice = (move_statistics(statistics(ours), moments) for moments in (whole, added))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), once, twice)


def test_what_no_moments_name_stays_and_holes_stay_holes():
    _, ours = pair()
    kept = {"b": {"norm": statistics(ours)["a"]["norm"]}, "kernel": None}
    _, moments = ours(jnp.asarray(images(2, 0)), Sample())
    assert move_statistics(kept, moments) == kept
