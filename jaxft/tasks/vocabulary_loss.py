"""Cross-entropy over a vocabulary without the logits of all tokens, which would be [N, V].

    total = vocabulary_loss(outputs['features'], outputs['unembedding'], labels, weight,
                            bias=outputs.get('bias'), cap=outputs.get('cap'))

Tokens that count are moved to the front and taken a chunk at a time, as many as `budget` logits allow;
the loop ends after the last of them, so what does not count costs nothing and memory does not grow with
V. As in Liger Kernel (Hsu et al., 2024, arXiv:2410.10989), the gradient is computed together with the
loss, while a chunk's logits are there: keeping nothing and computing them again would be a quarter more
products. What needs no gradient, as a frozen unembedding, has no work either.

Under `jit` over a mesh, tokens are compacted on the device that has them if the mesh is in context
(`jax.sharding.use_abstract_mesh`), and each device of the tensor axis computes the logits of its part of the
vocabulary; without, the result is the same, but tokens are sent around.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.tasks.vocabulary_share import ROWS, SUM, TOKENS, Share, where_tokens_are

BUDGET = 2**25  # logits at a time: 128 MiB of fp32


class Statistics(NamedTuple):
    """Of each token, zero where it does not count.

    Attributes:
      nll: fp32, the negative log-likelihood of its label in nats.
      hit: bool, the label has the largest logit.
    """

    nll: jax.Array
    hit: jax.Array


@dataclasses.dataclass(frozen=True)
class _Options:
    label_smoothing: float
    z_loss: float
    budget: int
    axes: tuple[str, ...]
    tensor: str


def vocabulary_loss(
    features: jax.Array,
    unembedding: jax.Array,
    labels: jax.Array,
    weight: jax.Array,
    *,
    bias: jax.Array | None = None,
    cap: float | jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    budget: int = BUDGET,
    axes: tuple[str, ...] = ("data", "fsdp"),
    tensor: str = "tensor",
) -> jax.Array:
    """The weighted sum of the losses of the tokens, fp32 scalar.

    Of one with logits x and label y: `(1 - s) nll(y) + s mean over v of nll(v) + z logsumexp(x)^2`, in
    nats, with nll(v) = logsumexp(x) - x[v].

    Gradients are those of features, unembedding and bias, in their dtypes, summed in fp32; there is none
    for the other arguments. Reverse mode only, once.

    Args:
      features: [..., D], products are computed in its dtype.
      unembedding: [V, D].
      labels: [...] int32, below V where the weight is not 0.
      weight: [...] fp32, at least 0.
      bias: [V].
      cap: logits x become cap * tanh(x / cap); None: they stay.
      label_smoothing: s, from 0 to less than 1.
      z_loss: z (Chowdhery et al., 2022, arXiv:2204.02311, section 5, have 1e-4).
      budget: logits in memory at a time; at least one token's.
      axes: of the mesh in context, if there is one, over which the first axis is cut.
      tensor: that over which the vocabulary is, evenly or not.
    """
    options = _Options(label_smoothing, z_loss, budget, axes, tensor)
    head = _Head(unembedding, bias, None if cap is None else jnp.asarray(cap, jnp.float32))
    return _loss(options, features, head, labels, weight)


def vocabulary_statistics(
    features: jax.Array,
    unembedding: jax.Array,
    labels: jax.Array,
    weight: jax.Array,
    *,
    bias: jax.Array | None = None,
    cap: float | jax.Array | None = None,
    budget: int = BUDGET,
    axes: tuple[str, ...] = ("data", "fsdp"),
    tensor: str = "tensor",
) -> Statistics:
    """What an evaluation keeps of each token that has weight, [...]; not to be differentiated.

    Arguments as of `vocabulary_loss`.
    """
    options = _Options(0.0, 0.0, budget, axes, tensor)
    head = _Head(unembedding, bias, None if cap is None else jnp.asarray(cap, jnp.float32))

    def local(share, features, head, labels, weight):
        head, tokens = _Head(*head), _Tokens(features, labels, weight)
        found = Statistics(jnp.zeros(tokens.count, jnp.float32), jnp.zeros(tokens.count, jnp.bool_))

        def chunk(found, taken):
            logits, _ = _logits(taken.features, head, share)
            _, nll, _ = _losses(logits, taken.labels, options, share)
            hit = share.best(logits) == taken.labels
            return Statistics(
                found.nll.at[taken.places].set(nll, mode="drop"),
                found.hit.at[taken.places].set(hit, mode="drop"),
            )

        found = tokens.fold(chunk, found, options.budget // len(head.unembedding), share)
        return found.nll.reshape(labels.shape), found.hit.reshape(labels.shape)

    run = _placed(options, local, (TOKENS, TOKENS))
    return Statistics(*run(features, head, labels, weight))


class _Head(NamedTuple):
    """Arrays, or what differentiation has in their places."""

    unembedding: Any
    bias: Any = None
    cap: Any = None


class _Taken(NamedTuple):
    """A chunk of tokens [C]; slots that are empty have weight 0 and a place past the end."""

    places: jax.Array
    features: jax.Array
    labels: jax.Array
    weight: jax.Array


class _Tokens:
    """Tokens in one line, those that count before the others."""

    def __init__(self, features: jax.Array, labels: jax.Array, weight: jax.Array):
        self.features = jnp.asarray(features).reshape(-1, features.shape[-1])
        self.labels, self.weight = jnp.asarray(labels).ravel(), jnp.asarray(weight).ravel()
        self.count = len(self.labels)

    def fold(self, chunk: Callable[[Any, _Taken], Any], carry: Any, size: int, share: Share) -> Any:
        """`carry` after `chunk(carry, tokens)` for `size` tokens at a time, as long as some count."""
        size = max(1, min(size, self.count))
        counts = self.weight > 0
        order = jnp.argsort(~counts, stable=True).astype(jnp.int32)
        present = counts.sum()
        order = jnp.pad(order, (0, -self.count % size))
        order = jnp.where(jnp.arange(len(order)) < present, order, self.count)

        def body(number, carry):
            places = lax.dynamic_slice(order, (number * size,), (size,))
            taken = (
                x.at[places].get(mode="fill", fill_value=0)
                for x in (self.features, self.labels, self.weight)
            )
            return chunk(carry, _Taken(places, *taken))

        return lax.fori_loop(0, share.most((present + size - 1) // size), body, carry)


def _logits(features: jax.Array, head: _Head, share: Share) -> tuple[jax.Array, jax.Array | None]:
    """[C, V] fp32, and the slope of the cap there; V rows of the share."""
    logits = jnp.einsum(
        "cd,vd->cv",
        features,
        head.unembedding.astype(features.dtype),
        preferred_element_type=jnp.float32,
    )
    if head.bias is not None:
        logits = logits + head.bias
    if head.cap is None:
        return share.present(logits), None
    bent = jnp.tanh(logits / head.cap)
    return share.present(head.cap * bent), 1 - bent * bent


def _losses(
    logits: jax.Array, labels: jax.Array, options: _Options, share: Share
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(loss, negative log-likelihood, log of the normaliser), each [C]."""
    normaliser = share.normaliser(logits)
    nll = normaliser - share.at(logits, labels)
    loss, smoothing = nll, options.label_smoothing
    if smoothing:
        loss = (1 - smoothing) * nll + smoothing * (normaliser - share.mean(logits))
    if options.z_loss:
        loss = loss + options.z_loss * normaliser * normaliser
    return loss, nll, normaliser


