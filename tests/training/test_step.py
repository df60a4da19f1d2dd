"""The pure step: what must hold whatever the model, and in all three ways to compile it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft import optim
from jaxft.models import Pass, by_path, hf, load_architecture
from jaxft.models.cuts import param_specs
from jaxft.tasks import classification
from jaxft.training.gradient import MeanGradient
from jaxft.training.mesh import make_parallel
from jaxft.training.parallel import Parallel
from jaxft.training.step import eval_step, hyperparameters, train_step
from tests import tiny

HPARAMS = hyperparameters(jax.random.key(1))


class Setup(NamedTuple):
    architecture: Any
    directory: str


@pytest.fixture(scope="module", params=["bert", "vit"])
def setup(request, tmp_path_factory) -> Setup:
    directory = tmp_path_factory.mktemp("model") / request.param
    path = tiny.bert(directory, dropout=0.0) if request.param == "bert" else tiny.vit(directory)
    return Setup(load_architecture(path, num_labels=3), path)


def batch_for(setup: Setup, rows: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs with unequal weights; the last two rows are padding."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 2.0, (rows, 2)).astype(np.float32)
    weight[-2:] = 0
    index = np.arange(2 * rows).reshape(rows, 2)
    common = {"labels": rng.integers(0, 3, (rows, 2)), "weight": weight, "index": index}
    if setup.architecture.inputs == "image":
        pixels = rng.normal(size=(rows, 8, 8, 1)).astype(np.float32)
        common = {k: v[:, 0] for k, v in common.items()}
        return _int32({"pixel_values": pixels, **common})
    segments = np.repeat([[1] * 5 + [2] * 6 + [0]], rows, axis=0)
    return _int32(
        {
            "input_ids": rng.integers(4, 20, (rows, 12)),
            "segment_ids": segments,
            "positions": np.repeat([[*range(5), *range(6), 0]], rows, axis=0),
            "token_type_ids": np.zeros((rows, 12)),
            "starts": np.repeat([[0, 5]], rows, axis=0),
            **common,
        }
    )


def _int32(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = ("weight", "pixel_values")
    return {k: v if k in kept else v.astype(np.int32) for k, v in batch.items()}


def make(
    setup: Setup, parallel: Parallel, *, frozen: tuple[str, ...] = (), accumulate: int = 1, tx=None
):
    """(state, compiled step) for a fresh model."""
    architecture = setup.architecture
    axes = parallel.mesh.shape if parallel.mode == "shard" else {}
    sizes = {axis: axes.get(axis, 1) for axis in ("fsdp", "tensor")}
    specs = param_specs(architecture.abstract, architecture.tensor_rules, **sizes)
    shardings = parallel.shardings(specs)
    params, _ = hf.read_params(
        setup.directory, architecture, key=jax.random.key(0), shardings=shardings
    )
    chosen = optim.select(params, frozen) if frozen else jax.tree.map(lambda _: False, params)
    parts = optim.split(params, optim.train_labels(chosen), names=(optim.TRAIN, optim.FROZEN))
    # A large eps: a key's bias has a zero gradient, whose rounding Adam would scale up to full steps.
    core = optax.scale_by_adam(eps=1e-3)
    tx = tx or optim.fine_tuning_optimizer(1e-2, core=core, clip=1.0, frozen=chosen)
    state = parallel.init(parts[optim.TRAIN], parts[optim.FROZEN], HPARAMS, lambda _: tx)
    step = functools.partial(
        train_step, forward=architecture.apply, loss=classification.loss, optimizer=lambda _: tx,
        gradient=MeanGradient(accumulate, parallel.axis_name),
    )  # fmt: skip
    return state, parallel.compile_train(step, state)


def run(setup: Setup, parallel: Parallel, steps: int = 3, **options):
    """Host copies of the parameters and metrics after some steps."""
    state, step = make(setup, parallel, **options)
    for i in range(steps):
        state, metrics = step(state, parallel.put(batch_for(setup, seed=i)))
    params, metrics = parallel.unreplicate((state.params, metrics))
    return (
        {k: np.asarray(v) for k, v in by_path(params).items()},
        jax.tree.map(float, metrics),
        step,
    )


ONE = make_parallel("jit")
MODES = {
    "pmap": lambda: make_parallel("pmap"),
    "data 8": lambda: make_parallel("shard"),
    "data 2 fsdp 2 tensor 2": lambda: make_parallel("shard", data=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize("mode", ["jit", *MODES])
def test_what_a_batch_becomes_on_the_devices_is_known_without_it(setup, mode):
    parallel = ONE if mode == "jit" else MODES[mode]()
    batch = {**batch_for(setup), "index": np.arange(16)}  # int64, which becomes int32
    known, put = parallel.abstract_batch(batch), parallel.put(batch)
    for name, x in put.items():
        facts = (known[name].shape, known[name].dtype, known[name].sharding)
        assert facts == (x.shape, x.dtype, x.sharding), name


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_single_device_result(setup, mode, monkeypatch):
    monkeypatch.setattr("jaxft.models.cuts.MIN_FSDP_SIZE", 64)  # the tiny model's matrices too
    expected, expected_metrics, _ = run(setup, ONE)
    params, metrics, _ = run(setup, MODES[mode]())
    assert metrics == pytest.approx(expected_metrics, rel=1e-5)
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, atol=2e-5, err_msg=path)


def test_fsdp_and_tensor_axes_really_cut_parameters_and_slots(setup, monkeypatch):
    monkeypatch.setattr("jaxft.models.cuts.MIN_FSDP_SIZE", 64)
    state, step = make(setup, MODES["data 2 fsdp 2 tensor 2"]())
    state, _ = step(state, MODES["data 2 fsdp 2 tensor 2"]().put(batch_for(setup)))
    query = next(v for k, v in by_path(state.params).items() if k.endswith("query/kernel"))
    slots = [x for x in jax.tree.leaves(state.opt_state) if x.shape == query.shape]
    assert query.addressable_data(0).size == query.size // 4  # fsdp x tensor
    assert slots and any(x.sharding == query.sharding for x in slots)


@pytest.mark.parametrize("mode", ["one", "pmap", "data 8"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_big_batch_with_unequal_weights(setup, mode, parts):
    parallel = ONE if mode == "one" else MODES[mode]()
    rows = 16 if mode == "one" else 32

    def result(accumulate):
        # SGD: Adam would turn rounding of tiny gradients into full steps.
        state, step = make(setup, parallel, accumulate=accumulate, tx=optax.sgd(0.1))
        state, metrics = step(state, parallel.put(batch_for(setup, rows)))
        return parallel.unreplicate((by_path(state.params), metrics))

    whole, whole_metrics = result(1)
    params, metrics = result(parts)
    for name in whole_metrics:
        assert float(metrics[name]) == pytest.approx(float(whole_metrics[name]), rel=1e-5)
    for path in whole:
        np.testing.assert_allclose(params[path], whole[path], atol=1e-6, err_msg=path)


def test_weight_zero_rows_change_nothing(setup):
    batch = batch_for(setup)
    other = {k: v.copy() for k, v in batch.items()}
    name = "pixel_values" if "pixel_values" in batch else "input_ids"
    other[name][-2:] = 5
    results = []
    for b in (batch, other):
        state, step = make(setup, ONE)
        state, metrics = step(state, ONE.put(b))
        results.append((by_path(state.params), metrics))
    assert float(results[0][1]["weight"]) == pytest.approx(float(batch["weight"].sum()))
    for path, value in results[0][0].items():
        np.testing.assert_array_equal(
            np.asarray(results[1][0][path]), np.asarray(value), err_msg=path
        )


def test_an_all_padding_batch_is_no_nan(setup):
    state, step = make(setup, ONE)
    batch = batch_for(setup) | {"weight": np.zeros_like(batch_for(setup)["weight"])}
    state, metrics = step(state, ONE.put(batch))
    assert float(metrics["loss"]) == 0 and float(metrics["grad_norm"]) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))


def test_frozen_parameters_stay_bit_identical_and_have_no_slots(setup):
    patterns = (".*/layer/0/.*", ".*embeddings/.*")
    params, _ = hf.read_params(setup.directory, setup.architecture, key=jax.random.key(0))
    state, step = make(setup, ONE, frozen=patterns)
    frozen_sizes = {x.size for x in jax.tree.leaves(state.frozen)}
    trainable = sum(x.size for x in jax.tree.leaves(state.params))
    slots = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert slots == 2 * trainable
    for i in range(3):
        state, _ = step(state, ONE.put(batch_for(setup, seed=i)))
    before = by_path(params)
    after = by_path(state.frozen)
    assert after and frozen_sizes
    for path, value in after.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(before[path]), err_msg=path)
    moved = by_path(state.params)
    assert all(not np.array_equal(moved[p], before[p]) for p in moved if p.endswith("kernel"))


def test_one_trace_for_each_shape(setup):
    traces = []

    def counted(*args, **options):
        traces.append(1)
        return classification.loss(*args, **options)

    state, _ = make(setup, ONE)
    step = functools.partial(
        train_step, forward=setup.architecture.apply, loss=counted,
        optimizer=lambda _: optim.fine_tuning_optimizer(1e-2),
    )  # fmt: skip
    state = ONE.init(state.params, state.frozen, HPARAMS, step.keywords["optimizer"])
    program = ONE.compile_train(step, state)
    for i in range(5):
        state, _ = program(state, ONE.put(batch_for(setup, seed=i)))
    assert (len(traces), program.traced) == (1, 1)
    state, _ = program(state, ONE.put(batch_for(setup, rows=8)))
    assert (len(traces), program.traced) == (2, 2)


def test_bfloat16_computes_low_and_keeps_parameters_high(setup):
    batch = ONE.put(batch_for(setup))
    params, _ = hf.read_params(setup.directory, setup.architecture, key=jax.random.key(0))
    full = setup.architecture.apply(params, batch)["logits"]
    low = setup.architecture.apply(params, batch, how=Pass(dtype=jnp.bfloat16))["logits"]
    assert low.dtype == jnp.float32
    assert not np.array_equal(full, low)
    np.testing.assert_allclose(low, full, atol=0.05)
    state, _ = make(setup, ONE)
    tx = optim.fine_tuning_optimizer(1e-2)
    step = functools.partial(
        train_step, forward=functools.partial(setup.architecture.apply, how=Pass(dtype=jnp.bfloat16)),
        loss=classification.loss, optimizer=lambda _: tx,
    )  # fmt: skip
    state = ONE.init(state.params, state.frozen, HPARAMS, lambda _: tx)
    state, _ = ONE.compile_train(step, state)(state, batch)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_label_smoothing_is_that_of_the_textbook():
    logits, labels = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([0])
    batch = {"labels": labels, "weight": jnp.ones(1)}
    total, weight = classification.loss({"logits": logits}, batch, 0.3)
    log_p = jax.nn.log_softmax(logits)[0]
    assert float(total) == pytest.approx(float(-(0.8 * log_p[0] + 0.1 * log_p[1] + 0.1 * log_p[2])))
    assert float(weight) == 1


@pytest.mark.parametrize("mode", ["pmap", "data 8"])
def test_evaluation_gathers_every_row_once(setup, mode):
    parallel = MODES[mode]()
    batch = batch_for(setup)
    params, _ = hf.read_params(setup.directory, setup.architecture, key=jax.random.key(0))
    expected = np.asarray(setup.architecture.apply(params, batch)["logits"]).reshape(-1, 3)
    program = parallel.compile_eval(
        functools.partial(
            eval_step,
            forward=setup.architecture.apply,
            axis_name=parallel.axis_name,
            predictions=classification.logits_of,
        )
    )
    out = parallel.unreplicate(program(parallel.replicate(params), parallel.put(batch)))
    order = np.argsort(np.asarray(out["index"]).ravel())
    logits = np.asarray(out["logits"]).reshape(-1, 3)[order]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mode": "shard", "data": 3},
            "do not multiply to the 8 devices that are here; the nearest that do are "
            "data=8, fsdp=1, context=1, tensor=1",
        ),
        ({"mode": "shard", "fsdp": 3}, "nearest that do are data=-1, fsdp=4, context=1, tensor=1"),
        (
            {"mode": "shard", "tensor": 16},
            "nearest that do are data=-1, fsdp=1, context=1, tensor=8",
        ),
        (
            {"mode": "shard", "context": 3},
            "nearest that do are data=-1, fsdp=1, context=4, tensor=1",
        ),
        ({"mode": "jit", "fsdp": 2}, "parallel.fsdp=2: needs parallel.mode='shard'"),
        (
            {"mode": "pmap", "context": 2, "tensor": 2},
            "context=2 and parallel.tensor=2: needs parallel.mode='shard'",
        ),
    ],
)
def test_meshes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_parallel(**options)
