"""Nothing is promoted that the code does not say: dtypes in models and losses, ranks outside of models.

Traced only, nothing is compiled. Strict for dtypes is what is ours: optax adds integers to floats. Ranks
must agree in losses, predictions, gradients and the sums of batch norms; layers do broadcast their [D].
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import models, optim
from jaxft.models import Pass, move_statistics
from jaxft.models.layers import ops, seeds
from jaxft.models.layers.batch_norm import Moments
from jaxft.tasks.table import TASKS
from jaxft.training.gradient import MeanGradient
from tests.models.test_parity import FAMILY_ROWS, batches, image_batch

LABELS = 3
SMOOTHING = 0.1


# Whose batches `with_targets` makes; those of BERT alone are traced for the tasks after the fourth.
TRACED = (
    "text_classification", "image_classification", "text_regression", "token_classification",
    "question_answering", "multiple_choice", "embedding",
)  # fmt: skip


def fits(family: str, task: str) -> bool:
    if task in TRACED[4:]:
        return family == "bert"
    row = FAMILY_ROWS[family]
    if task == "token_classification":
        return row.token is not None
    return (TASKS[task].inputs == "image") == (row.batch is image_batch)


PAIRS = [(family, task) for family in FAMILY_ROWS for task in TRACED if fits(family, task)]


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def with_targets(task: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a batch of that task: dtypes and shapes are those of the loader."""
    tokens = inputs["input_ids"].shape if "input_ids" in inputs else None
    slots = inputs["starts"].shape if tokens else (len(inputs["pixel_values"]),)
    targets = tokens if task == "token_classification" else slots
    kind = np.float32 if task in ("text_regression", "embedding") else np.int32
    words = {"words": np.zeros(tokens, np.int32)} if task == "token_classification" else {}
    if task == "question_answering":
        words = dict.fromkeys(("begins", "ends"), np.zeros(tokens, np.int32))
        words |= dict.fromkeys(("first", "last", "window"), np.zeros(slots, np.int32))
    return {
        **inputs,
        **words,
        "index": np.zeros(slots, np.int32),
        "labels": np.zeros(targets, kind),
        "weight": np.ones(targets, np.float32),
    }


@pytest.mark.parametrize(("family", "task"), PAIRS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_dtype_is_promoted_from_the_inputs_to_the_gradient(family, task, dtype, tmp_path):
    """With dropout, batch statistics that train, and a microbatch for each of the three rows."""
    FAMILY_ROWS[family].config.save_pretrained(tmp_path)
    model = models.load_architecture(
        str(tmp_path), num_labels=LABELS, head=TASKS[task].head,
        dropout=0.1 if models.FAMILIES[family.partition("-")[0]].dropouts else None,
    )  # fmt: skip
    trainable = optim.path_map(lambda path, _: path in model.depths, model.whole)
    parts = optim.split(model.whole, trainable, names=(True, False))
    batch = abstract(with_targets(task, batches(family)[0]))
    key = jax.eval_shape(lambda: jax.random.key(0))

    def update(params: Any, statistics: Any, batch: Any, key: jax.Array) -> Any:
        def loss_sum(params: Any, part: Any, key: jax.Array) -> Any:
            whole = optim.merge(params, statistics)
            outputs = model.apply(
                whole, part, key, Pass(dtype=dtype, batch_stats=bool(model.statistics))
            )
            total, weight = TASKS[task].loss(outputs, part, SMOOTHING)
            return total, (weight, outputs.get("moments", {}))

        found = MeanGradient(3)(loss_sum, params, batch, key)
        moved = move_statistics(statistics, found.kept)
        whole = optim.merge(params, moved)
        evaluated = model.apply(whole, batch, None, Pass(dtype=dtype))
        return found, moved, TASKS[task].predictions(evaluated, batch)

    with jax.numpy_dtype_promotion("strict"):
        found, moved, predictions = jax.eval_shape(update, parts[True], parts[False], batch, key)
    assert jax.tree.map(jnp.dtype, found.grads) == jax.tree.map(jnp.dtype, parts[True])
    assert jax.tree.map(jnp.dtype, moved) == jax.tree.map(jnp.dtype, parts[False])
    assert {x.dtype for x in jax.tree.leaves(predictions)} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }


@pytest.mark.parametrize("task", TRACED[:4])
def test_no_rank_is_promoted_from_the_logits_to_the_gradient(task):
    """Of a model that is one product, so that all that is traced is the task's and the step's."""
    family = "vit" if TASKS[task].inputs == "image" else "bert"
    batch = with_targets(task, batches(family)[0])
    outputs = 1 if task == "text_regression" else LABELS
    batch["features"] = np.zeros((*batch["labels"].shape, 4), np.float32)
    params = {"kernel": np.zeros((4, outputs), np.float32)}

    def loss_sum(params: Any, part: Any, key: jax.Array) -> Any:
        logits = {"logits": part["features"] @ params["kernel"]}
        total, weight = TASKS[task].loss(logits, part, SMOOTHING)
        return total, (weight, {})

    def update(params: Any, batch: Any, key: jax.Array) -> Any:
        found = MeanGradient(3)(loss_sum, params, batch, key)
        logits = {"logits": batch["features"] @ params["kernel"]}
        return found.grads, TASKS[task].predictions(logits, batch)

    with jax.numpy_rank_promotion("raise"):
        grads, _ = jax.eval_shape(update, params, batch, jax.random.key(0))
    assert grads["kernel"].shape == (4, outputs)


MOMENTS = Moments(jnp.zeros(()), jnp.zeros(5), jnp.zeros(5))
STATISTICS = {"running_mean": jnp.zeros(5), "num_batches_tracked": jnp.zeros((), jnp.int32)}
RANKS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "the mask of packed examples": (ops.segment_mask, (jnp.zeros((2, 3)), jnp.zeros((2, 7)))),
    "what a head reads": (ops.take, (jnp.zeros((2, 7, 4)), jnp.zeros((2, 3), jnp.int32))),
    "the bits of dropout": (
        lambda seed: seeds.hash_bits((2, 7, 4), seed), (jnp.zeros(2, jnp.uint32),)
    ),
    "the moved statistics": (move_statistics, ({"norm": STATISTICS}, {"norm": MOMENTS})),
}  # fmt: skip


@pytest.mark.parametrize("what", RANKS)
def test_no_rank_is_promoted_in_packing_and_in_what_is_drawn_and_kept(what):
    function, given = RANKS[what]
    with jax.numpy_rank_promotion("raise"):
        assert jax.tree.leaves(jax.eval_shape(function, *given))


def test_the_switches_are_seen():
    """A promotion of each kind is an error where it is looked for."""
    short, long = jnp.zeros(3), jnp.zeros((2, 3))
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank"):
        jax.eval_shape(jnp.add, short, long)
    with jax.numpy_dtype_promotion("strict"), pytest.raises(jax.dtypes.TypePromotionError):
        jax.eval_shape(jnp.add, short, short.astype(jnp.int32))