def _slopes(
    logits: jax.Array, normaliser: jax.Array, labels: jax.Array, options: _Options, share: Share
) -> jax.Array:
    """Derivatives [C, V] of each token's loss by its logits."""
    given = jnp.exp(logits - normaliser[:, None])
    if options.z_loss:
        given = given * (1 + 2 * options.z_loss * normaliser)[:, None]
    smoothing, vocabulary = options.label_smoothing, share.vocabulary
    right = share.ids(logits.shape[-1])[None, :] == labels[:, None]
    wanted = jnp.where(right, 1 - smoothing + smoothing / vocabulary, smoothing / vocabulary)
    return given - wanted


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(options, features, head, labels, weight):
    def local(share, features, head, labels, weight):
        head, tokens = _Head(*head), _Tokens(features, labels, weight)

        def chunk(total, taken):
            logits, _ = _logits(taken.features, head, share)
            loss, _, _ = _losses(logits, taken.labels, options, share)
            return total + (loss * taken.weight).sum()

        size = options.budget // len(head.unembedding)
        return tokens.fold(chunk, jnp.float32(0), size, share)

    return _placed(options, local, SUM)(features, head, labels, weight)


def _placed(options: _Options, function: Callable[..., Any], by: Any) -> Callable[..., Any]:
    run = where_tokens_are(function, by, axes=options.axes, tensor=options.tensor)
    return lambda features, head, labels, weight: run(features, tuple(head), labels, weight)


