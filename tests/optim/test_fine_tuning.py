"""The composed optimizer: adamw when nothing is asked for, torch's groups, frozen means frozen."""

import functools

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxft import optim

NAMES = ("embed", "block0", "block1", "head")


def tree(seed=0):
    """Four dense layers as nested dicts: the stem, two blocks and the head."""
    keys = jax.random.split(jax.random.key(seed), 2 * len(NAMES))
    return {
        name: {
            "bias": jax.random.normal(keys[2 * i], (4,)),
            "kernel": jax.random.normal(keys[2 * i + 1], (4, 4)),
        }
        for i, name in enumerate(NAMES)
    }


def loss(params, step):
    """A different smooth loss every step, with all parameters in it."""
    x = jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (8, 4))
    for name in NAMES:
        x = x + jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return jnp.mean((x - jax.random.normal(jax.random.key(9), (8, 4))) ** 2)


def train(tx, params, steps=5, differentiate=loss):
    """Parameters and optimizer state after some updates."""
    state = tx.init(params)

    @jax.jit
    def update(params, state, step):
        grads = jax.grad(differentiate)(params, step)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = update(params, state, step)
    return params, state


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol=1e-5):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol), a, b)


DEPTHS = optim.depths_from_prefixes(tree(), NAMES)
SCALES = optim.layer_scales(DEPTHS, 0.5)
FROZEN = optim.select(tree(), ["embed/.*", "block0/.*"])
SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 60)


@pytest.mark.parametrize(
    "neutral",
    [
        {},
        {"scales": jax.tree.map(lambda _: 1.0, tree())},
        {"frozen": jax.tree.map(lambda _: False, tree())},
        {"plan": (optim.Stage(0, frozenset({0, 1, 2, 3})),), "groups": DEPTHS, "stage": 0},
    ],
)
def test_it_is_optax_adamw_where_nothing_is_asked_for(neutral):
    tx = optim.fine_tuning_optimizer(SCHEDULE, weight_decay=0.1, **neutral)
    reference = optax.adamw(SCHEDULE, weight_decay=0.1, mask=optim.decay_mask)
    assert_same(train(tx, tree())[0], train(reference, tree())[0])
    # A clip that never acts changes no bit; one that does is optax's, to rounding.
    loose = optim.fine_tuning_optimizer(SCHEDULE, weight_decay=0.1, clip=1e6, **neutral)
    assert_same(train(loose, tree())[0], train(reference, tree())[0])
    tight = optim.fine_tuning_optimizer(SCHEDULE, weight_decay=0.1, clip=0.5, **neutral)
    clipped = optax.chain(optax.clip_by_global_norm(0.5), reference)
    close(train(tight, tree())[0], train(clipped, tree())[0])


def test_equal_multipliers_are_a_learning_rate():
    tx = optim.fine_tuning_optimizer(2e-2, scales=jax.tree.map(lambda _: 0.5, tree()))
    reference = optax.adamw(1e-2, weight_decay=0.01, mask=optim.decay_mask)
    close(train(tx, tree())[0], train(reference, tree())[0], rtol=1e-6)


def test_fifty_steps_equal_torch_adamw_with_parameter_groups():
    params, clip = tree(), 0.7
    tx = optim.fine_tuning_optimizer(
        SCHEDULE,
        scales=SCALES,
        frozen=optim.select(params, ["embed/.*"]),
        weight_decay=0.1,
        clip=clip,
    )
    mine, _ = train(tx, params, steps=50)

    theirs = {
        p: torch.nn.Parameter(torch.tensor(np.array(x))) for p, x in optim.by_path(params).items()
    }
    trained = {path: x for path, x in theirs.items() if not path.startswith("embed")}
    scales = optim.by_path(SCALES)
    groups = [
        {"params": [x], "scale": scales[path], "weight_decay": 0.1 * path.endswith("kernel")}
        for path, x in trained.items()
    ]
    adamw = torch.optim.AdamW(groups, lr=1.0)
    for step in range(50):
        x, y = _torch_batch(step)
        for name in NAMES:
            x = x + torch.tanh(x @ theirs[f"{name}/kernel"] + theirs[f"{name}/bias"])
        adamw.zero_grad()
        ((x - y) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), clip)
        for group in adamw.param_groups:
            group["lr"] = float(SCHEDULE(step)) * group["scale"]
        adamw.step()
    for path, leaf in optim.by_path(mine).items():
        want = theirs[path].detach().numpy()
        assert np.abs(leaf - want).max() <= 1e-5 * np.abs(want).max(), path


def _torch_batch(step):
    x = jax.random.normal(jax.random.fold_in(jax.random.key(7), step), (8, 4))
    y = jax.random.normal(jax.random.key(9), (8, 4))
    return torch.tensor(np.array(x)), torch.tensor(np.array(y))


class Dense(eqx.Module):
    bias: jax.Array
    kernel: jax.Array


class Net(eqx.Module):
    embed: Dense
    block0: Dense
    block1: Dense
    head: Dense


def as_equinox(params):
    return Net(**{name: Dense(**params[name]) for name in NAMES})


