"""Parameters of repeated layers stacked on a leading layer axis, the usual layout under `lax.scan`.

Such a leaf has no path of its own for layer 7. Rates come as a vector over the layer axis, and
freezing the first k layers means cutting the stack in two: a mask on the update would leave the
whole backward scan in place (measured on 12 layers with 9 frozen: 39 matrix products with a mask,
21 with the cut).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.optim.checks import Scalar, known
from jaxft.optim.layerwise import larger
from jaxft.optim.paths import Tree, by_path


def stacked_scales(num_layers: int, decay: Scalar, *, min_scale: Scalar = 0.0) -> jax.Array:
    """Learning-rate multipliers of layers 1..L: `decay ** (L + 1 - depth)`, float32 [L].

    The value for stacked leaves in `scale_by_path` and `fine_tuning_optimizer(scales=…)`, broadcast
    over the leading axis; the stem has `decay ** (L + 1)` and the head 1.

    >>> stacked_scales(3, 0.5).tolist()
    [0.125, 0.25, 0.5]
    """
    if known(decay) and not 0 < decay <= 1:
        raise ValueError(f"layer decay {decay} is not in (0, 1]")
    return jnp.array([larger(decay ** (num_layers - i), min_scale) for i in range(num_layers)])


def split_stack(stacked: Tree, k: int, *, axis: int = 0) -> tuple[Tree, Tree]:
    """The first `k` layers and the others, cut along the layer axis of every leaf.

    >>> frozen, trained = split_stack({'kernel': jnp.arange(6.0).reshape(3, 2)}, 2)
    >>> frozen['kernel'].shape, trained['kernel'].tolist()
    ((2, 2), [[4.0, 5.0]])

    Args:
      stacked: leaves with the same number of layers along `axis`.
      k: layers to freeze, 0 to L.
      axis: the layer axis (0 for `lax.scan`).

    Raises:
      ValueError: leaves differ in their number of layers, or `k` is not in 0..L.
    """
    num_layers = _num_layers(stacked, axis)
    if not 0 <= k <= num_layers:
        raise ValueError(
            f"cannot cut {num_layers} stacked layers after {k}: give 0 to {num_layers}"
        )
    below = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, k, axis=axis), stacked)
    above = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, k, num_layers, axis=axis), stacked)
    return below, above


def merge_stack(below: Tree, above: Tree, *, axis: int = 0) -> Tree:
    """The inverse of `split_stack`: one stack of all layers."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=axis), below, above)


def scan_split(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, frozen: Tree, trained: Tree
) -> Any:
    """Run the layers of both parts in order, differentiating only through the second.

    As `lax.scan(body, carry, merge_stack(frozen, trained))[0]`, but the frozen layers run forward
    only: they keep no activations and cost no backward work.

    Args:
      body: `(carry, parameters of one layer) -> (carry, ignored)`, as for `lax.scan`.
      carry: input of the first layer. No gradient flows into it if there are frozen layers.
      frozen, trained: the parts of `split_stack`; either may have no layer.
    """
    if _num_layers(frozen, 0):
        # Carry *and* parameters: a gradient of either would bring the backward scan back.
        carry, frozen = jax.lax.stop_gradient((carry, frozen))
        carry, _ = jax.lax.scan(body, carry, frozen)
        carry = jax.lax.stop_gradient(carry)
    if _num_layers(trained, 0):
        carry, _ = jax.lax.scan(body, carry, trained)
    return carry


def _num_layers(stacked: Tree, axis: int) -> int:
    lengths = {path: leaf.shape[axis] for path, leaf in by_path(stacked).items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"stacked leaves must agree on the number of layers, these have {lengths}")
    return next(iter(lengths.values()))
