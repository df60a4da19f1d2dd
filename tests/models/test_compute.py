"""What is frozen costs its forward pass and nothing else: products counted in compiled programs.

The update is that of a run (`train_step`, clipped, with the norm of the gradients as a metric) of
twelve real blocks, compiled for shapes alone: nothing is initialised and nothing is run.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import numpy as np
import pytest

from jaxft import models, optim
from jaxft.tasks import classification
from jaxft.training.gradient import MeanGradient
from jaxft.training.parallel import Parallel, make_parallel, param_specs
from jaxft.training.step import hyperparameters, train_step
from tests.hlo import count_matmuls

BLOCKS, FROZEN = 12, 9
# Not narrower: XLA:CPU then writes products as loops and copies them into each of their users, and
# twelve blocks take minutes to compile (62 s of CPU for ten of width 8, 7 s for twelve of width 32).
WIDTH, WIDE = 32, 64
ROWS = 16  # two a device
TOKENS, SLOTS = 20, 2
PATCHES = 16

# Query, key, value, scores, context, output and two of the feed-forward. Each has two gradients.
BLOCK = 8


@dataclasses.dataclass(frozen=True)
class Products:
    """What a family has besides its blocks' products, and which gradients are none."""

    stem: int  # of the inputs: one gradient each
    head: int
    below: int  # gradients that the lowest trainable block need not hand down
    outer: int  # gradients of the last block that are outer products: of one query, no matmul


PRODUCTS = {
    # Pooler and classifier; query, key and value stand at the very entry of a block.
    "bert": Products(stem=0, head=2, below=3, outer=0),
    # A norm that trains comes before query, key and value; the head reads one token an image.
    "vit": Products(stem=1, head=1, below=0, outer=2),
}
CONFIGS = {
    "bert": {"vocab_size": 50, "max_position_embeddings": TOKENS},
    "vit": {"image_size": 16, "patch_size": 4, "num_channels": 1},
}
every_family = pytest.mark.parametrize("family", PRODUCTS)


@functools.cache
def architecture(family: str, tmp: Any) -> models.Architecture:
    config = {
        "model_type": family,
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "intermediate_size": WIDE,
        **CONFIGS[family],
    }
    (tmp / family).mkdir()
    (tmp / family / "config.json").write_text(json.dumps(config))
    return models.load_architecture(str(tmp / family), num_labels=3)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("compute")


def batch(family: str) -> dict[str, np.ndarray]:
    if family == "vit":
        slots: tuple[int, ...] = (ROWS,)
        inputs = {"pixel_values": np.zeros((ROWS, 16, 16, 1), np.float32)}
    else:
        slots = (ROWS, SLOTS)
        names = ("input_ids", "segment_ids", "positions", "token_type_ids")
        inputs = {name: np.zeros((ROWS, TOKENS), np.int32) for name in names}
        inputs["starts"] = np.zeros(slots, np.int32)
    return {**inputs, "labels": np.zeros(slots, np.int32), "weight": np.ones(slots, np.float32)}


def update(
    family: str,
    tmp: Any,
    parallel: Parallel,
    frozen_blocks: int,
    *,
    accumulate: int = 1,
    held: bool = False,
    remat: bool = False,
) -> tuple[Any, Any]:
    """(abstract state, compiled program) with the stem and blocks up to `frozen_blocks` frozen.

    `held`: they stay in the trainable tree, with slots, and the step alone leaves them as they are.
    """
    model = architecture(family, tmp)
    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        model.abstract,
        parallel.shardings(param_specs(model.abstract, model.tensor_rules, fsdp=1, tensor=1)),
    )
    still = optim.align({p: depth <= frozen_blocks for p, depth in model.depths.items()}, abstract)
    frozen = jax.tree.map(lambda is_still: is_still and not held, still)
    parts = optim.split(abstract, optim.train_labels(frozen), names=(optim.TRAIN, optim.FROZEN))
    tx = optim.fine_tuning_optimizer(1e-3, clip=1.0, frozen=frozen)
    hparams = hyperparameters(jax.random.key(0))
    state = parallel.abstract(parts[optim.TRAIN], parts[optim.FROZEN], hparams, lambda _: tx)
    step = functools.partial(
        train_step,
        forward=functools.partial(
            model.apply, how=models.Pass(frozen_blocks=frozen_blocks, remat=remat)
        ),
        loss=classification.loss,
        optimizer=lambda _: tx,
        gradient=MeanGradient(accumulate, parallel.axis_name),
        held=still if held else None,
    )
    program = parallel.compile_train(step, state)
    return state, program._program((state,), parallel.put(batch(family)))


