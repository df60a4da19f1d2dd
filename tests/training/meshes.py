"""Tiny models of sizes that eight devices divide, and some updates of each under any way to compile it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxft import optim
from jaxft.experiment.decide import frozen_blocks
from jaxft.experiment.stages import split_for
from jaxft.models import Architecture, Pass, by_path, load_architecture, move_statistics
from jaxft.models.cuts import param_specs
from jaxft.tasks import classification
from jaxft.tasks.vocabulary_loss import vocabulary_loss
from jaxft.training.gradient import MeanGradient
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs
from jaxft.training.step import TrainState, hyperparameters, train_step

ROWS, LENGTH, LABELS = 16, 16, 3
WIDTH = {"hidden_size": 32, "num_attention_heads": 8, "intermediate_size": 64}
DEEP = {"num_hidden_layers": 2, "initializer_range": 0.2}
TEXT = {"vocab_size": 64, "max_position_embeddings": 32}
# model_type -> kind of head, and config.json; with dropout, whose masks do not depend on the devices.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("sequence", {**WIDTH, **DEEP, **TEXT}),
    "llama": ("causal", {**WIDTH, **DEEP, **TEXT, "num_key_value_heads": 2, "attention_dropout": 0.1}),
    # A vocabulary that no number of devices divides, and one layer for query, key and value.
    "gpt2": (
        "causal",
        {
            "vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 8,
            "initializer_range": 0.2,
        },
    ),
    "t5": (
        "seq2seq",
        {
            "vocab_size": 64, "d_model": 32, "d_kv": 4, "d_ff": 64, "num_layers": 2, "num_heads": 8,
            "decoder_start_token_id": 0,
        },
    ),
    "vit": (
        "image",
        {**WIDTH, **DEEP, "image_size": 8, "patch_size": 2, "num_channels": 2, "hidden_dropout_prob": 0.1},
    ),
    "resnet": (
        "image",
        {
            "num_channels": 2, "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1],
            "layer_type": "basic",
        },
    ),
}  # fmt: skip

# Of the other families with rules of their own.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": (
        "sequence",
        {**WIDTH, **DEEP, **TEXT, "attention_dropout": 0.1, "mlp_dropout": 0.1, "pad_token_id": 0},
    ),
    "deberta-v2": (
        "sequence",
        {
            **WIDTH, **DEEP, **TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False, "share_att_key": True,
        },
    ),
    "distilbert": (
        "sequence",
        {
            "vocab_size": 64, "max_position_embeddings": 32, "dim": 32, "n_layers": 2, "n_heads": 8,
            "hidden_dim": 64,
        },
    ),
    "convnext": (
        "image",
        {"num_channels": 2, "num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 2},
    ),
}  # fmt: skip


class Result(NamedTuple):
    """Of some updates: their losses, and what they led to, on the host."""

    losses: list[float]
    leaves: dict[str, np.ndarray]


def architecture_of(folder: Path, config: dict[str, Any], head: str) -> Architecture:
    """A native model from a config alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    labels = 0 if head in ("causal", "masked", "seq2seq") else LABELS
    return load_architecture(str(folder), num_labels=labels, head=head)


