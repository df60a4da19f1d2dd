"""The cached gradient is that of the whole batch's loss, with the same dropout in both passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.training.cached_gradient import CachedGradient
from jaxft.training.gradient import Objective, cut

PARTS = 3


def outputs(params, part, key):
    kept = jax.random.bernoulli(key, 0.7, part["x"].shape)
    return {"y": jnp.tanh(jnp.where(kept, part["x"], 0) @ params["w"])}


def contrast(embeddings, batch):
    flat, weight = embeddings.reshape(-1, 4), batch["weight"].reshape(-1)
    losses = jax.nn.logsumexp(flat @ flat.T, -1) - flat[:, 0]
    return jnp.sum(losses * weight), jnp.sum(weight)


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(6, 5)), "weight": np.array([1, 1, 0, 1, 1, 1])}
    params = {"w": rng.normal(size=(5, 4))}
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batch))
    return *single, jax.random.key(1)


def test_two_passes_give_what_one_would(given):
    params, batch, key = given

    def whole(params):
        parts, keys = cut(batch, PARTS), jax.random.split(key, PARTS)
        found = jnp.stack(
            [
                outputs(params, {"x": parts["x"][i]}, keys[i])["y"]
                for i in range(PARTS)
            ]
        )  # fmt: skip
        total, weight = contrast(found, parts)
        return total / weight

    expected, gradient = jax.value_and_grad(whole)(params)
    cached = CachedGradient(lambda outputs, part: outputs["y"], contrast, PARTS)
    found = jax.jit(lambda p, b, k: cached(Objective(outputs, None), p, b, k))(params, batch, key)
    assert found.loss == pytest.approx(float(expected), rel=1e-6) and found.weight == 5
    np.testing.assert_allclose(found.grads["w"], gradient["w"], atol=1e-6)
    assert np.abs(gradient["w"]).max() > 0.01


def test_devices_compare_all_examples(given):
    params, batch, key = given
    plain = {"x": batch["x"], "weight": batch["weight"]}

    def undisturbed(params, part, key):
        return {"y": jnp.tanh(part["x"] @ params["w"])}

    def of(parts, axis_name=None):
        return CachedGradient(lambda outputs, part: outputs["y"], contrast, parts, axis_name)

    objective = Objective(undisturbed, None)
    alone = of(1)(objective, params, plain, key)
    for parts in (1, 3):
        mapped = jax.pmap(
            lambda part, parts=parts: of(parts, "d")(objective, params, part, key), axis_name="d"
        )
        found = mapped({name: x.reshape(2, 3, *x.shape[1:]) for name, x in plain.items()})
        for device in range(2):
            assert found.loss[device] == pytest.approx(float(alone.loss), rel=1e-6)
            np.testing.assert_allclose(found.grads["w"][device], alone.grads["w"], atol=1e-6)
