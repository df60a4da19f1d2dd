"""Paths are the same in every container; rules are ordered, total and strict; split and merge invert."""

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxft import optim

LEAVES = {
    "blocks/0/bias": 1.0,
    "blocks/0/kernel": 2.0,
    "blocks/1/bias": 3.0,
    "blocks/1/kernel": 4.0,
    "head/kernel": 5.0,
}


def nested(blocks=lambda items: items, wrap=lambda leaf: leaf):
    """The leaves above, in a container for blocks and with a wrapper around every leaf."""

    def block(i):
        return {
            name: wrap(jnp.array([LEAVES[f"blocks/{i}/{name}"]])) for name in ("bias", "kernel")
        }

    head = {"kernel": wrap(jnp.array([LEAVES["head/kernel"]]))}
    return {"blocks": blocks([block(0), block(1)]), "head": head}


class Leafy(eqx.Module):
    bias: jax.Array | None
    kernel: jax.Array


class Model(eqx.Module):
    blocks: list[Leafy]
    head: Leafy


def equinox_model():
    tree = nested()
    head = Leafy(None, tree["head"]["kernel"])
    return Model([Leafy(block["bias"], block["kernel"]) for block in tree["blocks"]], head)


def int_keys(items):
    return dict(enumerate(items))


def str_keys(items):
    return {str(i): item for i, item in enumerate(items)}


def logically(leaf):
    return linen.LogicallyPartitioned(leaf, ("embed",))


def twice(leaf):
    return nnx.Param(linen.Partitioned(logically(leaf), ("embed",)))


CONTAINERS = {
    "list": nested(),
    "tuple": nested(tuple),
    "int keys": nested(int_keys),
    "str keys": nested(str_keys),
    "nnx state": nnx.State(nested(int_keys, nnx.Param)),
    "pure nnx dict": nnx.to_pure_dict(nnx.State(nested(int_keys, nnx.Param))),
    "frozen dict": flax.core.freeze(nested(str_keys)),
    "equinox": equinox_model(),
    "linen boxes": nested(str_keys, lambda leaf: linen.Partitioned(leaf, (None,))),
    "logical boxes": flax.core.freeze(nested(str_keys, logically)),
    "boxes in boxes": nested(list, twice),
    "bare variables": nested(list, nnx.Param),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_has_the_same_paths_and_leaves(name):
    leaves = optim.by_path(CONTAINERS[name])
    assert {path: float(leaf[0]) for path, leaf in leaves.items()} == LEAVES


@pytest.mark.parametrize("name", CONTAINERS)
def test_split_and_merge_are_inverse_and_leave_holes(name):
    tree = CONTAINERS[name]
    labels = optim.match_rules([("blocks/0/.*", "a"), (".*/bias", "b")], tree, default="c")
    parts = optim.split(tree, labels)
    assert {label: set(optim.leaf_paths(part)) for label, part in parts.items()} == {
        "a": {"blocks/0/bias", "blocks/0/kernel"},
        "b": {"blocks/1/bias"},
        "c": {"blocks/1/kernel", "head/kernel"},
    }
    whole = optim.merge(*parts.values())
    assert jax.tree.structure(whole) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(tree), strict=True))


@pytest.mark.parametrize("name", CONTAINERS)
def test_values_of_another_container_are_aligned_by_path(name):
    aligned = optim.align(dict(LEAVES), CONTAINERS[name])
    assert optim.by_path(aligned) == LEAVES


def test_an_nnx_module_and_its_state_have_the_same_paths():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert optim.leaf_paths(nnx.state(model)) == optim.leaf_paths(model) == ("bias", "kernel")


def test_a_key_named_value_is_kept_where_it_is_no_variable():
    assert optim.leaf_paths({"memory": {"key": 0, "value": 1}}) == ("memory/key", "memory/value")


def test_the_first_rule_that_matches_the_whole_path_wins():
    rules = [("blocks/0/.*", 1), (".*/kernel", 2), ("blocks/.*", 3)]
    values = optim.by_path(optim.match_rules(rules, nested()))
    assert values == {
        "blocks/0/bias": 1,
        "blocks/0/kernel": 1,
        "blocks/1/bias": 3,
        "blocks/1/kernel": 2,
        "head/kernel": 2,
    }


def test_exclude_is_the_opposite_of_select():
    chosen = optim.by_path(optim.select(nested(), [".*/bias"]))
    rest = optim.by_path(optim.exclude(nested(), [".*/bias"]))
    assert [path for path, yes in chosen.items() if yes] == ["blocks/0/bias", "blocks/1/bias"]
    assert all(chosen[path] is not rest[path] for path in chosen)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("block/0/kernel", "nearest: 'blocks/0/kernel'"),
        (r"blocks/\d+/kernels", "'blocks/"),
        ("blocks", "patterns match the whole path, so write 'blocks/.*'"),
        ("blocks/1/", "so write 'blocks/1/.*'"),
        ("zzz", "the parameters are 'blocks/0/bias' … 'head/kernel'"),
        ("(", "is not a regular expression: missing )"),
    ],
)
def test_a_pattern_without_a_match_is_an_error_that_shows_a_way_out(pattern, said):
    with pytest.raises(ValueError) as error:
        optim.select(nested(), [pattern])
    assert repr(pattern) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