def batch_of(head: str, seed: int) -> dict[str, np.ndarray]:
    """Two texts a row and some padding; the last two rows count for nothing."""
    rng = np.random.default_rng(seed)
    if head == "image":
        pixels = rng.normal(size=(ROWS, 8, 8, 2)).astype(np.float32)
        weight = (np.arange(ROWS) < ROWS - 2).astype(np.float32)
        labels = rng.integers(0, LABELS, ROWS).astype(np.int32)
        return {
            "pixel_values": pixels,
            "labels": labels,
            "weight": weight,
            "index": np.arange(ROWS),
        }
    segments = np.repeat([[1] * 6 + [2] * 8 + [0] * 2], ROWS, 0)
    batch = {
        "input_ids": rng.integers(4, 60, (ROWS, LENGTH)),
        "segment_ids": segments,
        "positions": np.repeat([[*range(6), *range(8), 0, 0]], ROWS, 0),
        "token_type_ids": np.zeros((ROWS, LENGTH)),
        "starts": np.repeat([[0, 6]], ROWS, 0),
    }
    shape = (ROWS, 2)
    if head in ("causal", "seq2seq"):
        shape = (ROWS, LENGTH)
    if head == "seq2seq":
        batch |= {f"decoder_{name}": batch[name] for name in ("segment_ids", "positions")}
        batch["decoder_input_ids"] = rng.integers(4, 60, shape)
    top = LABELS if shape[1] == 2 else 60
    batch |= {"labels": rng.integers(0, top, shape), "index": np.zeros(shape)}
    weight = rng.uniform(0.5, 2.0, shape) * (np.arange(ROWS) < ROWS - 2)[:, None]
    if shape[1] == LENGTH:  # what padding sees is not the same in rows that are cut
        weight = weight * (segments > 0)
    return {k: v.astype(np.int32) for k, v in batch.items()} | {"weight": weight.astype(np.float32)}


def loss(outputs: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Of classes, or of tokens."""
    if "features" not in outputs:
        return classification.loss(outputs, batch)
    given = {name: outputs.get(name) for name in ("bias", "cap")}
    labels, weight = batch["labels"], batch["weight"]
    total = vocabulary_loss(outputs["features"], outputs["unembedding"], labels, weight, **given)
    return total, weight.sum()


def program_of(
    architecture: Architecture,
    parallel: Parallel,
    *,
    below: int = -1,
    params: Any = None,
    accumulate: int = 1,
    **how: Any,
) -> tuple[TrainState, Programs]:
    """(state, step), frozen up to a depth; the state only described where there are no parameters."""
    sizes = dict(parallel.mesh.shape) if parallel.mode == "shard" and parallel.mesh else {}
    axes = {axis: sizes.get(axis, 1) for axis in ("fsdp", "tensor")}
    places = parallel.shardings(param_specs(architecture.whole, architecture.tensor_rules, **axes))
    if params is None:
        whole = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            architecture.whole,
            places,
        )
    else:
        whole = jax.device_put(params, places)
    depths = {**architecture.depths, **architecture.statistics}
    still = frozenset(path for path, depth in depths.items() if depth <= below)
    moving = frozenset(architecture.statistics) - still
    trained, frozen, stats = split_for(still, moving, whole)
    # A large eps: a key's bias has a zero gradient, whose rounding Adam would scale up to full steps.
    tx = optim.fine_tuning_optimizer(
        2e-3,
        core=optax.scale_by_adam(eps=1e-3),
        clip=1.0,
        frozen=jax.tree.map(lambda _: False, trained),
    )
    hparams = jax.tree.map(np.asarray, hyperparameters(jax.random.key(1)))
    how = {"batch_stats": bool(moving), "axis_name": parallel.axis_name, **how}
    step = functools.partial(
        train_step,
        forward=functools.partial(
            architecture.apply, how=Pass(frozen_blocks=frozen_blocks(architecture, still), **how)
        ),
        loss=loss,
        optimizer=lambda _: tx,
        gradient=MeanGradient(accumulate, parallel.axis_name),
        moved=move_statistics if moving else None,
    )
    make = parallel.abstract if params is None else parallel.init
    state = make(trained, frozen, hparams, lambda _: tx, stats)
    return state, parallel.compile_train(step, state)


def updated(
    architecture: Architecture, parallel: Parallel, steps: int, *, below: int = -1, **more: Any
) -> Result:
    """From parameters that are the same whatever the devices."""
    params = jax.tree.map(np.asarray, jax.jit(architecture.init)(jax.random.key(0)))
    state, step = program_of(architecture, parallel, below=below, params=params, **more)
    losses = []
    for seed in range(steps):
        state, metrics = step(state, parallel.put(batch_of(architecture.head, seed)))
        losses.append(parallel.unreplicate(metrics["loss"]))
    leaves = by_path(parallel.unreplicate(state.whole))
    return Result([float(x) for x in losses], {k: np.asarray(v) for k, v in leaves.items()})
