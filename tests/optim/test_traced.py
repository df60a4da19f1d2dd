"""Every number may be traced, under jit and vmapped over trials; trees may be functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft import optim

GROUPS = {"body": {"bias": 0, "kernel": 0}, "head": {"kernel": 1}}
FROZEN = {"body": {"bias": True, "kernel": False}, "head": {"kernel": False}}
LABELS = jax.tree.map(str, GROUPS)


def params():
    return {
        "body": {"bias": jnp.array([0.5, -1.0]), "kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])},
        "head": {"kernel": jnp.array([[0.3], [-0.7]])},
    }


def loss(tree):
    return sum(jnp.sum(jnp.cosh(leaf)) for leaf in jax.tree.leaves(tree))


def train(tx, steps=4):
    """Parameters and state after some updates."""
    tx = optax.with_extra_args_support(tx)
    tree, gradient = params(), jax.grad(loss)
    state = tx.init(tree)
    for _ in range(steps):
        updates, state = tx.update(gradient(tree), state, tree, grad_fn=gradient)
        tree = optax.apply_updates(tree, updates)
    return tree, state


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-7), a, b)


PLAN = optim.lp_ft([0, 1], 2)


def groups(rate, decay, clip):
    slow = optim.Group(rate, weight_decay=decay)
    return optim.parameter_groups({"0": slow, "1": optim.Group(2 * rate)}, LABELS, clip=clip)


def averaged_sgd(rate, decay):
    return optax.chain(optax.sgd(rate), optim.weight_ema(decay))


def swa(start, every):
    return optax.chain(optax.sgd(0.1), optim.swa(start, every))


def ladder(decay, least, extra):
    scales = optim.layer_scales(GROUPS, decay, min_scale=least)
    scales = jax.tree.map(lambda scale: scale * extra, scales)
    return optim.fine_tuning_optimizer(0.1, scales=scales)


def stacked(decay, least):
    vector = optim.stacked_scales(2, decay, min_scale=least)
    scales = {"body/bias": vector, "body/kernel": vector, "head/kernel": 1.0}
    return optax.chain(optim.scale_by_path(scales), optax.sgd(0.1))


def lora_plus(ratio):
    tree = {"lora_a": 0, "lora_b": 0}
    a, b = optim.lora_plus_scales(tree, ratio).values()
    scales = {"body/bias": a, "body/kernel": b, "head/kernel": b}
    return optax.chain(optim.scale_by_path(scales), optax.sgd(0.1))


def spread(low, high):
    first, _, last = optim.spread(low, high, 3)
    scales = {"body/bias": first, "body/kernel": first, "head/kernel": last}
    return optax.chain(optim.scale_by_path(scales), optax.sgd(0.1))


def unfreeze(rate, every, clip):
    return optim.unfreeze(optax.sgd(rate), optim.top_down([0, 1], every), GROUPS, clip=clip)


def chain_thaw(every):
    return optim.unfreeze(optax.sgd(0.1), optim.chain_thaw([0, 1], every), GROUPS)


def one_stage(stage):
    return optim.unfreeze(optax.sgd(0.1), PLAN, GROUPS, clip=1.0, stage=stage)


def l2sp(strength, fresh_strength):
    decay = optim.l2sp(strength, fresh=FROZEN, fresh_strength=fresh_strength)
    return optim.fine_tuning_optimizer(0.1, decay=decay)


def adam(rate, weight_decay, clip, b1, b2, eps):
    return optim.fine_tuning_optimizer(
        rate, core=optax.scale_by_adam(b1, b2, eps), weight_decay=weight_decay, clip=clip,
        frozen=FROZEN, plan=PLAN, groups=GROUPS,
    )  # fmt: skip


def scheduled(rate, length):
    return optim.fine_tuning_optimizer(lambda step: rate * (1 - step / length), clip=1.0)


def schedule_free(rate, b1):
    return optim.schedule_free(optax.sgd(rate), rate, b1=b1, frozen=FROZEN)


def sam(rate, radius):
    return optim.sam(optax.sgd(rate), radius, frozen=FROZEN)


# Factory of an optimizer to the numbers of two trials.
FACTORIES = {
    optim.clip_by_norm: ((1.0,), (3.0,)),
    optim.weight_ema: ((0.0,), (0.9,)),
    optim.l2sp: ((0.0,), (0.3,)),
    adam: ((0.1, 0.0, 1.0, 0.9, 0.99, 1e-8), (0.2, 0.5, 2.0, 0.5, 0.9, 1e-2)),
    averaged_sgd: ((0.1, 0.5), (0.2, 0.999)),
    chain_thaw: ((1,), (2,)),
    groups: ((0.1, 0.0, 1.0), (0.01, 0.3, 4.0)),
    l2sp: ((0.1, 0.0), (0.0, 0.2)),
    ladder: ((0.5, 0.0, 1.0), (0.1, 0.2, 0.5)),
    lora_plus: ((1.0,), (8.0,)),
    one_stage: ((0,), (1,)),
    sam: ((0.1, 0.05), (0.2, 0.5)),
    schedule_free: ((0.1, 0.9), (0.2, 0.5)),
    scheduled: ((0.1, 10.0), (0.2, 5.0)),
    spread: ((0.01, 1.0), (0.1, 0.1)),
    stacked: ((0.5, 0.0), (0.25, 0.3)),
    swa: ((1, 1), (2, 2)),
    unfreeze: ((0.1, 1, 1.0), (0.2, 3, 2.0)),
}
by_name = pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)


@by_name
def test_numbers_may_be_traced_and_mapped_over_trials(factory):
    trials = FACTORIES[factory]
    together = jax.jit(jax.vmap(lambda numbers: train(factory(*numbers))))
    ends = together(jax.tree.map(lambda *values: jnp.array(values), *trials))
    for i, numbers in enumerate(trials):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], ends), train(factory(*numbers)))


@by_name
def test_numbers_may_be_injected_under_jit(factory):
    numbers = FACTORIES[factory][1]
    injected = optax.inject_hyperparams(factory)(*numbers)
    close(jax.jit(lambda: train(injected))()[0], train(factory(*numbers))[0])


@pytest.mark.parametrize(
    "settings", [{}, {"plan": PLAN, "groups": GROUPS}, {"plan": PLAN, "groups": GROUPS, "stage": 1}]
)
def test_the_whole_optimizer_may_be_injected_as_optax_adamw_can(settings):
    settings = {"clip": 1.0, "frozen": FROZEN, **settings}
    injected = optax.inject_hyperparams(optim.fine_tuning_optimizer)(1e-2, **settings)
    mine, state = jax.jit(lambda: train(injected))()
    close(mine, train(optim.fine_tuning_optimizer(1e-2, **settings))[0])
    assert {"learning_rate", "weight_decay", "clip"} <= set(state.hyperparams)


def test_the_mixture_of_two_models_may_be_traced():
    one = jax.tree.map(jnp.zeros_like, params())
    mixed = jax.vmap(lambda alpha: optim.wise_ft(one, params(), alpha))(jnp.array([0.25, 1.0]))
    for i, alpha in enumerate((0.25, 1.0)):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], mixed), optim.wise_ft(one, params(), alpha))


def test_traced_numbers_keep_the_type_of_bfloat16_updates():
    grads = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params())
    scale = jnp.float32(0.3)
    for tx in (
        optim.clip_by_norm(scale),
        optim.l2sp(scale, fresh=FROZEN, fresh_strength=scale),
        optim.scale_by_path(jax.tree.map(lambda _: scale, grads)),
    ):
        updates, _ = tx.update(grads, tx.init(grads), grads)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}


class Callable(eqx.Module):
    """A tree of values that can also be called: Equinox models are like that."""

    kernel: jax.Array | bool

    def __call__(self, x):
        raise AssertionError("a container is not a function of the parameters")


def test_a_container_that_can_be_called_is_still_a_tree():
    tree = Callable(jnp.ones((2, 2)))
    tx = optim.fine_tuning_optimizer(0.1, frozen=Callable(True))
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert not updates.kernel.any()


def of_paths(choose):
    """A function of the parameters, which must see all of them."""

    def tree_of(tree):
        assert set(optim.leaf_paths(tree)) == {"body/bias", "body/kernel", "head/kernel"}
        return optim.path_map(lambda path, _: choose(path), tree)

    return tree_of


SETTINGS = {
    "frozen": FROZEN,
    "scales": {"body": {"bias": 1.0, "kernel": 0.5}, "head": {"kernel": 2.0}},
    "decayed": {"body": {"bias": True, "kernel": False}, "head": {"kernel": True}},
    "groups": GROUPS,
}


def as_functions(settings):
    return {
        name: of_paths(optim.by_path(tree).__getitem__) if name in SETTINGS else tree
        for name, tree in settings.items()
    }


@pytest.mark.parametrize("names", [[name] for name in SETTINGS] + [list(SETTINGS)])
def test_trees_of_the_whole_optimizer_may_be_functions(names):
    settings = {name: SETTINGS[name] for name in names}
    if "groups" in names:
        settings["plan"] = PLAN
    tx = optim.fine_tuning_optimizer(0.1, weight_decay=0.5, clip=1.0, **settings)
    lazy = optim.fine_tuning_optimizer(0.1, weight_decay=0.5, clip=1.0, **as_functions(settings))
    close(train(lazy), train(tx))


ONE_TREE = {
    "freeze": lambda tree: optim.freeze(optax.adamw(0.1), tree(FROZEN)),
    "sam": lambda tree: optim.sam(optax.sgd(0.1), 0.1, frozen=tree(FROZEN)),
    "schedule_free": lambda tree: optim.schedule_free(optax.sgd(0.1), 0.1, frozen=tree(FROZEN)),
    "l2sp": lambda tree: optax.chain(
        optim.l2sp(0.1, fresh=tree(FROZEN), fresh_strength=0.2), optax.sgd(0.1)
    ),
    "scale_by_path": lambda tree: optax.chain(
        optim.scale_by_path(tree(SETTINGS["scales"])), optax.sgd(0.1)
    ),
    "parameter_groups": lambda tree: optim.parameter_groups(
        {"0": optim.Group(0.1), "1": None}, tree(LABELS), clip=1.0
    ),
    "unfreeze": lambda tree: optim.unfreeze(optax.adam(0.1), PLAN, tree(GROUPS), clip=1.0),
}


@pytest.mark.parametrize("name", ONE_TREE)
def test_trees_may_be_functions_of_the_parameters(name):
    make = ONE_TREE[name]
    lazy = make(lambda tree: of_paths(optim.by_path(tree).__getitem__))
    close(train(lazy), train(make(lambda tree: tree)))


def test_a_function_serves_the_trainable_part_with_its_holes():
    def frozen(tree):
        return optim.match_rules([("body/.*", True)], tree, default=False, must_match=False)

    def by_group(tree):
        return optim.path_map(lambda path, _: int(path.startswith("head")), tree)

    tx = optim.fine_tuning_optimizer(0.1, frozen=frozen, plan=PLAN, groups=by_group, clip=1.0)
    part = optim.split(params(), optim.train_labels(frozen(params())))["train"]
    updates, _ = tx.update(part, tx.init(part), part)
    whole, _ = tx.update(params(), tx.init(params()), params())
    close(updates["head"], whole["head"])
    assert updates["body"]["kernel"] is None and not whole["body"]["kernel"].any()


def test_a_function_that_forgets_a_parameter_or_names_no_group_is_an_error():
    with pytest.raises(ValueError, match="nothing is given for the parameter 'body/bias'"):
        optim.freeze(optax.sgd(0.1), lambda tree: {"head": tree["head"]}).init(params())
    with pytest.raises(ValueError, match="in the group 'x', which is not given"):
        optim.parameter_groups(
            {"0": optim.Group(0.1)}, lambda tree: jax.tree.map(lambda _: "x", tree)
        ).init(params())
    with pytest.raises(ValueError, match="stages must start at 0"):
        optim.unfreeze(optax.sgd(0.1), (), lambda tree: GROUPS)


def test_values_that_are_known_are_checked_also_as_arrays():
    for make in (optim.clip_by_norm, optim.weight_ema, lambda x: optim.layer_scales(GROUPS, x)):
        with pytest.raises(ValueError, match="-1"):
            make(jnp.array(-1.0))
    with pytest.raises(ValueError, match="not in"):
        optim.schedule_free(optax.sgd(0.1), 0.1, b1=0.0)