BERT = {
    f"bert/{name}": 0
    for name in (
        "embeddings/word_embeddings/embedding",
        "embeddings/LayerNorm/scale",
        *(f"encoder/layer/{i}/attention/self/query/{leaf}" for i in (0, 1, 10) for leaf in
          ("kernel", "bias")),
        "encoder/layer/1/output/LayerNorm/scale",
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "said", "corrected"),
    [
        ("encoder.layer.0.*", "joined with '/' and patterns match the whole path",
         ".*/encoder/layer/0/.*"),
        ("encoder.layer.1", "joined with '/'", ".*/encoder/layer/1/.*"),
        (r"bert\.encoder\.layer\.1\..*\.weight", "called 'kernel'",
         "bert/encoder/layer/1/.*/kernel"),
        ("encoder/layer/1/.*", "match the whole path", ".*/encoder/layer/1/.*"),
        ("bert/encoder/layer/1/*", "anything is '.*'", "bert/encoder/layer/1/.*"),
        ("layer.[01].*", "joined with '/'", ".*/layer/[01]/.*"),
        ("bert.encoder.layer.0.attention.self.query.weight", "of a matrix is called 'kernel'",
         "bert/encoder/layer/0/attention/self/query/kernel"),
        (".*/query/weight", "of a matrix is called 'kernel'", ".*/query/kernel"),
        (".*/LayerNorm/weight", "of a normalisation is called 'scale'", ".*/LayerNorm/scale"),
        ("word_embeddings.weight", "of an embedding is called 'embedding'",
         ".*/word_embeddings/embedding"),
        ("query", "match the whole path", ".*/query/.*"),
    ],
)  # fmt: skip
def test_names_from_elsewhere_are_translated(pattern, said, corrected):
    with pytest.raises(ValueError) as error:
        optim.select(BERT, [pattern])
    assert said in str(error.value) and str(error.value).endswith(f"write {corrected!r}")
    chosen = optim.by_path(optim.select(BERT, [corrected]))
    assert any(chosen.values())
    assert "/1/" not in corrected or not any(yes for path, yes in chosen.items() if "/10/" in path)


def test_a_glob_is_no_regular_expression():
    with pytest.raises(ValueError, match=r"nothing to repeat .*; anything is '\.\*'"):
        optim.select(BERT, ["*.bias"])


