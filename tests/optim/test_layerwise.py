"""Layer scales equal timm's, recorded; a multiplier is a learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft import optim
from jaxft.models import FAMILIES

# lr_scale of timm 1.0.31, param_groups_layer_decay(layer_decay=0.75): vit_base_patch16_224 (its own
# names translated), and a 12-layer BertForSequenceClassification with the group matcher
# {stem: bert.embeddings, blocks: bert.encoder.layer.N}.
LADDER = (
    *(0.023757264018058777, 0.03167635202407837, 0.04223513603210449, 0.056313514709472656),
    *(0.07508468627929688, 0.1001129150390625, 0.13348388671875, 0.177978515625, 0.2373046875),
    *(0.31640625, 0.421875, 0.5625, 0.75, 1.0),
)
TIMM_VIT = {
    "vit/embeddings/cls_token": LADDER[0],
    "vit/embeddings/position_embeddings": LADDER[0],
    "vit/embeddings/patch_embeddings/projection/kernel": LADDER[0],
    "vit/embeddings/patch_embeddings/projection/bias": LADDER[0],
    **{
        f"vit/encoder/layer/{i}/{name}": LADDER[i + 1]
        for i in range(12)
        for name in (
            "attention/attention/query/kernel",
            "layernorm_before/scale",
            "output/dense/bias",
        )
    },
    "vit/layernorm/scale": LADDER[12],
    "vit/layernorm/bias": LADDER[12],
    "classifier/kernel": LADDER[13],
    "classifier/bias": LADDER[13],
}
TIMM_BERT = {
    "bert/embeddings/word_embeddings/embedding": LADDER[0],
    "bert/embeddings/LayerNorm/scale": LADDER[0],
    **{
        f"bert/encoder/layer/{i}/{name}": LADDER[i + 1]
        for i in range(12)
        for name in ("attention/self/query/kernel", "output/LayerNorm/bias")
    },
    "bert/pooler/dense/kernel": LADDER[13],
    "classifier/kernel": LADDER[13],
    "classifier/bias": LADDER[13],
}
# The same with layer_decay=0.65, min_scale=0.05, by depth.
LADDER_MIN = (
    *(0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05),
    *(0.07541889062500001, 0.11602906250000002, 0.17850625000000003, 0.274625, 0.4225, 0.65, 1.0),
)


def nest(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def rules_of(family):
    """Of the published size, with 12 blocks."""
    return FAMILIES[family].depth_rules(FAMILIES[family].config())


@pytest.mark.parametrize(("family", "table"), [("vit", TIMM_VIT), ("bert", TIMM_BERT)])
def test_scales_equal_those_of_timm(family, table):
    depths = optim.depths_from_rules(nest(table), rules_of(family))
    scales = optim.by_path(optim.layer_scales(depths, 0.75))
    assert scales.keys() == table.keys()
    assert scales == pytest.approx(table, rel=1e-12)


def test_the_smallest_scale_equals_that_of_timm():
    scales = optim.layer_scales(list(range(14)), 0.65, min_scale=0.05)
    assert scales == pytest.approx(LADDER_MIN, rel=1e-12)


def test_a_ladder_without_the_head_starts_at_the_last_block():
    assert optim.layer_scales([0, 1, 2, 3], 0.5, head_exempt=True) == [0.25, 0.5, 1.0, 1.0]


def test_prefixes_and_rules_give_the_same_depths():
    tree = nest(TIMM_VIT)
    blocks = [f"vit/encoder/layer/{i}" for i in range(11)]
    last = ("vit/encoder/layer/11", "vit/layernorm")
    depths = optim.depths_from_prefixes(tree, ["vit/embeddings", *blocks, last, "classifier"])
    assert depths == optim.depths_from_rules(tree, rules_of("vit"))


@pytest.mark.parametrize(
    ("prefixes", "said"),
    [
        (["embed", "head"], "'blocks/0/k' has no depth"),
        (
            ["embed", "blocks/0", "blocks/1", "head"],
            "'blocks/1' fits no parameter; nearest: 'blocks/0",
        ),
        (["embed", "block", "blocks/0", "head"], "'block' fits no parameter"),
    ],
)
def test_prefixes_must_cover_the_tree_and_fit(prefixes, said):
    tree = {"embed": 0, "blocks": [{"k": 0}], "head": 0}
    with pytest.raises(ValueError, match=said):
        optim.depths_from_prefixes(tree, prefixes)


@pytest.mark.parametrize("decay", [0.0, 1.5, -1.0])
def test_a_decay_outside_its_range_is_an_error(decay):
    with pytest.raises(ValueError, match=r"not in \(0, 1\]"):
        optim.layer_scales([0, 1], decay)


def test_a_scale_after_adam_is_the_learning_rate_of_that_parameter():
    params = {"body": jnp.array([1.0, -2.0]), "head": jnp.array([3.0])}
    grads = {"body": jnp.array([0.3, 4.0]), "head": jnp.array([-5.0])}
    scales = {"body": 0.1, "head": 1.0}
    tx = optim.fine_tuning_optimizer(1e-2, scales=scales, weight_decay=0.0)
    updates, _ = tx.update(grads, tx.init(params), params)
    for name, scale in scales.items():
        alone = optax.adam(1e-2 * scale)
        expected, _ = alone.update(grads[name], alone.init(params[name]))
        np.testing.assert_allclose(updates[name], expected, rtol=1e-6)


def test_a_vector_of_scales_is_one_rate_a_layer():
    stacked = {"kernel": jnp.ones((3, 2, 2), jnp.bfloat16), "bias": jnp.ones((3, 2), jnp.bfloat16)}
    scales = jax.tree.map(lambda _: jnp.array([0.25, 0.5, 1.0]), stacked)
    updates, _ = optim.scale_by_path(scales).update(stacked, optax.EmptyState())
    for leaf in updates.values():
        assert leaf.dtype == jnp.bfloat16
        assert leaf.reshape(3, -1)[:, 0].tolist() == [0.25, 0.5, 1.0]


def test_a_parameter_without_a_scale_is_an_error():
    with pytest.raises(ValueError, match="nothing is given for the parameter 'b'"):
        optim.scale_by_path({"a": 1.0}).update({"b": jnp.ones(1)}, optax.EmptyState())


@pytest.mark.parametrize("scale", [0.5, np.float32(0.5), jnp.array(0.5), jnp.array([0.5])])
def test_parameters_of_every_rank_keep_their_shape(scale):
    tree = {"scalar": jnp.ones(()), "bias": jnp.ones(3), "kernel": jnp.ones((3, 2))}
    tx = optim.scale_by_path(dict.fromkeys(tree, scale))
    updates, _ = tx.update(tree, optax.EmptyState())
    assert {name: leaf.shape for name, leaf in updates.items()} == {
        "scalar": (), "bias": (3,), "kernel": (3, 2),
    }  # fmt: skip
    assert all((leaf == 0.5).all() for leaf in updates.values())


@pytest.mark.parametrize(
    ("shape", "scale"), [((), (3,)), ((3, 2), (2,)), ((3, 2), (3, 2)), ((2, 3), (3,))]
)
def test_a_vector_of_scales_that_does_not_fit_the_layers_is_an_error(shape, scale):
    with pytest.raises(ValueError, match="the scale of 'a/b' has the shape") as error:
        tx = optim.scale_by_path({"a/b": jnp.ones(scale)})
        tx.update({"a": {"b": jnp.ones(shape)}}, optax.EmptyState())
    assert str(shape) in str(error.value) and str(scale) in str(error.value)
