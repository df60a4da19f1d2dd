"""Disentangled attention (He et al., 2021, arXiv:2006.03654): scores also by how far tokens are apart."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.models.layers import modules, ops


class Config(Protocol):
    """The fields of a family's config that are read here."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def hidden_dropout_prob(self) -> float: ...
    @property
    def attention_probs_dropout_prob(self) -> float: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def initializer_range(self) -> float: ...
    @property
    def share_att_key(self) -> bool: ...
    @property
    def ways(self) -> tuple[str, ...]:
        """Those of "c2p" and "p2c" that count."""

    @property
    def furthest(self) -> int:
        """The distance from which on all are one bucket."""

    @property
    def position_buckets(self) -> int:
        """Below 1: a distance each."""

    @property
    def span(self) -> int:
        """Half the rows of the table of relative positions."""


def buckets(config: Config) -> np.ndarray:
    """The row of the table of relative positions for each distance from -(P - 1) to P - 1, int32.

    Distances up to half the buckets have one of their own, larger ones share them by logarithm.
    Computed here in fp32, in the order that HF computes it, since a rounding moves a token by a row.
    """
    furthest = config.max_position_embeddings - 1
    distance = np.arange(-furthest, furthest + 1)
    if config.position_buckets > 0:
        half = config.position_buckets // 2
        size = np.maximum(np.abs(distance), half).astype(np.float32)
        longest = np.log(np.float32((config.furthest - 1) / half))
        steps = np.ceil(np.log(size / np.float32(half)) / longest * np.float32(half - 1)) + half
        distance = np.where(np.abs(distance) <= half, distance, np.sign(distance) * steps)
    rows = np.clip(distance + config.span, 0, 2 * config.span - 1)
    return rows.astype(np.int32)


class Attention(nnx.Module):
    """Attention up to, not including, its output projection, with relative positions."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range

        def linear() -> modules.Linear:
            return modules.Linear(width, width, std=std, rngs=rngs)

        self.query_proj, self.key_proj, self.value_proj = linear(), linear(), linear()
        own = () if config.share_att_key else config.ways
        self.pos_key_proj = linear() if "c2p" in own else None
        self.pos_query_proj = linear() if "p2c" in own else None
        self.ways, self.heads = config.ways, config.num_attention_heads
        self.scale = 1 / math.sqrt(width / config.num_attention_heads * (1 + len(config.ways)))
        self.rate, self.table_rate = config.attention_probs_dropout_prob, config.hidden_dropout_prob

    def __call__(
        self,
        looking: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        relative: jax.Array | None,
        rows: jax.Array | None,
        seed: ops.Seed,
    ) -> jax.Array:
        """Tokens that look [R, Q, D] and those that are looked at [R, T, D] -> [R, Q, D].

        `mask` [R, 1, Q, T]; `relative` [2 * span, D] and the row of it for each pair, [R, Q, T].
        """
        weights_seed, table_seed = ops.split(seed, 2)
        query, key, value = (
            self._heads(x)
            for x in (self.query_proj(looking), self.key_proj(tokens), self.value_proj(tokens))
        )
        scores = jnp.einsum("rhqd,rhtd->rhqt", query, key, preferred_element_type=jnp.float32)
        if relative is not None and rows is not None:
            table_seed = ops.without_rows(table_seed)
            table = ops.dropout(relative.astype(tokens.dtype), self.table_rate, table_seed)[None]
            if "c2p" in self.ways:
                own = self._heads((self.pos_key_proj or self.key_proj)(table))[0]
                scores = scores + _looked_up("rhqd,hpd->rhqp", query, own, rows)
            if "p2c" in self.ways:
                own = self._heads((self.pos_query_proj or self.query_proj)(table))[0]
                back = _looked_up("rhtd,hpd->rhtp", key, own, rows.swapaxes(1, 2))
                scores = scores + back.swapaxes(2, 3)
        scores = jnp.where(mask, scores * self.scale, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        weights = ops.dropout(weights, self.rate, weights_seed)
        attended = jnp.einsum("rhqt,rhtd->rqhd", weights, value)
        return attended.reshape(looking.shape)

    def _heads(self, x: jax.Array) -> jax.Array:
        """[R, T, D] -> [R, H, T, D / H]."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)


def _looked_up(product: str, x: jax.Array, table: jax.Array, rows: jax.Array) -> jax.Array:
    """Products of [R, H, Q, d] with each row of a table [H, P, d], at `rows` [R, Q, T]: [R, H, Q, T]."""
    all_rows = jnp.einsum(product, x, table, preferred_element_type=jnp.float32)
    return jnp.take_along_axis(all_rows, rows[:, None], axis=-1, mode="clip")