ONE = make_parallel("jit")


def expected(family: str, frozen_blocks: int) -> int:
    """Products of an update: a frozen block's own, once; a trainable one's and two gradients each."""
    products = PRODUCTS[family]
    if frozen_blocks == -1:
        return 2 * products.stem + 3 * (BLOCKS * BLOCK + products.head) - products.outer
    training = BLOCKS - frozen_blocks
    total = products.stem + BLOCKS * BLOCK + 2 * training * BLOCK + 3 * products.head
    # The lowest part that trains hands no gradient down.
    return total - (products.below + products.outer if training else 1)


@every_family
def test_the_forward_pass(family, tmp):
    model = architecture(family, tmp)
    compiled = jax.jit(model.apply).lower(model.abstract, batch(family)).compile()
    products = PRODUCTS[family]
    assert count_matmuls(compiled) == products.stem + BLOCKS * BLOCK + products.head


@every_family
@pytest.mark.parametrize("frozen_blocks", [-1, FROZEN, BLOCKS])
def test_frozen_blocks_cost_their_forward_pass_and_have_no_slots(family, frozen_blocks, tmp):
    state, program = update(family, tmp, ONE, frozen_blocks)
    assert count_matmuls(program) == expected(family, frozen_blocks)
    depths = architecture(family, tmp).depths
    assert set(models.by_path(state.params)) == {p for p, d in depths.items() if d > frozen_blocks}
    slots = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(slots) == 2 * sum(x.size for x in jax.tree.leaves(state.params))  # Adam's mu and nu


@every_family
def test_a_stage_that_holds_blocks_costs_what_freezing_them_costs(family, tmp):
    _, program = update(family, tmp, ONE, FROZEN, held=True)
    assert count_matmuls(program) == expected(family, FROZEN)


@every_family
def test_accumulation_repeats_the_frozen_update(family, tmp):
    _, program = update(family, tmp, ONE, FROZEN, accumulate=2)
    assert count_matmuls(program) == 2 * expected(family, FROZEN)


@every_family
@pytest.mark.parametrize("mode", ["shard", "pmap"])
def test_the_saving_survives_eight_devices(family, mode, tmp):
    _, program = update(family, tmp, make_parallel(mode), FROZEN)
    assert count_matmuls(program) == expected(family, FROZEN)
    # Rows meet in the sum of the gradients alone: no device asks another for tokens.
    text = program.as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


@every_family
def test_rematerialisation_repeats_nothing_that_is_frozen(family, tmp):
    _, program = update(family, tmp, ONE, FROZEN, remat=True)
    # How much of the trainable blocks is repeated is the compiler's affair: XLA:CPU merges most.
    repeated = count_matmuls(program) - expected(family, FROZEN)
    assert 0 < repeated <= (BLOCKS - FROZEN) * BLOCK


@every_family
def test_the_last_block_is_computed_for_what_the_head_reads(family, tmp):
    model, inputs = architecture(family, tmp), batch(family)

    def flops(**options: Any) -> float:
        forward = functools.partial(model.apply, how=models.Pass(**options))
        return jax.jit(forward).lower(model.abstract, inputs).cost_analysis()["flops"]

    tokens, reads = (TOKENS, SLOTS) if family == "bert" else (PATCHES + 1, 1)
    # Query and output, the feed-forward; scores and context.
    a_token = 2 * (2 * WIDTH**2 + 2 * WIDTH * WIDE) + 2 * 2 * tokens * WIDTH
    saved = flops(all_positions=True) - flops()
    assert 1 <= saved / (ROWS * (tokens - reads) * a_token) < 1.2  # norms, softmax, gelu besides
