"""What the head would read after each block of a bridged module; see models/features.py."""

import jax
import jax.numpy as jnp
import torch

from jaxft.models.bridge.architecture import BridgedArchitecture
from jaxft.models.bridge.hidden import Output, averaged, batch_first, block_modules, watched
from jaxft.models.family import Batch, TextLimits
from jaxft.models.tree import Params

# Of the largest gradient: what is below is of a token that the head does not read.
_READ = 1e-4


def block_features(
    architecture: BridgedArchitecture, params: Params, batch: Batch
) -> tuple[jax.Array, ...]:
    """One fp32 array a block, [R, 1, D] of text rows or [B, D] of images.

    Which tokens the head reads (the first, the last, all) is asked of the module itself: those from whose
    state after the last block its logits have a gradient. These are averaged, and maps over their pixels.

    Raises:
        ValueError: the module cannot be traced, or a block gives no such state; one line.
    """
    texts = architecture.inputs == "text"
    if texts and batch["starts"].shape[1] > 1:
        raise ValueError(
            f"an example has {batch['starts'].shape[1]} texts, and hidden states of a bridged module are "
            "read of examples of one; leave it out"
        )
    rows, length = batch["input_ids" if texts else "pixel_values"].shape[:2]
    if isinstance(limits := architecture.limits, TextLimits):
        length = min(length, limits.positions)  # what the module is given of a row
    # Where there are as many, nothing tells the axes of a state [T, B, D] from those of [B, T, D].
    spare = 1 if texts and rows == length else 0
    batch = {name: jnp.concatenate([x, x[:spare]]) for name, x in batch.items()}
    present = (batch["segment_ids"][:, :length] > 0).astype(jnp.float32) if texts else None
    states, read = _states(architecture, params, batch, rows + spare)
    found = []
    for depth, state in enumerate(states, start=1):
        fits = read is not None and state.ndim == 3 and read.shape[1] == state.shape[1]
        pooled = averaged(state, read if fits else present, _widths(architecture, depth))[:rows]
        found.append(pooled[:, None] if texts else pooled)
    return tuple(found)


def _states(
    architecture: BridgedArchitecture, params: Params, batch: Batch, rows: int
) -> tuple[list[jax.Array], jax.Array | None]:
    """(the state [B, ...] after each block, which tokens [B, T] of the last one the head reads, or None)."""
    count, modules = architecture.num_blocks, _blocks(architecture)
    given: dict[int, Output] = {}

    def run(
        params: Params, batch: Batch, added: tuple[Output, jax.Array] | None = None
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        with watched(architecture.built.module, modules, added) as states:
            logits = architecture.apply(params, batch)["logits"]
        given.update({depth: output for depth, (output, _) in states.by_depth.items()})
        return logits, {depth: state for depth, (_, state) in states.by_depth.items()}

    def value(added: jax.Array) -> jax.Array:
        logits, _ = run(jax.lax.stop_gradient(params), batch, (given[count], added))
        return (logits * jnp.cos(jnp.arange(logits.shape[-1]))).sum()

    last = jax.eval_shape(run, params, batch)[1].get(count)
    for depth in range(1, count + 1):
        if depth not in given:
            raise ValueError(
                f"block {depth} of {architecture.exports} gives no hidden state to probe; leave it out"
            )
    assert last is not None
    read = None
    if last.ndim == 3:
        gradient = jax.lax.stop_gradient(jax.grad(value)(jnp.zeros(last.shape, last.dtype)))
        read = _tokens_read(batch_first(gradient, rows, given[count].name), batch)
    _, states = run(params, batch)
    return [batch_first(states[d], rows, given[d].name) for d in range(1, count + 1)], read


def _blocks(architecture: BridgedArchitecture) -> dict[int, list[str]]:
    """Names of modules by the depth of a block."""
    depths = {
        path.replace("/", "."): depth
        for path, depth in (architecture.depths | architecture.statistics).items()
    }
    found = block_modules(architecture.built.module, depths)
    return {depth: found.get(depth, []) for depth in range(1, architecture.num_blocks + 1)}


def _tokens_read(gradient: jax.Array, batch: Batch) -> jax.Array:
    """Which tokens [B, T] have a gradient [B, T, D]; where none has, as with a head of zeros, all that there
    are."""
    size = jnp.linalg.norm(gradient.astype(jnp.float32), axis=-1)
    most = size.max(1, keepdims=True)
    segments = batch.get("segment_ids")
    there = size >= 0 if segments is None or segments.shape != size.shape else segments > 0
    return jnp.where(most > 0, size > _READ * most, there).astype(jnp.float32)


def _widths(architecture: BridgedArchitecture, depth: int) -> set[int]:
    """Lengths of the vectors among a depth's tensors."""
    of = architecture.depths | architecture.statistics
    tensors: dict[str, torch.Tensor] = {
        **architecture.built.parameters, **architecture.built.statistics
    }  # fmt: skip
    return {
        x.shape[0]
        for name, x in tensors.items()
        if x.ndim == 1 and of[name.replace(".", "/")] == depth
    }
