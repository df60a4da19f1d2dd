"""Layer-wise learning-rate decay: blocks nearer the input learn slower.

Depth is 0 for the stem (embeddings), 1..L for the blocks and L + 1 for the head; the final norm
goes with the last block, a BERT pooler with the head. That is the convention of timm and BEiT.
The rate of depth d is multiplied by `decay ** (L + 1 - d)`. For 12 blocks and decay 0.75:

    depth        0 (stem)  1        2        …  6        …  11      12 (and final norm)  13 (head)
    scale        0.02376   0.03168  0.04224  …  0.13348  …  0.5625  0.75                 1
    head exempt  0.03168   0.04224  0.05631  …  0.17798  …  0.75    1                    1

Bao et al., "BEiT: BERT pre-training of image transformers", 2022
(https://arxiv.org/abs/2106.08254); Clark et al., "ELECTRA", 2020
(https://arxiv.org/abs/2003.10555).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.optim.checks import Scalar, known
from jaxft.optim.lookup import TreeOrFunction, lookup
from jaxft.optim.paths import Tree, by_path, leaf_paths, match_rules, nearest, path_map


def depths_from_rules(params: Tree, rules: Iterable[tuple[str, int]]) -> Tree:
    """Depth of every parameter by ordered (pattern, depth) rules that cover all of them.

    Raises:
      ValueError: a pattern matches nothing, or a parameter has no depth.
    """
    return match_rules(rules, params)


def depths_from_prefixes(params: Tree, prefixes: Sequence[str | Sequence[str]]) -> Tree:
    """Depth of every parameter from path prefixes listed from stem to head.

    Entry i has depth i; an entry of several prefixes puts them at the same depth. The longest
    prefix that fits a path decides.

    >>> depths_from_prefixes({'embed': 0, 'blocks': [{'k': 0}, {'k': 0}], 'norm': 0, 'head': 0},
    ...                      ['embed', 'blocks/0', ('blocks/1', 'norm'), 'head'])
    {'blocks': [{'k': 1}, {'k': 2}], 'embed': 0, 'head': 3, 'norm': 2}

    Raises:
      ValueError: a prefix fits no path, or a path has no prefix.
    """
    depth_of: dict[str, int] = {}
    for depth, entry in enumerate(prefixes):
        for prefix in (entry,) if isinstance(entry, str) else entry:
            depth_of[prefix.rstrip("/")] = depth
    used: set[str] = set()

    def depth_at(path: str, leaf: Any) -> int:
        del leaf
        keys = path.split("/")
        for end in range(len(keys), 0, -1):
            prefix = "/".join(keys[:end])
            if prefix in depth_of:
                used.add(prefix)
                return depth_of[prefix]
        raise ValueError(f"the parameter {path!r} has no depth{nearest(path, depth_of)}")

    depths = path_map(depth_at, params)
    for prefix in depth_of:
        if prefix not in used:
            raise ValueError(
                f"the prefix {prefix!r} fits no parameter{nearest(prefix, by_path(params))}"
            )
    return depths


def layer_scales(
    depths: Tree, decay: Scalar, *, min_scale: Scalar = 0.0, head_exempt: bool = False
) -> Tree:
    """Learning-rate multiplier of every parameter: `max(decay ** (L + 1 - depth), min_scale)`.

    >>> layer_scales({'stem': 0, 'block': 1, 'head': 2}, 0.5)
    {'block': 0.5, 'head': 1.0, 'stem': 0.25}

    Args:
      depths: ints; the largest is the head's, L + 1, so the tree must contain the head.
      decay: factor from one depth to the one below, in (0, 1].
      min_scale: no multiplier is smaller.
      head_exempt: the ladder starts at 1 with the last block, and the head has 1 too.

    Raises:
      ValueError: `decay` is not in (0, 1].
    """
    if known(decay) and not 0 < decay <= 1:
        raise ValueError(
            f"layer decay {decay} is not in (0, 1]: 1 is no decay, 0.65 to 0.95 is usual"
        )
    head = max(jax.tree.leaves(depths))
    top = head - 1 if head_exempt else head
    return jax.tree.map(lambda depth: larger(decay ** max(top - depth, 0), min_scale), depths)


def scale_by_path(scales: TreeOrFunction) -> optax.GradientTransformation:
    """Multiply the update at each path by a constant: the learning rate of that parameter.

    Goes *after* the adaptive core: Adam divides by the gradient's size, so a factor before it
    cancels. A factor of 1 costs nothing and changes no bit; any other is fused into the update by
    the compiler.

    >>> import jax.numpy as jnp
    >>> rates = scale_by_path({'body': 0.1, 'head': 1.0})
    >>> tx = optax.chain(optax.scale_by_adam(), rates, optax.scale(-0.5))
    >>> grads = {'body': jnp.ones(1), 'head': jnp.ones(1)}
    >>> updates, _ = tx.update(grads, tx.init(grads))
    >>> [round(float(u[0]), 4) for u in (updates['body'], updates['head'])]
    [-0.05, -0.5]

    Args:
      scales: numbers at the paths of the parameters, in any container, or a function that gives
        them for the parameters. For parameters stacked along a leading layer axis: a vector with
        one factor a layer (see `stacked.stacked_scales`).

    Raises:
      ValueError: (at update) a parameter has no factor, or a vector with another number of layers.
    """
    scales_of = lookup(scales)

    def update(updates: Tree, params: Tree | None) -> Tree:
        del params
        leaves, treedef = jax.tree.flatten(updates)
        rows = zip(leaf_paths(updates), leaves, jax.tree.leaves(scales_of(updates)), strict=True)
        return jax.tree.unflatten(treedef, [_scaled(*row) for row in rows])

    return optax.stateless(update)


def larger(value: Scalar, least: Scalar) -> Scalar:
    """`max(value, least)`, also where one of them is traced."""
    return max(value, least) if known(value, least) else jnp.maximum(value, least)


def _scaled(path: str, update: jax.Array, scale: Scalar) -> jax.Array:
    if isinstance(scale, int | float):
        return update if scale == 1 else update * scale
    # In the update's type: a traced scale is float32, and would widen bfloat16.
    scale = jnp.asarray(scale, update.dtype)
    if scale.size == 1:
        return update * scale.reshape(())
    if scale.ndim > 1 or scale.shape != update.shape[:1]:
        raise ValueError(
            f"the scale of {path!r} has the shape {scale.shape}, its update {update.shape}: give a "
            "number, or a vector with one number for each entry of the first axis"
        )
    return update * scale.reshape(-1, *(1,) * (update.ndim - 1))
