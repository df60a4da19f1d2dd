"""FLOPs counted in a jaxpr beside formulas, and beside what XLA counts of a program without loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxft.planning.flops import products

N, D, LAYERS = 64, 256, 4
X, W = jnp.zeros((N, D)), jnp.zeros((LAYERS, D, D))
ONE = 2 * N * D * D


def unrolled(w, x):
    for one in w:
        x = jnp.tanh(x @ one)
    return jnp.sum(x)


def scanned(w, x):
    return jnp.sum(jax.lax.scan(lambda x, one: (jnp.tanh(x @ one), None), x, w)[0])


def count(f, *args, **how):
    return products(jax.make_jaxpr(f)(*args), **how)


@pytest.mark.parametrize("run", [unrolled, scanned])
def test_a_gradient_is_three_passes_but_for_the_input(run):
    assert count(run, W, X) == LAYERS * ONE
    # Backward: of each kernel, and of each layer's input but the first, whose gradient nobody asks for.
    whole = 3 * LAYERS - (run is unrolled)
    assert count(jax.grad(run), W, X) == whole * ONE


def test_what_is_frozen_has_no_backward_pass():
    def loss(last, first, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ first) @ last))

    assert count(jax.grad(loss), W[0], W[1], X) == 3 * ONE


def test_recomputation_and_loops():
    def twice(w):
        return jnp.sum(jnp.tanh(jnp.tanh(X @ w) @ w))

    assert count(jax.value_and_grad(twice), W[0]) == 5 * ONE
    assert 6 * ONE <= count(jax.value_and_grad(jax.checkpoint(twice)), W[0]) <= 7 * ONE

    def loop(n, x):
        return jax.lax.fori_loop(0, n, lambda i, x: x @ W[0], x)

    assert count(loop, 3, X, unknown_trips=7) == 7 * ONE
    halves = lambda p, x: jax.lax.cond(p, lambda x: x @ W[0] @ W[0], lambda x: x @ W[0], x)  # noqa: E731
    assert count(halves, True, X) == 2 * ONE


def test_convolutions():
    def run(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    found = count(run, jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 2, 6)))
    assert found == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)


def test_beside_what_xla_counts_of_an_unrolled_program():
    gradient = jax.jit(jax.grad(unrolled))
    said = gradient.lower(W, X).compile().cost_analysis()["flops"]
    assert count(jax.grad(unrolled), W, X) == pytest.approx(said, rel=0.03)
