"""Heads by kind: what a family's model ends in, and which tokens that reads."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]
# Positions [B, K] of the tokens that a head reads; None: every token.
Reads = Callable[[Batch], jax.Array | None]


def first_token(batch: Batch) -> jax.Array:
    """[R, K]: where each example of a text row starts. [B, 1] zeros for images: the class token."""
    if "starts" in batch:
        return batch["starts"]
    return jnp.zeros((len(batch["pixel_values"]), 1), jnp.int32)


def every_token(batch: Batch) -> None:
    """None: the head has an output for each token of a row."""


@dataclasses.dataclass(frozen=True)
class Head:
    """One kind of head of a family.

    Attributes:
        architecture: HF's class of the backbone with this head, `architectures` of an export.
        reads: the tokens that the head takes.
        unused: patterns of tensors of the base model that HF's class with this head lacks.
    """

    architecture: str
    reads: Reads
    unused: tuple[str, ...] = ()


def choose(heads: Mapping[str, Head], kind: str | None, model_type: str) -> str:
    """The kind of head that is asked for; None is the first, a family's classification head.

    Raises:
        ValueError: the family has no head of that kind; one line with those that it has.
    """
    if kind is None:
        return next(iter(heads))
    if kind not in heads:
        near = difflib.get_close_matches(kind, heads, n=1)
        raise ValueError(
            f"a head of kind {kind!r} is not implemented for model_type {model_type!r}; it has "
            f"{', '.join(heads)}" + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    return kind
