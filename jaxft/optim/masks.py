"""What weight decay acts on: matrices and embeddings, not biases and normalisation scales."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxft.optim.paths import Tree, by_path, leaf_paths, path_map, select

# By name as well as by rank: in a scanned stack the biases and scales have a leading layer axis.
_NEVER_DECAYED = frozenset({"bias", "scale", "offset", "beta", "gamma"})
# Modules without bias whose `weight` is a scale, by name: norm1, attention_norm, norm_out, ln_2, bn.
_NORM = re.compile(
    r"(?!.*(proj|linear|dense|conv|fc)).*norm.*|(.*_)?(ln|bn|gn)(_.*|\d*)", re.IGNORECASE
)
_NORM_TYPES = ("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm", "InstanceNorm")


def decay_mask(params: Tree, *, exempt: Sequence[str] = ()) -> Tree:
    """True where weight decay applies, in the structure of `params`.

    Not decayed: leaves named bias, scale, offset, beta or gamma; leaves with fewer than two
    dimensions; and the scale of a normalisation that is called `weight`, as in Equinox, also where
    layers are stacked and it has the rank of a matrix: its bias has the same shape, or its module
    is named or typed a norm. Nor are paths that match a pattern of `exempt`. timm also exempts the
    class token and the position embedding of a ViT: `exempt=['.*/(cls_token|pos_embed)']`.

    >>> import jax.numpy as jnp
    >>> decay_mask({'dense': {'bias': jnp.ones(2), 'kernel': jnp.ones((2, 2))}})
    {'dense': {'bias': False, 'kernel': True}}
    >>> decay_mask({'stack': {'bias': jnp.ones((6, 2)), 'weight': jnp.ones((6, 2))}})
    {'stack': {'bias': False, 'weight': False}}

    As in Loshchilov and Hutter, "Decoupled weight decay regularization", 2019
    (https://arxiv.org/abs/1711.05101), the decay itself is `optax.add_decayed_weights(rate, mask)`.

    Args:
      params: arrays or anything with `.ndim` and `.shape` (`jax.ShapeDtypeStruct`).
      exempt: further patterns without decay; one that matches nothing raises ValueError.
    """
    leaves, scales = by_path(params), _scales_by_type(params)

    def decayed(path: str, leaf: Any) -> bool:
        name = path.rpartition("/")[2]
        if name in _NEVER_DECAYED or leaf.ndim < 2 or path in scales:
            return False
        return name != "weight" or not _is_scale(path, leaf, leaves)

    by_rank_and_name = path_map(decayed, params)
    if not exempt:
        return by_rank_and_name
    return jax.tree.map(
        lambda keep, out: keep and not out, by_rank_and_name, select(params, exempt)
    )


def _is_scale(path: str, leaf: Any, leaves: Mapping[str, Any]) -> bool:
    """Whether a `weight` is elementwise: a matrix has one dimension more than its bias."""
    module = path.rpartition("/")[0]
    bias = leaves.get(f"{module}/bias" if module else "bias")
    if bias is not None:
        return bias.shape == leaf.shape
    return _NORM.fullmatch(module.rpartition("/")[2]) is not None


def _scales_by_type(params: Tree) -> set[str]:
    """The `weight` of modules that are norms by their class, which Equinox keeps in the tree."""

    def is_norm(node: Any) -> bool:
        return type(node).__name__.endswith(_NORM_TYPES)

    named = jax.tree.unflatten(jax.tree.structure(params), leaf_paths(params))
    norms = filter(is_norm, jax.tree.leaves(named, is_leaf=is_norm))
    return {node.weight for node in norms if isinstance(getattr(node, "weight", None), str)}
