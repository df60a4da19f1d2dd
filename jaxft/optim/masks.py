"""What weight decay acts on: matrices and embeddings, not biases and normalisation scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxft.optim.paths import Tree, path_map, select

# By name as well as by rank: in a scanned stack the biases and scales have a leading layer axis.
_NEVER_DECAYED = frozenset({"bias", "scale", "beta", "gamma"})


def decay_mask(params: Tree, *, exempt: Sequence[str] = ()) -> Tree:
    """True where weight decay applies, in the structure of `params`.

    Not decayed: leaves named bias, scale, beta or gamma, leaves with fewer than two dimensions (an
    Equinox LayerNorm calls its scale `weight`), and paths that match a pattern of `exempt`. timm
    also
    exempts the class token and the position embedding of a ViT:
    `exempt=['.*/(cls_token|pos_embed)']`.

    >>> import jax.numpy as jnp
    >>> decay_mask({'dense': {'bias': jnp.ones(2), 'kernel': jnp.ones((2, 2))}})
    {'dense': {'bias': False, 'kernel': True}}

    As in Loshchilov and Hutter, "Decoupled weight decay regularization", 2019
    (https://arxiv.org/abs/1711.05101), the decay itself is `optax.add_decayed_weights(rate, mask)`.

    Args:
      params: arrays or anything with `.ndim` (`jax.ShapeDtypeStruct`).
      exempt: further patterns without decay; one that matches nothing raises ValueError.
    """

    def decayed(path: str, leaf: Any) -> bool:
        return path.rpartition("/")[2] not in _NEVER_DECAYED and leaf.ndim > 1

    by_rank_and_name = path_map(decayed, params)
    if not exempt:
        return by_rank_and_name
    return jax.tree.map(
        lambda keep, out: keep and not out, by_rank_and_name, select(params, exempt)
    )
