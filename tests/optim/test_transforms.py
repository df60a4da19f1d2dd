"""L2-SP, averages, parameter groups, LoRA+, schedule-free and SAM: their formulas, and frozen parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft import optim

FROZEN = {"body": True, "head": False}


def params():
    return {"body": jnp.array([[1.0, -2.0]]), "head": jnp.array([[3.0, 0.5]])}


def grads(step=0):
    return {"body": jnp.array([[0.3, -0.1 * step]]), "head": jnp.array([[-0.2, 0.4 + step]])}


def run(tx, steps=4):
    """Parameters and state after each update."""
    tree = params()
    state, history = tx.init(tree), []
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(grads(step), state, tree)
        tree = optax.apply_updates(tree, updates)
        history.append((tree, state))
    return history


def close(a, b, rtol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


def test_l2sp_is_the_gradient_of_its_penalty():
    start, alpha, beta = params(), 0.1, 0.02

    def penalty(tree):
        body = alpha / 2 * jnp.sum((tree["body"] - start["body"]) ** 2)
        return body + beta / 2 * jnp.sum(tree["head"] ** 2)

    tx = optim.l2sp(alpha, fresh={"body": False, "head": True}, fresh_strength=beta)
    mine = run(optax.chain(tx, optax.sgd(0.5)))[-1][0]
    tree = params()
    for step in range(4):
        total = jax.tree.map(jnp.add, grads(step), jax.grad(penalty)(tree))
        tree = jax.tree.map(lambda p, g: p - 0.5 * g, tree, total)
    close(mine, tree)


def test_l2sp_takes_the_place_of_weight_decay_in_the_whole_optimizer():
    frozen = jax.tree.map(lambda _: False, params())
    tx = optim.fine_tuning_optimizer(0.1, decay=optim.l2sp(0.3), frozen=frozen)
    adam = optax.scale_by_adam()
    tree = start = params()
    state = adam.init(tree)
    for step in range(4):
        direction, state = adam.update(grads(step), state)
        tree = jax.tree.map(lambda p, d, s: p - 0.1 * (d + 0.3 * (p - s)), tree, direction, start)
    close(run(tx)[-1][0], tree)


def test_l2sp_keeps_its_own_copy_and_no_copy_of_what_is_fresh():
    tree = params()
    state = optim.l2sp(0.1, fresh=FROZEN).init(tree)
    assert state.start["body"] is None
    jax.tree.map(lambda x: x.delete(), tree)
    assert state.start["head"].tolist() == [[3.0, 0.5]]


def test_ema_warms_up_to_its_decay():
    tx = optax.chain(optax.sgd(0.5), optim.weight_ema(0.3))
    average = params()
    for t, (tree, state) in enumerate(run(tx), start=1):
        keep = min(0.3, (1 + t) / (10 + t))  # 2/11, 3/12, 0.3, 0.3
        average = jax.tree.map(lambda a, p, keep=keep: keep * a + (1 - keep) * p, average, tree)
        close(optim.averaged(state, tree), average)


def test_ema_without_warm_up_follows_the_plain_recurrence():
    tx = optax.chain(optax.sgd(0.5), optim.weight_ema(0.9, warm_up=False))
    average = params()
    for tree, state in run(tx):
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, average, tree)
        close(optim.averaged(state, tree), average)


def after(tx, steps, start, towards, dtype=jnp.float32, wait=0):
    """The average after parameters stayed at `start`, went straight to `towards`, and stayed there."""
    tree = jnp.array([start], dtype)
    state = tx.init(tree)

    def update(i, carry):
        tree, state = carry
        target = jnp.where(i < wait, start, towards).astype(dtype)
        step, state = tx.update(target - tree, state, tree)
        return optax.apply_updates(tree, step), state

    tree, state = jax.jit(lambda c: jax.lax.fori_loop(0, steps, update, c))((tree, state))
    return optim.averaged(state, tree)


@pytest.mark.parametrize("steps", [10, 60, 1_000])
@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_a_run_of_any_length_ends_with_an_average_of_what_it_learned(decay, steps):
    assert abs(float(after(optim.weight_ema(decay), steps, 0.0, 1.0)[0]) - 1.0) < 1e-3


AVERAGES = {
    "ema": lambda **options: optim.weight_ema(0.999, warm_up=False, **options),
    "swa": lambda **options: optim.swa(1, **options),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_of_bfloat16_do_not_stall(name):
    make, bfloat16 = AVERAGES[name], jnp.bfloat16
    mean = after(make(), 3_000, 1.0, 2.0, bfloat16, wait=1_500)
    wanted = after(make(), 3_000, 1.0, 2.0, wait=1_500)
    assert mean.dtype == bfloat16 and wanted[0] > 1.49
    np.testing.assert_allclose(np.float32(mean), wanted, rtol=2**-8)
    narrow = after(make(accumulator_dtype=bfloat16), 3_000, 1.0, 2.0, bfloat16, wait=1_500)
    assert float(narrow[0]) == 1.0  # what the accumulator is for


def test_a_mixture_keeps_the_types_of_the_fine_tuned_model():
    tree = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params())
    for alpha in (0.25, jnp.float32(0.25)):
        mixed = optim.wise_ft(tree, tree, alpha)
        assert {leaf.dtype for leaf in jax.tree.leaves(mixed)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(("start", "every", "members"), [(1, 1, [0, 1, 2, 3]), (2, 2, [1, 3])])
def test_swa_is_the_mean_of_its_members(start, every, members):
    history = run(optax.chain(optax.sgd(0.5), optim.swa(start, every)))
    trees = [history[i][0] for i in members]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)
    close(optim.averaged(history[-1][1], history[-1][0]), mean)


def test_before_its_start_swa_is_the_current_parameters():
    tree, state = run(optax.chain(optax.sgd(0.5), optim.swa(10)))[-1]
    close(optim.averaged(state, tree), tree)


def test_an_average_holds_nothing_for_frozen_parameters():
    tx = optim.freeze(optax.chain(optax.sgd(0.5), optim.weight_ema(0.5)), FROZEN)
    tree, state = run(tx)[-1]
    assert not any("body" in where for where in optim.by_path(state))
    result = optim.averaged(state, tree)
    close(result["body"], params()["body"])
    assert not np.array_equal(result["head"], tree["head"])


def test_wise_ft_goes_from_one_model_to_the_other_and_skips_holes():
    a, b = {"x": jnp.zeros(2), "y": None}, {"x": jnp.full(2, 8.0), "y": None}
    for alpha, value in ((0.0, 0.0), (0.25, 2.0), (1.0, 8.0)):
        mixed = optim.wise_ft(a, b, alpha)
        assert mixed["x"].tolist() == [value, value] and mixed["y"] is None


def test_groups_have_their_own_rate_decay_schedule_and_optimizer():
    groups = {
        "slow": optim.Group(optax.linear_schedule(0.1, 0.0, 4), weight_decay=0.2),
        "fast": optim.Group(0.5, core=optax.trace(0.9)),
    }
    tx = optim.parameter_groups(groups, {"body": "slow", "head": "fast"})
    mine = run(tx)[-1][0]
    singles = {
        "body": optax.adamw(optax.linear_schedule(0.1, 0.0, 4), weight_decay=0.2),
        "head": optax.sgd(0.5, momentum=0.9),
    }
    for name, single in singles.items():
        tree = params()[name]
        state = single.init(tree)
        for step in range(4):
            update, state = single.update(grads(step)[name], state, tree)
            tree = optax.apply_updates(tree, update)
        close(mine[name], tree)


def test_frozen_groups_do_not_count_for_the_clip_of_the_others():
    tx = optim.parameter_groups(
        {"on": optim.Group(1.0, core=optax.identity()), "off": None},
        {"body": "off", "head": "on"},
        clip=1.0,
    )
    huge = {"body": jnp.full((1, 2), 1e6), "head": jnp.array([[3.0, 4.0]])}
    updates, state = tx.update(huge, tx.init(params()), params())
    close(updates["head"], jnp.array([[-0.6, -0.8]]))
    assert updates["body"].tolist() == [[0.0, 0.0]]
    assert not any("body" in where for where in optim.by_path(state))


def test_rates_are_spread_geometrically():
    rates = optim.spread(1e-6, 1e-2, 5)
    assert rates == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])


def test_lora_plus_finds_b_whatever_the_library_calls_it():
    tree = {
        "nnx": {"kernel": 0, "lora_a": 0, "lora_b": 0},
        "peft": {"lora_A": {"default": {"weight": 0}}, "lora_B": {"default": {"weight": 0}}},
    }
    scales = optim.by_path(optim.lora_plus_scales(tree, 16))
    assert {path for path, scale in scales.items() if scale == 16.0} == {
        "nnx/lora_b",
        "peft/lora_B/default/weight",
    }
    assert sorted(set(scales.values())) == [1.0, 16.0]


def test_schedule_free_equals_optax_on_the_trainable_part():
    base = optax.adamw(0.1, b1=0.0, weight_decay=0.0)
    tx = optim.schedule_free(base, 0.1, frozen=FROZEN)
    alone = optax.contrib.schedule_free(base, 0.1, 0.9)
    tree, state = run(tx)[-1]
    head = params()["head"]
    reference = alone.init(head)
    for step in range(4):
        update, reference = alone.update(grads(step)["head"], reference, head)
        head = optax.apply_updates(head, update)
    close(tree, {"body": params()["body"], "head": head})
    evaluated = optim.schedule_free_params(state, tree)
    close(evaluated["head"], optax.contrib.schedule_free_eval_params(reference, head))
    close(evaluated["body"], params()["body"])


def test_schedule_free_averages_of_bfloat16_do_not_stall():
    """Parameters on their way from 1 to 2: the average of float32, to the rounding of bfloat16."""
    rates = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        tree = {"body": jnp.ones(1, dtype), "head": jnp.ones(1, dtype)}
        tx = optim.schedule_free(optax.sgd(1e-3), 1e-3, frozen=FROZEN)

        def update(_, carry, tx=tx):
            tree, state = carry
            grads = jax.tree.map(lambda p: p - 2, tree)
            step, state = tx.update(grads, state, tree)
            return optax.apply_updates(tree, step), state

        run = jax.jit(lambda c, update=update: jax.lax.fori_loop(0, 3_000, update, c))
        tree, state = run((tree, tx.init(tree)))
        evaluated = optim.schedule_free_params(state, tree)
        assert evaluated["head"].dtype == tree["head"].dtype == dtype
        assert evaluated["body"][0] == 1
        rates[dtype] = [float(tree["head"][0]), float(evaluated["head"][0])]
    assert rates[jnp.float32][1] > 1.5
    np.testing.assert_allclose(rates[jnp.bfloat16], rates[jnp.float32], rtol=2**-7)


def test_what_else_moves_a_bfloat16_parameter_is_not_undone():
    moved = []
    for dtype in (jnp.float32, jnp.bfloat16):
        tree = {"head": jnp.ones(1, dtype)}
        tx = optim.schedule_free(optax.sgd(1e-3), 1e-3)
        _, state = tx.update(tree, tx.init(tree), tree)
        updates, _ = tx.update(tree, state, {"head": jnp.full(1, 5.0, dtype)})
        moved.append(float(updates["head"][0]))
    np.testing.assert_allclose(*moved, rtol=1e-2)


def quadratic(tree):
    return sum(jnp.sum(jnp.cosh(leaf)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("frozen", [None, FROZEN])
def test_sam_takes_the_gradient_uphill_within_the_trainable_part(frozen):
    tree, gradient = params(), jax.grad(quadratic)
    tx = optim.sam(optax.sgd(0.1), 0.05, frozen=frozen)
    updates, _ = jax.jit(lambda g, s, p: tx.update(g, s, p, grad_fn=gradient))(
        gradient(tree), tx.init(tree), tree
    )
    trained = ["head"] if frozen else ["body", "head"]
    part = {name: gradient(tree)[name] for name in trained}
    norm = optax.tree.norm(part)
    uphill = {**tree, **{name: tree[name] + 0.05 * part[name] / norm for name in trained}}
    for name in tree:
        expected = -0.1 * gradient(uphill)[name] if name in trained else jnp.zeros((1, 2))
        close(updates[name], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sam_at_a_zero_gradient_stays(dtype):
    zero = jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params())
    tx = optim.sam(optax.adamw(0.1, weight_decay=0.0), 0.05, frozen=FROZEN)
    updates, state = tx.update(zero, tx.init(zero), zero, grad_fn=jax.grad(quadratic))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))
    close(updates, zero)
    # One parameter with a gradient among others without is enough to climb.
    updates, _ = tx.update(
        {**zero, "head": zero["head"] + 1}, tx.init(zero), zero, grad_fn=jax.grad(quadratic)
    )
    assert (updates["head"] < 0).all()


def test_sam_works_on_the_trainable_part_with_its_holes():
    part = {"body": None, "head": params()["head"]}
    tx = optim.sam(optax.sgd(0.1), 0.05, frozen=FROZEN)
    updates, _ = tx.update(
        jax.grad(quadratic)(part), tx.init(part), part, grad_fn=jax.grad(quadratic)
    )
    assert updates["body"] is None and updates["head"].shape == (1, 2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: optim.clip_by_norm(0.0), "cannot clip to the norm 0.0"),
        (lambda: optim.wise_ft({}, {}, 1.5), r"alpha 1.5 is not in \[0, 1\]"),
        (lambda: optim.weight_ema(1.0), r"1.0 of an average is not in \[0, 1\)"),
        (lambda: optim.swa(0), "count updates from 1, got 0"),
        (lambda: optim.averaged(optax.EmptyState(), {}), "holds 0 averages"),
        (lambda: optim.schedule_free_params(optax.EmptyState(), {}), "holds 0 schedule-free"),
        (lambda: optim.lora_plus_scales({"lora_b": 0}, 0.5), "ratio 0.5 is below 1"),
        (lambda: optim.lora_plus_scales({"kernel": 0}, 16.0), "matches no parameter"),
        (lambda: optim.spread(1.0, 0.1, 3), "need 0 < low <= high"),
        (
            lambda: optim.parameter_groups({"a": optim.Group(1.0)}, {"x": "b"}),
            "'x' is in the group 'b'",
        ),
        (lambda: optim.parameter_groups({"a": None, "b": None}, {"x": "a"}), "no parameter .* 'b'"),
        (lambda: optim.sam(optax.sgd(1.0), 0.1).update({}, None, {}), "sam needs"),
        (lambda: optim.l2sp(0.1).update({}, None), "l2sp needs the parameters"),
        (lambda: optim.swa(1).update({}, None), "averaging needs the parameters"),
    ],
)
def test_wrong_use_is_an_error(call, said):
    with pytest.raises(ValueError, match=said):
        call()