def _loss_forward(options, features, head, labels, weight):
    primals = (features, head, labels, weight)
    moving = (features, head.unembedding, head.bias)
    wanted = tuple(x is not None and x.perturbed for x in moving)
    values = jax.tree.map(lambda x: x.value, primals, is_leaf=lambda x: hasattr(x, "perturbed"))
    local = functools.partial(_loss_and_gradients, options, wanted)
    kinds = (TOKENS, ROWS, ROWS)
    by = tuple(kind if found else None for kind, found in zip(kinds, wanted, strict=True))
    total, gradients = _placed(options, local, (SUM, by))(*values)
    pairs = zip(gradients, moving, strict=True)
    return total, [None if x is None else x.astype(of.value.dtype) for x, of in pairs]


def _loss_and_gradients(options, wanted, share, features, head, labels, weight):
    """The loss, and of what is wanted (features, unembedding, bias) the gradients; None of the others."""
    head, tokens = _Head(*head), _Tokens(features, labels, weight)
    rows = max(1, options.budget // features.shape[-1])
    zeros = (
        jnp.zeros_like(tokens.features) if wanted[0] else None,
        jnp.zeros(head.unembedding.shape, jnp.float32) if wanted[1] else None,
        jnp.zeros(head.bias.shape, jnp.float32) if wanted[2] else None,
    )

    def chunk(carry, taken):
        total, (by_features, by_unembedding, by_bias) = carry
        logits, slope = _logits(taken.features, head, share)
        loss, _, normaliser = _losses(logits, taken.labels, options, share)
        by_logits = _slopes(logits, normaliser, taken.labels, options, share)
        by_logits = by_logits * taken.weight[:, None]
        by_logits = by_logits if slope is None else by_logits * slope
        if by_bias is not None:
            by_bias = by_bias + by_logits.sum(0)
        by_logits = by_logits.astype(features.dtype)
        if by_features is not None:
            found = by_logits @ head.unembedding.astype(features.dtype)
            by_features = by_features.at[taken.places].set(found, mode="drop")
        if by_unembedding is not None:
            by_unembedding = _added(by_unembedding, by_logits, taken.features, rows)
        return total + (loss * taken.weight).sum(), (by_features, by_unembedding, by_bias)

    size = options.budget // len(head.unembedding)
    total, (by_features, *others) = tokens.fold(chunk, (jnp.float32(0), zeros), size, share)
    if by_features is not None:
        by_features = share.added(by_features).reshape(features.shape)
    return total, (by_features, *others)


def _added(sums: jax.Array, by_logits: jax.Array, features: jax.Array, rows: int) -> jax.Array:
    """`sums` [V, D] and by_logits [C, V]^T features [C, D], a block of rows at a time.

    By a loop, in which XLA adds in place: all at once, or in slices, it keeps a second [V, D].
    """
    rows = min(rows, len(sums))

    def body(number, sums):
        # The last block begins earlier, not to be shorter, and has nothing of what was added.
        start = jnp.minimum(number * rows, len(sums) - rows)
        part = lax.dynamic_slice_in_dim(by_logits, start, rows, axis=1)
        new = start + jnp.arange(rows) >= number * rows
        block = jnp.einsum(
            "cv,cd->vd", jnp.where(new, part, 0), features, preferred_element_type=jnp.float32
        )
        before = lax.dynamic_slice_in_dim(sums, start, rows)
        return lax.dynamic_update_slice_in_dim(sums, before + block, start, axis=0)

    return lax.fori_loop(0, -(-len(sums) // rows), body, sums)


def _loss_backward(options, gradients, cotangent):
    by_features, *others = (
        None if x is None else (cotangent * x).astype(x.dtype) for x in gradients
    )
    return by_features, _Head(*others), None, None


_loss.defvjp(_loss_forward, _loss_backward, symbolic_zeros=True)
