"""Paths are the same in every container; rules are ordered, total and strict; split and merge invert."""

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

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


CONTAINERS = {
    "list": nested(),
    "tuple": nested(tuple),
    "int keys": nested(int_keys),
    "str keys": nested(str_keys),
    "nnx state": nnx.State(nested(int_keys, nnx.Param)),
    "pure nnx dict": nnx.to_pure_dict(nnx.State(nested(int_keys, nnx.Param))),
    "frozen dict": flax.core.freeze(nested(str_keys)),
    "equinox": equinox_model(),
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
