"""Plans are data; a held group does not move, feel or count; it starts as if it were new."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft import optim

GROUPS = {"stem": 0, "block": 1, "head": 2}
PLANS = {
    "top_down": (optim.top_down([0, 1, 2], 4), {"head": 0, "block": 4, "stem": 8}),
    "bottom_up": (optim.bottom_up([0, 1, 2], 4), {"head": 0, "stem": 4, "block": 8}),
    "explicit": (optim.explicit({0: [2], 5: [0, 1]}), {"head": 0, "stem": 5, "block": 5}),
    "lp_ft": (optim.lp_ft([0, 1, 2], 6), {"head": 0, "stem": 6, "block": 6}),
}


def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {name: jax.random.normal(key, (3, 2)) for name, key in zip(GROUPS, keys, strict=True)}


def gradients(step):
    return jax.tree.map(lambda x: jnp.sin(x * 3 + step), params())


def run(tx, tree, steps, start=0, state=None):
    """Parameters and states after each update."""
    state = tx.init(tree) if state is None else state
    update = jax.jit(tx.update)
    history = []
    for step in range(start, start + steps):
        grads = {n: None if tree[n] is None else g for n, g in gradients(step).items()}
        updates, state = update(grads, state, tree)
        tree = optax.apply_updates(tree, updates)
        history.append((tree, state))
    return history


@pytest.mark.parametrize("name", PLANS)
def test_every_group_trains_from_its_start_exactly_like_a_fresh_parameter(name):
    plan, starts = PLANS[name]
    core = optax.adamw(optax.linear_schedule(0.1, 0.0, 10), weight_decay=0.3)
    history = run(optim.unfreeze(core, plan, GROUPS), params(), 12)
    for group, start in starts.items():
        for step in range(start):
            np.testing.assert_array_equal(history[step][0][group], params()[group])
        alone, state = params()[group], core.init(params()[group])
        for step in range(start, 12):
            update, state = core.update(gradients(step)[group], state, alone)
            alone = optax.apply_updates(alone, update)
            np.testing.assert_allclose(history[step][0][group], alone, rtol=1e-6)


def test_the_state_of_a_held_group_is_untouched():
    tx = optim.unfreeze(optax.adam(0.1), optim.lp_ft([0, 1, 2], 6), GROUPS)
    fresh = tx.init(params())
    for step, (_, state) in enumerate(run(tx, params(), 8)):
        for name, group in GROUPS.items():
            inner = [s.inner_states[group].inner_state.inner for s in (state, fresh)]
            if name != "head" and step < 6:
                jax.tree.map(np.testing.assert_array_equal, *inner)
            else:
                started = 0 if name == "head" else 6
                assert int(inner[0][0].count) == step + 1 - started


def test_frozen_again_means_that_the_moments_wait():
    plan = optim.chain_thaw([0, 1, 2], 3)
    history = run(optim.unfreeze(optax.adam(0.1), plan, GROUPS), params(), 12)
    turns = {
        "head": {0, 1, 2, 9, 10, 11},
        "stem": {3, 4, 5, 9, 10, 11},
        "block": {6, 7, 8, 9, 10, 11},
    }
    for name, group in GROUPS.items():
        before, count = params()[name], 0
        for step, (tree, state) in enumerate(history):
            moved = not np.array_equal(tree[name], before)
            assert moved == (step in turns[name]), (name, step)
            count += moved
            assert int(state.inner_states[group].inner_state.inner[0].count) == count
            before = tree[name]


def test_held_groups_do_not_count_for_the_clip():
    plan = optim.lp_ft([0, 1], 1)
    tx = optim.unfreeze(optax.sgd(1.0), plan, {"body": 0, "head": 1}, clip=1.0)
    tree = {"body": jnp.zeros(1), "head": jnp.zeros(1)}
    grads = {"body": jnp.array([3.0]), "head": jnp.array([4.0])}
    first, state = tx.update(grads, tx.init(tree), tree)
    second, _ = tx.update(grads, state, tree)
    assert (float(first["body"][0]), float(first["head"][0])) == (0.0, -1.0)
    assert [float(second[n][0]) for n in ("body", "head")] == pytest.approx([-0.6, -0.8])


def test_nan_gradients_of_held_groups_do_no_harm():
    tx = optim.unfreeze(optax.adam(1.0), optim.lp_ft([0, 1], 1), {"body": 0, "head": 1}, clip=1.0)
    tree = {"body": jnp.zeros(1), "head": jnp.zeros(1)}
    grads = {"body": jnp.array([jnp.nan]), "head": jnp.array([1.0])}
    updates, state = tx.update(grads, tx.init(tree), tree)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


def test_a_group_in_no_stage_has_no_state():
    plan = (optim.Stage(0, frozenset({2})),)
    state = optim.unfreeze(optax.adam(0.1), plan, GROUPS).init(params())
    assert not any("stem" in where or "block" in where for where in optim.by_path(state))


@pytest.mark.parametrize("clip", [None, 0.4])
def test_one_program_a_stage_gives_the_numbers_of_one_program(clip):
    plan = optim.top_down([0, 1, 2], 4)
    settings = {
        "plan": plan,
        "groups": GROUPS,
        "clip": clip,
        "scales": optim.layer_scales(GROUPS, 0.5),
    }
    whole, _ = run(optim.fine_tuning_optimizer(1e-2, **settings), params(), 12)[-1]

    train, frozen, state = None, params(), None
    for index, stage in enumerate(plan):
        labels = optim.train_labels(optim.frozen_in(plan, GROUPS, index))
        tree = frozen if train is None else optim.merge(train, frozen)
        parts = optim.split(tree, labels, names=(optim.TRAIN, optim.FROZEN))
        train, frozen = parts[optim.TRAIN], parts[optim.FROZEN]
        tx = optim.fine_tuning_optimizer(1e-2, **settings, stage=index)
        grown = tx.init(train) if state is None else optim.grow(state, tx.init(train))
        if state is not None:
            was, now = optim.by_path(state), optim.by_path(grown)
            assert all(np.asarray(was[w]).tobytes() == np.asarray(now[w]).tobytes() for w in was)
            assert len(now) > len(was)
        train, state = run(tx, train, 4, start=stage.start, state=grown)[-1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), optim.merge(train, frozen), whole
    )


def test_moments_of_another_shape_are_refused_by_their_path():
    old = optax.adam(0.1).init({"head": jnp.ones((1, 2)), "body": jnp.ones(3)})
    new = optax.adam(0.1).init({"head": jnp.ones((4, 2)), "body": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'0/mu/head' with the shape \(1, 2\), where \(4, 2\)"):
        optim.grow(old, new)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ((), "must start at 0"),
        ((optim.Stage(3, frozenset({2})),), r"these start at \[3\]"),
        ((optim.Stage(0, frozenset({2})), optim.Stage(0, frozenset({1}))), r"start at \[0, 0\]"),
        ((optim.Stage(0, frozenset({"heads"})),), "no parameter is in the group 'heads'"),
    ],
)
def test_a_plan_out_of_order_or_without_parameters_is_an_error(plan, said):
    with pytest.raises(ValueError, match=said):
        optim.unfreeze(optax.adam(0.1), plan, GROUPS)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: optim.top_down([0, 1], 0), "at least 1 update, got 0"),
        (lambda: optim.top_down([0], 5), "two or more different groups"),
        (lambda: optim.bottom_up([0, 0], 5), "two or more different groups"),
        (lambda: optim.top_down([0, 1], 5, first=3), "first=3 of 2 groups"),
        (lambda: optim.explicit({5: [0]}), "a plan starts with update 0"),
        (lambda: optim.unfreeze(optax.sgd(1.0), optim.lp_ft([0, 1, 2], 5), GROUPS, stage=2),
         "stage 2 of a plan of 2"),
    ],
)  # fmt: skip
def test_impossible_plans_are_errors(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_stage_of_a_step():
    plan = optim.top_down([0, 1, 2], 10)
    assert [optim.stage_index(plan, step) for step in (0, 9, 10, 19, 20, 1000)] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert optim.frozen_in(plan, GROUPS, 1) == {"stem": True, "block": False, "head": False}
    thaw = optim.chain_thaw([0, 1, 2], 10)
    assert optim.frozen_in(thaw, GROUPS, 1) == {"stem": False, "block": True, "head": False}


# Six blocks between the stem (0) and the head (7); depths 0 to 5 never train.
DEPTHS = {f"{depth}/{name}": depth for depth in range(8) for name in ("bias", "kernel")}
LOWER = {path: depth <= 5 for path, depth in DEPTHS.items()}


def starts(plan):
    return [(stage.start, sorted(stage.groups)) for stage in plan]


def test_what_is_frozen_for_good_takes_no_stage():
    free = sorted(optim.trainable_groups(DEPTHS, LOWER))
    assert free == [6, 7]
    assert starts(optim.top_down(free, 10)) == [(0, [7]), (10, [6, 7])]
    assert starts(optim.bottom_up(free, 10)) == [(0, [7]), (10, [6, 7])]
    assert starts(optim.chain_thaw(free, 10)) == [(0, [7]), (10, [6]), (20, [6, 7])]
    # One parameter that trains is enough for a group to have its turn.
    assert 3 in optim.trainable_groups(DEPTHS, {**LOWER, "3/bias": False})


def test_a_plan_is_pruned_to_the_stages_that_change_something():
    def pruned(plan, frozen=LOWER):
        return starts(optim.prune_plan(plan, DEPTHS, frozen))

    assert pruned(optim.top_down(range(8), 10)) == [(0, [7]), (10, [6, 7])]
    assert pruned(optim.bottom_up(range(8), 10)) == [(0, [7]), (70, [6, 7])]
    assert pruned(optim.lp_ft(range(8), 5)) == [(0, [7]), (5, [6, 7])]
    assert pruned(optim.chain_thaw(range(8), 10)) == [(0, [7]), (70, [6]), (80, [6, 7])]
    plan = optim.explicit({0: [7], 4: [0, 1], 9: [2, 6]})
    assert pruned(plan) == [(0, [7]), (9, [6, 7])]
    assert optim.prune_plan(plan, DEPTHS, dict.fromkeys(DEPTHS, False)) == plan
    with pytest.raises(ValueError, match="nothing trains at first: the groups 7 are frozen"):
        pruned(plan, {path: depth == 7 for path, depth in DEPTHS.items()})
    with pytest.raises(ValueError, match="nothing is given for the parameter"):
        pruned(plan, {"7/bias": False})
