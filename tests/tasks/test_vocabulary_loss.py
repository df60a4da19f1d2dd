"""The chunked loss over a vocabulary against the plain one: values, gradients, and what is not computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft import optim
from jaxft.tasks.vocabulary_loss import vocabulary_loss, vocabulary_statistics
from jaxft.training.gradient import MeanGradient
from jaxft.training.mesh import make_parallel
from jaxft.training.step import hyperparameters, train_step

V, D = 53, 11
CHUNK = (
    4 * V
)  # logits of four tokens: blocks of 19 rows of the unembedding, the last of which overlaps


def arrays(rows=8, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shape = (rows, 7)
    weight = rng.random(shape) * (rng.random(shape) > 0.5)
    return {
        "features": rng.normal(size=(*shape, D)).astype(dtype),
        "labels": rng.integers(0, V, shape).astype(np.int32),
        "weight": weight.astype(np.float32),
    }, {
        "unembedding": rng.normal(size=(V, D)).astype(np.float32),
        "bias": rng.normal(size=V).astype(np.float32),
    }  # fmt: skip


def plain(params, batch, cap=None, label_smoothing=0.0, z_loss=0.0):
    logits = batch["features"].astype(jnp.float32) @ params["unembedding"].T
    logits = logits + params["bias"] if "bias" in params else logits
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    every = -jax.nn.log_softmax(logits)
    nll = jnp.take_along_axis(every, batch["labels"][..., None], -1)[..., 0]
    normaliser = jax.nn.logsumexp(logits, -1)
    loss = (1 - label_smoothing) * nll + label_smoothing * every.mean(-1)
    return ((loss + z_loss * normaliser**2) * batch["weight"]).sum()


def chunked(params, batch, budget=CHUNK, **options):
    given = {"bias": params.get("bias"), "budget": budget, **options}
    features, labels, weight = batch["features"], batch["labels"], batch["weight"]
    return vocabulary_loss(features, params["unembedding"], labels, weight, **given)


def gradients(loss, params, batch, **options):
    def scaled(params, features):  # by a cotangent that is not 1
        return 3 * loss(params, {**batch, "features": features}, **options)

    return jax.jit(jax.value_and_grad(scaled, argnums=(0, 1)))(params, batch["features"])


def assert_close(found, expected, to=1e-6):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        assert np.abs(ours - theirs).max() <= to * np.abs(theirs).max()


@pytest.mark.parametrize(
    "options", [{}, {"cap": 2.0}, {"label_smoothing": 0.1, "z_loss": 1e-2, "cap": 3.0}]
)
@pytest.mark.parametrize("budget", [CHUNK, 10**6, 1])
def test_values_and_gradients_are_those_of_the_plain_loss(options, budget):
    batch, params = arrays()
    expected = gradients(plain, params, batch, **options)
    assert_close(gradients(chunked, params, batch, budget=budget, **options), expected)


def test_bf16_features_have_bf16_gradients_and_sums_in_fp32():
    batch, params = arrays()
    batch["features"] = jnp.asarray(batch["features"], jnp.bfloat16)
    params["unembedding"] = np.asarray(jnp.bfloat16(params["unembedding"]), np.float32)
    del params["bias"]
    found, expected = (gradients(loss, params, batch) for loss in (chunked, plain))
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1], to=1e-2)  # derivatives by logits are rounded to bf16


def test_nothing_counts_and_everything_counts():
    batch, params = arrays()
    nothing = {**batch, "weight": np.zeros_like(batch["weight"])}
    total, found = gradients(chunked, params, nothing)
    assert total == 0 and not any(np.any(x) for x in jax.tree.leaves(found))
    everything = {**batch, "weight": np.ones_like(batch["weight"])}
    assert_close(gradients(chunked, params, everything), gradients(plain, params, everything))


def test_tokens_that_do_not_count_are_not_looked_at():
    batch, params = arrays()
    expected = gradients(chunked, params, batch)
    out = batch["weight"] == 0
    batch["features"] = np.where(out[..., None], np.nan, batch["features"])
    batch["labels"] = np.where(out, 10**6, batch["labels"])
    found = gradients(chunked, params, batch)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def products(argnums):
    """Matrix products in the text of the gradient's program; its loops' bodies once."""
    batch, params = arrays()
    given = (params["unembedding"], batch["features"])

    def loss(unembedding, features):
        return chunked({"unembedding": unembedding}, {**batch, "features": features})

    compiled = jax.jit(jax.grad(loss, argnums) if argnums else loss).lower(*given).compile()
    return sum(" dot(" in line or "matmul" in line for line in compiled.as_text().splitlines())


def test_what_is_frozen_has_no_work():
    assert [products(argnums) for argnums in ((), (1,), (0,), (0, 1))] == [1, 2, 2, 3]


def test_statistics_are_those_of_the_tokens_that_count():
    batch, params = arrays()
    found = vocabulary_statistics(
        batch["features"], params["unembedding"], batch["labels"], batch["weight"],
        bias=params["bias"], cap=2.0, budget=CHUNK,
    )  # fmt: skip
    logits = 2.0 * np.tanh((batch["features"] @ params["unembedding"].T + params["bias"]) / 2.0)
    counts = batch["weight"] > 0
    nll = -np.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][..., None], -1)[..., 0]
    np.testing.assert_allclose(found.nll, np.where(counts, nll, 0), rtol=1e-5)
    hit = (logits.argmax(-1) == batch["labels"]) & counts
    np.testing.assert_array_equal(found.hit, hit)
    assert hit.any()


def test_it_can_be_mapped_over_trials():
    trials = [arrays(seed=seed) for seed in range(3)]
    batch, params = jax.tree.map(lambda *x: np.stack(x), *trials)
    found = jax.vmap(jax.value_and_grad(chunked))(params, batch)
    for number, (own_batch, own_params) in enumerate(trials):
        expected = jax.value_and_grad(plain)(own_params, own_batch)
        assert_close(jax.tree.map(lambda x, n=number: x[n], found), expected)


MESHES = [None, {"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("frozen", [(), ("unembedding",)])
def test_a_step_over_devices_and_microbatches_is_the_plain_one(sizes, frozen):
    batch, params = arrays(rows=16)

    def run(parallel, loss, parts):
        specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), params)
        placed = jax.device_put(params, parallel.shardings(specs))
        parts_of = optim.split(
            placed, {name: name not in frozen for name in params}, names=(True, False)
        )

        def optimizer(_):
            return optax.sgd(0.1)

        step = functools.partial(
            train_step,
            forward=lambda whole, batch, key: {**whole, "features": 2 * batch["features"]},
            loss=lambda whole, batch: (
                loss(whole, {**batch, "features": whole["features"]}),
                batch["weight"].sum(),
            ),
            optimizer=optimizer,
            gradient=MeanGradient(parts, parallel.axis_name),
        )
        state = parallel.init(
            parts_of[True], parts_of[False], hyperparameters(jax.random.key(0)), optimizer
        )
        state, metrics = parallel.compile_train(step, state)(state, parallel.put(batch))
        return jax.tree.map(np.asarray, parallel.unreplicate((state.params, metrics["loss"])))

    parallel = make_parallel("pmap") if sizes is None else make_parallel("shard", **sizes)
    expected, found = run(make_parallel("jit"), plain, 1), run(parallel, chunked, 2)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_tokens_stay_on_their_devices_where_the_mesh_is_in_context():
    batch, params = arrays(rows=16)
    parallel = make_parallel("shard")
    assert parallel.mesh is not None
    put = parallel.put(batch)

    def gathers(context):
        def step(params, batch):
            if not context:
                return jax.grad(chunked)(params, batch)
            with jax.sharding.use_abstract_mesh(parallel.mesh.abstract_mesh):
                return jax.grad(chunked)(params, batch)

        text = jax.jit(step).lower(params, put).compile().as_text()
        return any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))

    assert gathers(False) and not gathers(True)


@pytest.mark.parametrize("vocabulary", [V, 56])  # which two devices divide or not
def test_the_vocabulary_is_cut_over_the_tensor_axis(vocabulary):
    batch, params = arrays(rows=16)
    if vocabulary > V:
        rng, more = np.random.default_rng(1), vocabulary - V
        params["unembedding"] = np.concatenate(
            [params["unembedding"], rng.normal(size=(more, D))], dtype=np.float32
        )
        params["bias"] = np.concatenate([params["bias"], rng.normal(size=more)], dtype=np.float32)
    parallel = make_parallel("shard", data=2, fsdp=2, tensor=2)
    assert parallel.mesh is not None
    options = {"cap": 3.0, "label_smoothing": 0.1, "z_loss": 1e-2}

    def both(params, batch):
        with jax.sharding.use_abstract_mesh(parallel.mesh.abstract_mesh):
            given = {"bias": params["bias"], "cap": 3.0, "budget": CHUNK}
            found = vocabulary_statistics(
                batch["features"], params["unembedding"], batch["labels"], batch["weight"], **given
            )
            return gradients(chunked, params, batch, **options), found

    rows = jax.sharding.PartitionSpec("tensor" if vocabulary % 2 == 0 else None)
    placed = jax.device_put(params, parallel.shardings(dict.fromkeys(params, rows)))
    compiled = jax.jit(both).lower(placed, parallel.put(batch)).compile()
    found, statistics = compiled(placed, parallel.put(batch))
    assert_close(found, gradients(plain, params, batch, **options), to=1e-5)
    logits = 3.0 * np.tanh((batch["features"] @ params["unembedding"].T + params["bias"]) / 3.0)
    hit = (logits.argmax(-1) == batch["labels"]) & (batch["weight"] > 0)
    np.testing.assert_array_equal(statistics.hit, hit)
    nll = -np.take_along_axis(jax.nn.log_softmax(logits), batch["labels"][..., None], -1)[..., 0]
    np.testing.assert_allclose(statistics.nll, np.where(batch["weight"] > 0, nll, 0), rtol=1e-4)
    if vocabulary % 2 == 0:  # logits are of half of it, and the table is nowhere whole
        half, text = vocabulary // 2, compiled.as_text()
        assert f"f32[{half},{D}]" in text and f"f32[{vocabulary},{D}]" not in text
