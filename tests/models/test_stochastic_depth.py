"""Stochastic depth: what is left out of which example, in every family, and never unless asked for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft import models, train
from jaxft.models import Pass, vocabulary
from jaxft.models.family import Context
from jaxft.models.layers import seeds
from jaxft.models.layers.stochastic_depth import (
    StochasticDepth,
    left_out,
    odds,
    rising,
    whole,
)
from tests import tiny
from tests.models.native_rows import LABELS, ROWS
from tests.models.test_native import OUTPUTS, compiled, packed
from tests.models.test_parity import FAMILY_ROWS
from tests.worlds import arguments, assert_same_weights, killed_at

SEED = seeds.seed_of(jax.random.key(0), 1)
# One row a family. Of timm's ResNet the layers are those of the other.
FAMILIES = [name for name in ROWS if "," not in name and "without" not in name]
FAMILIES += ["gpt2", "resnet"]
FAST = ("siglip",)


def test_whole_images_are_left_out_and_the_others_scaled():
    x = jnp.arange(1.0, 1 + 400 * 6).reshape(400, 2, 3)
    out = np.asarray(left_out(x, seed=SEED, odds=odds(0.3), segments=None))
    kept = out.reshape(400, -1).any(1)
    np.testing.assert_allclose(out[kept], np.asarray(x)[kept] / 0.7, rtol=1e-6)
    assert not out[~kept].any() and 0.6 < kept.mean() < 0.8


def test_each_text_of_a_row_draws_for_itself_and_all_of_its_tokens_alike():
    segments = jnp.repeat(jnp.arange(1, 6), 4)[None] + jnp.zeros((200, 1), jnp.int32)
    x = jnp.ones((200, 20, 3), jnp.bfloat16)
    out = np.asarray(left_out(x, seed=SEED, odds=odds(0.5), segments=segments).astype(jnp.float32))
    texts = out.reshape(200, 5, 12)
    assert (texts == texts[..., :1]).all() and set(np.unique(texts)) == {0.0, 2.0}
    # No two texts of a row, nor the same of two rows, agree more than chance has it.
    kept = texts[..., 0] > 0
    assert np.abs(np.corrcoef(kept.T) - np.eye(5)).max() < 0.25
    assert 0.45 < kept.mean() < 0.55 and 0.4 < (kept[1:] == kept[:-1]).mean() < 0.6
    # Where only some tokens are computed, these have the draws of their texts.
    context = Context(reads=jnp.array([[9, 0]] * 200), depth=StochasticDepth(SEED, odds(0.5)))
    both, alone = context.branches(2, segments)
    narrow = np.asarray(both(x[:, :2])[..., 0].astype(jnp.float32))
    wide = dataclasses.replace(context, reads=None).branches(2, segments)[0](x)
    np.testing.assert_array_equal(narrow, np.asarray(wide.astype(jnp.float32))[:, [9, 0], 0])
    assert (np.asarray(alone(x[:, :2])[..., 0].astype(jnp.float32)) != narrow).any()


def test_the_mean_is_that_of_the_whole_and_a_sharded_array_draws_the_same():
    keys = jax.vmap(lambda n: seeds.seed_of(jax.random.key(1), n))(jnp.arange(4000))
    x = jnp.array([[1.0], [-3.0]])
    draws = jax.vmap(lambda seed: left_out(x, seed=seed, odds=odds(0.2), segments=None))(keys)
    np.testing.assert_allclose(draws.mean(0), x, rtol=0.03)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    x = jnp.ones((8, 4, 2))
    run = jax.jit(lambda x: left_out(x, seed=SEED, odds=odds(0.5), segments=None))
    there = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_array_equal(run(there), run(x))
    assert "all-" not in run.lower(there).compile().as_text()


def test_rates_rise_to_that_of_the_last_block():
    assert rising(0.3, 4) == pytest.approx((0, 0.1, 0.2, 0.3)) and rising(0.2, 1) == (0.2,)
    assert Context().branches(2) == (whole, whole)


def config_of(name, folder, **more):
    config = ROWS[name].build().config if name in ROWS else FAMILY_ROWS[name].config
    config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return str(folder)


def load(name, folder, **options):
    head = ROWS[name].head if name in ROWS else None
    labels = OUTPUTS.get(head, LABELS)
    directory = config_of(name, folder)
    return models.load_architecture(directory, num_labels=labels, head=head, **options)


def batch_of(name):
    random = np.random.default_rng(0)
    return (ROWS[name].inputs(random) if name in ROWS else FAMILY_ROWS[name].batch(random))[0]


def summed(architecture, batch, how):
    """(params, key) -> a sum of squares of the outputs."""

    def total(params, key):
        outputs = architecture.apply(params, batch, key, how)
        logits = outputs["logits"] if "logits" in outputs else vocabulary.logits(outputs)
        return jnp.sum(logits**2)

    return total


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_nothing_of_a_block_that_is_left_out_learns(name, tmp_path):
    """So every branch of every family is one that can be left out; kernels beside branches do learn."""
    architecture = load(name, tmp_path)
    params = architecture.init(jax.random.key(3))
    batch, depths = batch_of(name), architecture.depths
    never = dataclasses.replace(architecture, left_out=(1 - 1e-9,) * architecture.num_blocks)
    gradients = {}
    for which, model in (("all", architecture), ("none", never)):
        found = compiled(jax.grad(summed(model, batch, Pass()), allow_int=True))
        gradients[which] = models.by_path(found(params, jax.random.key(0)))
    inside = [
        path
        for path, depth in depths.items()
        if 1 <= depth <= architecture.num_blocks and path.endswith("kernel")
        and not any(word in path for word in ("shortcut", "downsampl"))
    ]  # fmt: skip
    assert len(inside) > 3
    for path in inside:
        assert not np.asarray(gradients["none"][path]).any(), path
    # Softmax's gradient may be exactly 0 where a text has one token; of most it is not.
    assert np.mean([np.asarray(gradients["all"][p]).any() for p in inside]) > 0.8
    heads = [path for path, depth in depths.items() if depth > architecture.num_blocks]
    assert not heads or any(np.asarray(gradients["none"][path]).any() for path in heads)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    return tiny.bert(folder / "bert", dropout=0.0)


def test_only_training_above_what_is_frozen_leaves_out(bert):
    plain = models.load_architecture(bert, num_labels=3)
    deep = models.load_architecture(bert, num_labels=3, stochastic_depth=0.5)
    assert plain.left_out == (0, 0) and deep.left_out == (0, 0.5)
    params = plain.init(jax.random.key(0))
    batch = packed(dict(ROWS["bert"].inputs(np.random.default_rng(0))[0]))
    batch["token_type_ids"] = batch["token_type_ids"] * 0
    keys = jax.random.split(jax.random.key(5), 12)

    def logits(architecture, key, **how):
        run = lambda params, key: architecture.apply(params, batch, key, Pass(**how))  # noqa: E731
        return np.asarray(compiled(run)(params, key)["logits"])

    whole = logits(plain, None)
    np.testing.assert_array_equal(logits(deep, None), whole)
    np.testing.assert_array_equal(logits(deep, keys[0], frozen_blocks=2), whole)
    run = compiled(jax.vmap(lambda key: deep.apply(params, batch, key)["logits"]))
    found = np.asarray(run(keys))
    # Two branches, each there or not, and which is not the same for the texts of a row.
    texts = [np.unique(found[:, 0, slot], axis=0, return_inverse=True) for slot in (0, 1)]
    assert all(1 < len(outcomes) <= 4 for outcomes, _ in texts)
    assert (texts[0][1] != texts[1][1]).any() and not (found[:, 0] == whole[0]).all((1, 2)).any()


def test_without_it_the_program_is_the_one_that_there_was(bert):
    plain = models.load_architecture(bert, num_labels=3)
    none = models.load_architecture(bert, num_labels=3, stochastic_depth=0.0)
    params, key = plain.init(jax.random.key(0)), jax.random.key(1)
    batch = packed(dict(ROWS["bert"].inputs(np.random.default_rng(0))[0]))
    texts = [
        str(jax.make_jaxpr(summed(architecture, batch, Pass()))(params, key))
        for architecture in (plain, none)
    ]
    assert texts[0] == texts[1]


def test_a_pass_is_known_to_draw_without_being_computed(bert):
    batch = dict(ROWS["bert"].inputs(np.random.default_rng(0))[0])
    found = {}
    for dropout, depth in ((0.0, 0.0), (0.1, 0.0), (0.0, 0.1)):
        architecture = models.load_architecture(
            bert, num_labels=3, dropout=dropout, stochastic_depth=depth
        )
        found[dropout, depth] = [models.draws(architecture, batch, n) for n in (-1, 1, 2)]
    # The head has dropout of its own, and no branches.
    assert found == {
        (0.0, 0.0): [False] * 3, (0.1, 0.0): [True] * 3, (0.0, 0.1): [True, True, False],
    }  # fmt: skip


def test_rates_of_checkpoints_are_kept_as_transformers_has_them(tmp_path):
    convnext = load("convnext", tmp_path / "c")
    expected = np.linspace(0, 0.3, convnext.num_blocks)
    np.testing.assert_allclose(convnext.left_out, expected)
    assert load("convnext", tmp_path / "c", stochastic_depth=0.0).left_out == (0.0,) * len(expected)
    dinov2 = load("dinov2", tmp_path / "d", dropout=0.1)
    assert dinov2.left_out == (0.3,) * dinov2.num_blocks
    assert load("dinov2", tmp_path / "d", stochastic_depth=0.1).left_out[-1] == 0.1


def test_models_that_leave_nothing_out_say_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vgg11", "num_classes": 3}))
    for rate in (None, 0.0):
        found = models.load_architecture(str(tmp_path), num_labels=3, stochastic_depth=rate)
        assert not any(found.left_out)
    with pytest.raises(ValueError, match="stochastic_depth=0.1 .* 'vgg' has none") as error:
        models.load_architecture(str(tmp_path), num_labels=3, stochastic_depth=0.1)
    assert "\n" not in str(error.value)
    directory = config_of("convnext", tmp_path / "c")
    with pytest.raises(ValueError, match="dropout=0.1 is not for 'convnext'.*stochastic_depth"):
        models.load_architecture(directory, num_labels=3, dropout=0.1)


@pytest.mark.slow
def test_a_run_goes_on_bitwise(world, tmp_path):
    flags = ("--config.model.stochastic_depth=0.5", "--config.train.r_drop=0.5")
    for name in ("whole", "stopped"):
        argv = arguments(world, tmp_path / name, *flags, model="bert")
        if name == "stopped":
            killed_at(6, argv)
        assert train.main(argv) == 0
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")