CONTAINERS = {
    "nnx": lambda params: nnx.State(jax.tree.map(nnx.Param, params)),
    "linen": flax.core.freeze,
    "equinox": as_equinox,
    "list": lambda params: [[params[name]["bias"], params[name]["kernel"]] for name in NAMES],
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_all_containers_give_identical_updates(name):
    convert, plan = CONTAINERS[name], optim.top_down([1, 2, 3], every=2)

    def settings(convert):
        decayed = convert(optim.decay_mask(tree()))
        return {"frozen": convert(_nofirst()), "scales": convert(SCALES), "decayed": decayed,
                "groups": convert(DEPTHS), "plan": plan, "clip": 0.3}  # fmt: skip

    reference = optim.fine_tuning_optimizer(SCHEDULE, **settings(lambda t: t))
    tx = optim.fine_tuning_optimizer(SCHEDULE, **settings(convert))
    state, other = reference.init(tree()), tx.init(convert(tree()))
    for step in range(5):
        grads = jax.grad(loss)(tree(), step)
        expected, state = reference.update(grads, state, tree())
        updates, other = tx.update(convert(grads), other, convert(tree()))
        assert_same(jax.tree.leaves(updates), jax.tree.leaves(convert(expected)))
        assert jax.tree.structure(updates) == jax.tree.structure(convert(tree()))


def _nofirst():
    return optim.select(tree(), ["embed/.*"])


def test_frozen_parameters_keep_every_bit_and_have_no_slots():
    params = tree()
    tx = optim.fine_tuning_optimizer(1e-1, frozen=FROZEN, weight_decay=0.5, clip=1.0)
    trained, state = train(tx, params)
    for path, was in optim.by_path(params).items():
        same = np.asarray(was).tobytes() == np.asarray(optim.by_path(trained)[path]).tobytes()
        assert same == optim.by_path(FROZEN)[path], path
    kept = [where for where in optim.by_path(state) if "embed" in where or "block0" in where]
    assert kept == []
    slots = sum(leaf.size for leaf in jax.tree.leaves(state)) - 2  # two counts: Adam and schedule
    assert slots <= 2 * 2 * (16 + 4)


def test_the_trainable_part_alone_gets_the_same_numbers():
    params = tree()
    tx = optim.fine_tuning_optimizer(SCHEDULE, frozen=FROZEN, scales=SCALES, clip=0.5)
    full, full_state = train(tx, params)
    parts = optim.split(params, optim.train_labels(FROZEN))

    def of_part(train, step):
        return loss(optim.merge(train, parts["frozen"]), step)

    part, part_state = train(tx, parts["train"], differentiate=of_part)
    assert_same(optim.merge(part, parts["frozen"]), full)
    assert_same(optim.by_path(part_state), optim.by_path(full_state))  # holes differ in kind


def test_frozen_gradients_do_not_count_for_the_clip():
    params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    grads = {"body": jnp.full(2, 1e6), "head": jnp.full(2, 0.1)}
    frozen = {"body": True, "head": False}
    tx = optim.fine_tuning_optimizer(1.0, core=optax.identity(), frozen=frozen, clip=1.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["head"], -0.1, rtol=1e-6)


def test_any_core_may_take_the_place_of_adam():
    tx = optim.fine_tuning_optimizer(1e-2, core=optax.scale_by_lion(), weight_decay=0.1)
    reference = optax.lion(1e-2, weight_decay=0.1, mask=optim.decay_mask)
    assert_same(train(tx, tree())[0], train(reference, tree())[0])


def test_a_plan_and_its_groups_come_together():
    plan = optim.lp_ft([0, 1], 5)
    for lonely in ({"plan": plan}, {"groups": {"a": 0}}):
        with pytest.raises(ValueError, match="must be given together"):
            optim.fine_tuning_optimizer(1e-3, **lonely)


def test_a_parameter_that_no_tree_speaks_of_is_an_error():
    tx = optim.fine_tuning_optimizer(1e-3, frozen={"head": False})
    with pytest.raises(ValueError, match="nothing is given for the parameter 'body'"):
        tx.init({"body": jnp.ones(1), "head": jnp.ones(1)})


def test_the_compiled_update_moves_no_more_memory_than_adamw():
    shapes = [[jax.ShapeDtypeStruct((64, 64), jnp.float32) for _ in range(12)] for _ in range(4)]
    depths = [[depth] * 12 for depth in range(4)]
    scales, plan = optim.layer_scales(depths, 0.5), optim.top_down(range(4), 5)

    def traffic(tx):
        def update(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        # Donated buffers are handed to outputs in order: other orders of arguments would add copies.
        state = jax.eval_shape(tx.init, shapes)
        compiled = jax.jit(update, donate_argnums=(0, 1)).lower(shapes, state, shapes).compile()
        return compiled.cost_analysis()["bytes accessed"]

    plain = traffic(optax.adamw(SCHEDULE, weight_decay=0.01, mask=optim.decay_mask))
    nothing_frozen = jax.tree.map(lambda _: False, shapes)
    mine = optim.fine_tuning_optimizer(SCHEDULE, scales=scales, frozen=nothing_frozen)
    assert traffic(mine) <= 1.01 * plain
    # Ten arrays a parameter; the norm reads the gradients once more.
    clipped = optim.fine_tuning_optimizer(SCHEDULE, scales=scales, frozen=nothing_frozen, clip=1.0)
    assert traffic(clipped) <= 1.11 * plain
    staged = optim.fine_tuning_optimizer(
        SCHEDULE, scales=scales, clip=1.0, plan=plan, groups=depths, stage=3
    )
    assert traffic(staged) <= 1.11 * plain
