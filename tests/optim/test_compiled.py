"""What freezing saves, counted in matrix products of the compiled program: 12 blocks, 9 frozen.

Forward: 13 products (12 blocks and the head). All trainable: 38 = 13 + 25, for the first block needs no
gradient of its input. Nine blocks frozen: 20 = 13 + 7. Losing the saving means 38 again.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft import optim
from tests.hlo import count_in_text, count_matmuls

BLOCKS, CUT, WIDTH, BATCH = 12, 9, 16, 16
FULL, SAVED = 38, 20


def params():
    keys = jax.random.split(jax.random.key(0), BLOCKS + 1)
    kernels = [{"kernel": jax.random.normal(key, (WIDTH, WIDTH)) / 8} for key in keys]
    return {"blocks": kernels[:-1], "head": {"kernel": kernels[-1]["kernel"][:, :4]}}


FROZEN = optim.select(params(), [r"blocks/[0-8]/.*"])
X = jax.random.normal(jax.random.key(1), (BATCH, WIDTH))


def block(parameters, x):
    return x + jnp.tanh(x @ parameters["kernel"])


def loss(tree, x, remat=False):
    run = jax.checkpoint(block) if remat else block
    for parameters in tree["blocks"]:
        x = run(parameters, x)
    return jnp.mean((x @ tree["head"]["kernel"]) ** 2)


def good():
    return optim.fine_tuning_optimizer(1e-3, frozen=FROZEN, clip=1.0)


def outside():
    inner = optim.freeze(optax.adamw(1e-3), FROZEN)
    return optax.chain(optax.clip_by_global_norm(1.0), inner)


def step(train, state, frozen, x, *, tx, remat=False, microbatches=1, log=None, axis_name=None):
    """An update by differentiating `train`, the whole tree or a part of it."""

    def of_train(train, x):
        return loss(optim.merge(train, frozen), x, remat)

    if microbatches == 1:
        grads = jax.grad(of_train)(train, x)
    else:
        parts = x.reshape(microbatches, -1, WIDTH)
        grads, _ = jax.lax.scan(
            lambda total, x: (jax.tree.map(jnp.add, total, jax.grad(of_train)(train, x)), None),
            jax.tree.map(jnp.zeros_like, train),
            parts,
        )
    if axis_name:
        grads = jax.lax.psum(grads, axis_name)
    updates, state = tx.update(grads, state, train)
    return optax.apply_updates(train, updates), state, log(grads) if log else ()


def split(how):
    """(train, frozen): of the trainable part alone, or with the whole tree differentiated."""
    if how == "masked":
        return params(), jax.tree.map(lambda _: None, params())
    parts = optim.split(params(), optim.train_labels(FROZEN))
    return parts[optim.TRAIN], parts[optim.FROZEN]


def products(how, tx, **options):
    train, frozen = split(how)
    run = jax.jit(functools.partial(step, tx=tx, **options))
    return count_matmuls(run.lower(train, tx.init(train), frozen, X).compile())


def test_the_forward_pass_has_thirteen_products():
    assert count_matmuls(jax.jit(loss).lower(params(), X).compile()) == BLOCKS + 1


# Rematerialisation keeps block inputs only; in this small block recomputing tanh adds no product that
# XLA does not merge with the forward's. Microbatches multiply everything.
WAYS = {"plain": ({}, 1), "remat": ({"remat": True}, 1), "accumulate": ({"microbatches": 4}, 4)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("how", "tx", "expected"),
    [
        ("masked", optax.adamw(1e-3), FULL),
        ("masked", good(), SAVED),
        ("split", good(), SAVED),
        ("masked", outside(), FULL),
        ("split", outside(), SAVED),
    ],
    ids=["full", "frozen", "split", "clip outside", "split, clip outside"],
)
def test_frozen_blocks_cost_no_backward_work(way, how, tx, expected):
    options, times = WAYS[way]
    assert products(how, tx, **options) == times * expected


def test_a_logged_norm_of_all_gradients_brings_the_work_back():
    assert products("masked", good(), log=optax.tree.norm) == FULL
    assert products("split", good(), log=optax.tree.norm) == SAVED


def test_a_stage_costs_what_trains_in_it():
    depths = optim.depths_from_prefixes(params(), [*(f"blocks/{i}" for i in range(12)), "head"])
    plan = optim.top_down(range(13), every=5)
    for stage, expected in ((0, 13 + 1), (3, SAVED), (12, FULL)):
        tx = optim.fine_tuning_optimizer(1e-3, clip=1.0, plan=plan, groups=depths, stage=stage)
        assert products("masked", tx) == expected
    whole = optim.fine_tuning_optimizer(1e-3, clip=1.0, plan=plan, groups=depths)
    assert products("masked", whole) == FULL


def mesh():
    return Mesh(
        np.array(jax.devices()).reshape(4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2
    )


on_many_devices = pytest.mark.parametrize(
    ("how", "tx", "expected"),
    [("masked", optax.adamw(1e-3), FULL), ("masked", good(), SAVED), ("split", good(), SAVED),
     ("masked", outside(), FULL)],
)  # fmt: skip


@on_many_devices
def test_the_saving_survives_sharding(how, tx, expected):
    train, frozen = split(how)
    columns = NamedSharding(mesh(), PartitionSpec(None, "tensor"))
    rows = NamedSharding(mesh(), PartitionSpec("data", None))
    train, frozen = jax.device_put((train, frozen), columns)
    run = jax.jit(functools.partial(step, tx=tx))
    compiled = run.lower(train, tx.init(train), frozen, jax.device_put(X, rows)).compile()
    assert count_matmuls(compiled) == expected


@on_many_devices
def test_the_saving_survives_pmap(how, tx, expected):
    train, frozen = split(how)
    args = jax.tree.map(lambda x: jnp.stack([x] * 8), (train, tx.init(train), frozen))
    run = jax.pmap(functools.partial(step, tx=tx, axis_name="i"), axis_name="i")
    text = run.lower(*args, X.reshape(8, 2, WIDTH)).compile().as_text()
    assert count_in_text(text) == expected


def stacked():
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params()["blocks"])


def scan_loss(trained, frozen, head, x, cut):
    def body(x, parameters):
        return block(parameters, x), None

    if cut:
        x = optim.scan_split(body, x, frozen, trained)
    else:
        x, _ = jax.lax.scan(body, x, trained)
    return jnp.mean((x @ head) ** 2)


def scan_products(tx, trained, frozen, cut):
    head = params()["head"]["kernel"]

    def update(train, state, frozen):
        grads = jax.grad(lambda t: scan_loss(t["stack"], frozen, t["head"], X, cut))(train)
        updates, state = tx.update(grads, state, train)
        return optax.apply_updates(train, updates), state

    train = {"stack": trained, "head": head}
    return count_matmuls(jax.jit(update).lower(train, tx.init(train), frozen).compile())


def test_a_scanned_stack_must_be_cut_to_save_the_work():
    below, above = optim.split_stack(stacked(), CUT)
    plain = optim.fine_tuning_optimizer(1e-3, clip=1.0)
    mask = jnp.where(jnp.arange(BLOCKS) < CUT, 0.0, 1.0)
    masked = optim.fine_tuning_optimizer(1e-3, scales={"stack/kernel": mask, "head": 1.0})
    # One more than unrolled: the scanned backward also takes the gradient of the first input.
    assert scan_products(plain, stacked(), below, cut=False) == FULL + 1
    assert scan_products(masked, stacked(), below, cut=False) == FULL + 1
    assert scan_products(plain, above, below, cut=True) == SAVED + 1


def test_the_cut_stack_computes_the_same_loss_and_gradients():
    below, above = optim.split_stack(stacked(), CUT)
    head = params()["head"]["kernel"]
    whole, grads = jax.value_and_grad(scan_loss)(stacked(), None, head, X, False)
    cut, part = jax.value_and_grad(scan_loss)(above, below, head, X, True)
    np.testing.assert_allclose(cut, whole, rtol=1e-6)
    np.testing.assert_allclose(part["kernel"], grads["kernel"][CUT:], rtol=1e-5, atol=1e-7)
    joined = optim.merge_stack(below, above)
    np.testing.assert_array_equal(joined["kernel"], stacked()["kernel"])


def test_rates_of_a_stack_are_those_of_its_layers():
    scales = optim.stacked_scales(BLOCKS, 0.75)
    depths = optim.layer_scales(list(range(BLOCKS + 2)), 0.75)
    np.testing.assert_allclose(scales, depths[1:-1], rtol=1e-6)
    tx = optim.fine_tuning_optimizer(1e-2, scales={"kernel": scales})
    unrolled = optim.fine_tuning_optimizer(1e-2, scales=[{"kernel": s} for s in depths[1:-1]])
    layers = params()["blocks"]
    together, _ = tx.update(stacked(), tx.init(stacked()), stacked())
    apart, _ = unrolled.update(layers, unrolled.init(layers), layers)
    expected = jnp.stack([layer["kernel"] for layer in apart])
    np.testing.assert_allclose(together["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize(("k", "sizes"), [(0, (0, 12)), (12, (12, 0)), (5, (5, 7))])
def test_a_stack_may_be_cut_anywhere_and_along_any_axis(k, sizes):
    tree = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), stacked())
    parts = optim.split_stack(tree, k, axis=1)
    assert tuple(part["kernel"].shape[1] for part in parts) == sizes
    np.testing.assert_array_equal(optim.merge_stack(*parts, axis=1)["kernel"], tree["kernel"])
    below, above = optim.split_stack(stacked(), k)
    head = params()["head"]["kernel"]
    assert np.isfinite(scan_loss(above, below, head, X, True))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: optim.split_stack(stacked(), 13), "cannot cut 12 stacked layers after 13"),
        (
            lambda: optim.split_stack({"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}, 1),
            "'a': 2, 'b': 3",
        ),
        (lambda: optim.stacked_scales(3, 0.0), r"not in \(0, 1\]"),
    ],
)
def test_a_cut_that_cannot_be_is_an_error(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_counter_multiplies_loops_and_follows_calls():
    def program(x, w):
        inner = jax.checkpoint(lambda x: jnp.sin(x @ w))
        x, _ = jax.lax.scan(lambda x, _: (inner(x) @ w, None), x, length=5)
        return x @ w

    assert count_matmuls(jax.jit(program).lower(X, jnp.eye(WIDTH)).compile()) == 5 * 2 + 1
    endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x))
    with pytest.raises(ValueError, match="unknown length"):
        count_matmuls(endless.lower(jnp.eye(4)).compile())