def test_rules_for_many_models_may_miss():
    values = optim.match_rules([("decoder/.*", 1)], nested(), default=0, must_match=False)
    assert set(jax.tree.leaves(values)) == {0}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: optim.match_rules([("head/.*", 1)], nested()),
            "no rule matches .* 'blocks/0/bias'",
        ),
        (lambda: optim.select(nested(), "head/.*"), r"write \['head/\.\*'\]"),
        (
            lambda: optim.align({"head/kernels": 1}, {"head": {"kernel": 0}}),
            "nearest: 'head/kernels'",
        ),
        (lambda: optim.split(nested(), {"head": {"kernel": "a"}}), "nothing is given .* 'blocks/0"),
        (lambda: optim.merge({"a": 1, "b": 2}, {"a": None, "b": 3}), "'b' is in more than one"),
        (lambda: optim.by_path({"a/b": 1, "a": {"b": 2}}), "several leaves have the path 'a/b'"),
    ],
)
def test_what_has_no_single_meaning_is_an_error(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_split_has_the_labels_it_is_asked_for():
    parts = optim.split({"a": 1}, {"a": "train"}, names=(optim.TRAIN, optim.FROZEN))
    assert parts == {"train": {"a": 1}, "frozen": {"a": None}}


def test_gradients_are_only_taken_of_the_differentiated_part():
    tree = nested()
    parts = optim.split(tree, optim.train_labels(optim.select(tree, ["blocks/.*"])))

    def loss(train):
        leaves = jax.tree.leaves(optim.merge(train, parts["frozen"]))
        return sum(jnp.sum(leaf**2) for leaf in leaves)

    grads = jax.grad(loss)(parts["train"])
    assert {p: float(g[0]) for p, g in optim.by_path(grads).items()} == {"head/kernel": 10.0}


def test_the_table_has_a_line_a_parameter_and_a_total():
    shapes = {"a": jax.ShapeDtypeStruct((2, 500), jnp.float32), "b": jax.ShapeDtypeStruct((), int)}
    table = optim.summary(
        shapes, {"rate": {"a": 0.5, "b": 1e-5}, "frozen": {"a": True, "b": False}}
    )
    assert table.splitlines() == [
        "path   shape    size   rate  frozen",
        "a      2x500   1,000    0.5     yes",
        "b      scalar      1  1e-05      no",
        "total          1,001",
    ]
    with pytest.raises(ValueError, match="nothing is given for the parameter 'b'"):
        optim.summary(shapes, {"rate": {"a": 0.5}})


def test_decay_spares_biases_norms_and_what_is_exempt():
    tree = {
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "stack": {
            "kernel": jnp.ones((3, 2, 2)),
            "bias": jnp.ones((3, 2)),
            "scale": jnp.ones((3, 2)),
        },
        "norm": {"weight": jnp.ones(2)},
        "cls_token": jnp.ones((1, 1, 2)),
    }
    expected = {path: path.endswith("kernel") for path in optim.leaf_paths(tree)}
    assert optim.by_path(optim.decay_mask(tree)) == expected | {"cls_token": True}
    assert optim.by_path(optim.decay_mask(tree, exempt=["cls_token"])) == expected
    with pytest.raises(ValueError, match="nearest: 'cls_token'"):
        optim.decay_mask(tree, exempt=["cls_tokens"])


class Block(eqx.Module):
    dense: eqx.nn.Linear
    rms: eqx.nn.RMSNorm
    scaled: eqx.nn.LayerNorm
    conv: eqx.nn.Conv2d

    def __init__(self, key):
        self.dense = eqx.nn.Linear(4, 3, key=key)
        self.rms = eqx.nn.RMSNorm(4, use_bias=False)
        self.scaled = eqx.nn.LayerNorm(4)
        self.conv = eqx.nn.Conv2d(2, 3, 1, key=key)


class Custom(eqx.Module):
    """A norm by its class alone, with a projection inside."""

    weight: jax.Array
    inner: eqx.nn.Linear


class AdaptiveLayerNorm(Custom):
    pass


def test_a_norm_is_known_by_its_class_and_what_is_inside_it_is_not_one():
    linear = eqx.nn.Linear(2, 2, use_bias=False, key=jax.random.key(0))
    for kind, expected in ((AdaptiveLayerNorm, False), (Custom, True)):
        tree = {"a": kind(jnp.ones((3, 2)), linear)}
        mask = optim.by_path(optim.decay_mask(tree))
        assert mask == {"a/weight": expected, "a/inner/weight": True}


def test_decay_is_the_same_where_layers_are_stacked():
    keys = jax.random.split(jax.random.key(0), 5)
    one = eqx.filter(Block(keys[0]), eqx.is_array)
    stack = eqx.filter(eqx.filter_vmap(Block)(keys), eqx.is_array)
    expected = dict.fromkeys(optim.leaf_paths(one), False)
    expected |= {"dense/weight": True, "conv/weight": True}
    for tree in (stack, {**optim.by_path(stack)}):
        mask = optim.by_path(optim.decay_mask(tree))
        # Without its class, a norm without bias is known by its name alone.
        assert mask == expected | ({} if tree is stack else {"rms/weight": True})
    # (eqx.nn.Conv2d's bias is [out, 1, 1]: of one stacked layer's it has the rank of a matrix.)
    single = optim.by_path(optim.decay_mask(one))
    assert single == expected


@pytest.mark.parametrize(
    "module",
    ["norm", "norm1", "ln_2", "bn", "attention_norm", "LayerNorm", "layernorm_before", "norm_out"],
)
def test_a_stacked_weight_of_a_norm_without_bias_is_known_by_its_name(module):
    tree = {module: {"weight": jnp.ones((6, 4))}, "norm_proj": {"weight": jnp.ones((6, 4))}}
    mask = optim.by_path(optim.decay_mask(tree))
    assert mask == {f"{module}/weight": False, "norm_proj/weight": True}


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        x = linen.LayerNorm(scale_init=linen.with_partitioning(linen.initializers.ones, ("e",)))(x)
        dense = linen.Dense(
            4,
            kernel_init=linen.with_logical_partitioning(linen.initializers.ones, ("e", "m")),
            bias_init=linen.with_logical_partitioning(linen.initializers.zeros, ("m",)),
        )
        return dense(x), None


def test_boxed_parameters_have_the_paths_and_the_decay_of_bare_ones():
    stack = linen.scan(
        Dense, variable_axes={"params": 0}, split_rngs={"params": True}, length=3,
        metadata_params={linen.PARTITION_NAME: "layers"},
    )()  # fmt: skip
    boxed = stack.init(jax.random.key(0), jnp.ones((2, 4)), None)["params"]
    bare = linen.unbox(boxed)
    assert optim.leaf_paths(boxed) == optim.leaf_paths(bare)
    assert "Dense_0/kernel" in optim.leaf_paths(boxed)
    assert isinstance(boxed["Dense_0"]["kernel"], linen.Partitioned)
    for of in (optim.decay_mask, lambda tree: optim.select(tree, [".*/kernel"])):
        assert optim.by_path(of(boxed)) == optim.by_path(of(bare))
    assert optim.by_path(optim.decay_mask(boxed)) == {
        path: path.endswith("kernel") for path in optim.leaf_paths(bare)
    }
    tx = optim.fine_tuning_optimizer(
        0.1, frozen=optim.select(boxed, [".*/bias"]), scales=dict.fromkeys(optim.by_path(bare), 0.5)
    )
    updates, _ = tx.update(boxed, tx.init(boxed), boxed)
    alone, _ = tx.update(bare, tx.init(bare), bare)
    assert jax.tree.structure(updates) == jax.tree.structure(boxed)
    jax.tree.map(np.testing.assert_array_equal, linen.unbox(updates), alone)
