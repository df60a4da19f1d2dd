"""What is frozen costs its forward pass and nothing else: products counted in compiled programs.

The update is that of a run (`train_step`, clipped, with the norm of the gradients as a metric) of
real blocks, compiled for shapes alone: nothing is initialised and nothing is run.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from jaxft import models, optim
from jaxft.models.cuts import param_specs
from jaxft.tasks import classification
from jaxft.training.gradient import MeanGradient
from jaxft.training.mesh import make_parallel
from jaxft.training.parallel import Parallel
from jaxft.training.step import hyperparameters, train_step
from tests.hlo import count_matmuls
from tests.models.test_parity import FAMILY_ROWS, batches

BLOCKS, FROZEN = 4, 2
# The rows' 32 and not narrower: XLA:CPU then writes products as loops and copies them into each of
# their users (62 s of CPU to compile ten blocks of width 8, 7 s for twelve of width 32).
WIDTH, WIDE = 32, 48
ROWS = 16  # two a device
TOKENS, SLOTS = 20, 2


@dataclasses.dataclass(frozen=True)
class Products:
    """Of a family's update, and which gradients are none."""

    changes: dict[str, Any]  # of the config in its row of the parity test
    block: int  # each has two gradients
    stem: int  # of the inputs: one gradient each
    head: int
    below: int  # gradients that the lowest trainable block need not hand down
    outer: int  # gradients of the last block that are outer products: of one query, no matmul
    last: int = 0  # further products of the last block


# Query, key, value, scores, context, output and two of the feed-forward; pooler and classifier.
# Query, key and value stand at the very entry of a block.
BERT = Products({"num_hidden_layers": BLOCKS}, block=8, stem=0, head=2, below=3, outer=0)
PRODUCTS = {
    "bert": BERT,
    "roberta": BERT,
    # A norm that trains comes before query, key and value, which are one product; in the last block
    # two, as few tokens look at many.
    "gpt2": Products({"n_layer": BLOCKS}, block=6, stem=0, head=1, below=0, outer=0, last=1),
    # Here, too; the head reads one token an image.
    "vit": Products({"num_hidden_layers": BLOCKS}, block=8, stem=1, head=1, below=0, outer=2),
    # Two convolutions a block, and none beside them where no stage changes the channels.
    "resnet-basic": Products(
        {"embedding_size": WIDTH, "hidden_sizes": [WIDTH], "depths": [BLOCKS],
         "stage_names": None, "out_features": None, "out_indices": None,
         "downsample_in_first_stage": False},
        block=2, stem=1, head=1, below=1, outer=0,
    ),
}  # fmt: skip
every_family = pytest.mark.parametrize("family", PRODUCTS)
# What is the step's doing and no family's: with tokens and without.
two_families = pytest.mark.parametrize("family", ["bert", "vit"])


@functools.cache
def architecture(family: str, tmp: Any) -> models.Architecture:
    config = FAMILY_ROWS[family].config
    longer = {"max_position_embeddings": TOKENS + 2, "n_positions": TOKENS}
    changes = {name: value for name, value in longer.items() if hasattr(config, name)}
    changed = {**config.to_dict(), **changes, **PRODUCTS[family].changes}
    type(config)(**changed).save_pretrained(tmp / family)
    return models.load_architecture(str(tmp / family), num_labels=3)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("compute")


def batch(family: str) -> dict[str, np.ndarray]:
    example = batches(family)[0]
    if "pixel_values" in example:
        slots: tuple[int, ...] = (ROWS,)
        inputs = {"pixel_values": np.zeros((ROWS, *example["pixel_values"].shape[1:]), np.float32)}
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
        model.whole,
        parallel.shardings(param_specs(model.whole, model.tensor_rules, fsdp=1, tensor=1)),
    )
    statistics = dict.fromkeys(model.statistics, True)
    depths = {path: depth <= frozen_blocks for path, depth in model.depths.items()}
    still = optim.align({**depths, **statistics}, abstract)
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
    all_blocks = BLOCKS * products.block + products.last
    if frozen_blocks == -1:
        return 2 * products.stem + 3 * (all_blocks + products.head) - products.outer
    training = BLOCKS - frozen_blocks
    gradients = 2 * (training * products.block + products.last) if training else 0
    total = products.stem + all_blocks + gradients + 3 * products.head
    # The lowest part that trains hands no gradient down.
    return total - (products.below + products.outer if training else 1)


@every_family
def test_the_forward_pass(family, tmp):
    model = architecture(family, tmp)
    compiled = jax.jit(model.apply).lower(model.whole, batch(family)).compile()
    products = PRODUCTS[family]
    blocks = BLOCKS * products.block + products.last
    assert count_matmuls(compiled) == products.stem + blocks + products.head


@every_family
@pytest.mark.parametrize("frozen_blocks", [-1, FROZEN, BLOCKS])
def test_frozen_blocks_cost_their_forward_pass_and_have_no_slots(family, frozen_blocks, tmp):
    state, program = update(family, tmp, ONE, frozen_blocks)
    assert count_matmuls(program) == expected(family, frozen_blocks)
    depths = architecture(family, tmp).depths
    assert set(models.by_path(state.params)) == {p for p, d in depths.items() if d > frozen_blocks}
    slots = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(slots) == 2 * sum(x.size for x in jax.tree.leaves(state.params))  # Adam's mu and nu


@two_families
def test_a_stage_that_holds_blocks_costs_what_freezing_them_costs(family, tmp):
    _, program = update(family, tmp, ONE, FROZEN, held=True)
    assert count_matmuls(program) == expected(family, FROZEN)


@two_families
def test_accumulation_repeats_the_frozen_update(family, tmp):
    _, program = update(family, tmp, ONE, FROZEN, accumulate=2)
    assert count_matmuls(program) == 2 * expected(family, FROZEN)


@two_families
@pytest.mark.parametrize("mode", ["shard", "pmap"])
def test_the_saving_survives_eight_devices(family, mode, tmp):
    _, program = update(family, tmp, make_parallel(mode), FROZEN)
    assert count_matmuls(program) == expected(family, FROZEN)
    # Rows meet in the sum of the gradients alone: no device asks another for tokens.
    text = program.as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


@two_families
def test_rematerialisation_repeats_nothing_that_is_frozen(family, tmp):
    _, program = update(family, tmp, ONE, FROZEN, remat=True)
    # How much of the trainable blocks is repeated is the compiler's affair: XLA:CPU merges most.
    repeated = count_matmuls(program) - expected(family, FROZEN)
    assert 0 < repeated <= (BLOCKS - FROZEN) * PRODUCTS[family].block


@pytest.mark.parametrize("family", [name for name in PRODUCTS if name != "resnet-basic"])
def test_the_last_block_is_computed_for_what_the_head_reads(family, tmp):
    model, inputs = architecture(family, tmp), batch(family)

    def flops(**options: Any) -> float:
        forward = functools.partial(model.apply, how=models.Pass(**options))
        return jax.jit(forward).lower(model.whole, inputs).cost_analysis()["flops"]

    hidden = jax.eval_shape(functools.partial(model.prefix, upto=0), model.whole, inputs)["hidden"]
    tokens, reads = hidden.shape[1], 1 if family == "vit" else SLOTS
    # Query and output, the feed-forward; scores and context.
    a_token = 2 * (2 * WIDTH**2 + 2 * WIDTH * WIDE) + 2 * 2 * tokens * WIDTH
    saved = flops(all_positions=True) - flops()
    assert 1 <= saved / (ROWS * (tokens - reads) * a_token) < 1.2  # norms, softmax, gelu besides
