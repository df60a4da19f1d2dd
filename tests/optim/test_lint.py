"""Every misuse is found, named by its path and with its fix; what is right has no finding."""

import jax.numpy as jnp
import optax
import pytest

from jaxft import optim
from jaxft.optim import probe
from jaxft.optim.lint import FIXES


def params():
    block = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    return {
        "embed": {"embedding": jnp.ones((5, 2))},
        "blocks": [dict(block), dict(block)],
        "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    }


# Each leaf is an array of its own: the block's arrays above stand twice in the tree, hence tied.
PARAMS = optim.path_map(lambda path, leaf: jnp.array(leaf), params())
FROZEN = optim.select(PARAMS, ["embed/.*", "blocks/0/.*"])
DEPTHS = optim.depths_from_prefixes(PARAMS, ["embed", "blocks/0", "blocks/1", "head"])
SCALES = optim.layer_scales(DEPTHS, 0.5)
PLAN = optim.top_down(range(4), every=10)
COSINE = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 5, 100)
ADAMW = optax.adamw(1e-3, weight_decay=0.1)


def noisy():
    """Records the norm of whatever reaches it, in its state."""

    def init(params):
        return jnp.zeros(())

    def update(updates, state, params=None):
        return updates, optax.tree.norm(updates)

    return optax.GradientTransformation(init, update)


MISUSES = {
    "clip before the mask": (
        dict(
            tx=optax.chain(optax.clip_by_global_norm(1.0), optim.freeze(ADAMW, FROZEN)),
            frozen=FROZEN,
        ),
        ("clip-before-mask", "blocks/0/bias"),
    ),
    "clip before the mask, with warm-up": (
        dict(
            tx=optax.chain(optim.clip_by_norm(1.0), optim.freeze(optax.adam(COSINE), FROZEN)),
            frozen=FROZEN,
        ),
        ("clip-before-mask", "blocks/0/bias"),
    ),
    "norm of all gradients in the optimizer": (
        dict(tx=optax.chain(noisy(), optim.freeze(ADAMW, FROZEN)), frozen=FROZEN),
        ("norm-over-frozen", "blocks/0/bias"),
    ),
    "norm of all gradients as a metric": (
        dict(tx=optim.freeze(ADAMW, FROZEN), frozen=FROZEN, metrics=optax.tree.norm),
        ("norm-over-frozen", "blocks/0/bias"),
    ),
    "a pattern without a match": (
        dict(tx=ADAMW, patterns=["embed/.*", "block/0/.*"]),
        ("no-match", "block/0/.*"),
    ),
    "decay on frozen parameters": (
        dict(tx=optax.chain(optax.freeze(FROZEN), ADAMW), frozen=FROZEN),
        ("decay-on-frozen", "blocks/0/bias"),
    ),
    "frozen only in intention": (
        dict(tx=optax.sgd(0.1), frozen=FROZEN),
        ("frozen-moves", "blocks/0/bias"),
    ),
    "slots for frozen parameters": (
        dict(tx=optax.chain(optax.adam(0.1), optax.freeze(FROZEN)), frozen=FROZEN),
        ("frozen-slots", "blocks/0/bias"),
    ),
    "tied and split, one half frozen": (
        dict(
            tx=optim.freeze(ADAMW, FROZEN), frozen=FROZEN, tied=[("embed/embedding", "head/kernel")]
        ),
        ("tied-split", "head/kernel"),
    ),
    "tied and split over two rates": (
        dict(
            tx=optim.fine_tuning_optimizer(1e-3, scales=SCALES),
            tied=[("embed/embedding", "head/kernel")],
        ),
        ("tied-split", "head/kernel"),
    ),
    "tied by being one array": (
        dict(
            tx=optim.fine_tuning_optimizer(1e-3, scales={"a": 1.0, "b": 0.5}),
            params=dict.fromkeys("ab", jnp.ones((2, 2))),
        ),
        ("tied-split", "b"),
    ),
    "scales before Adam, meant": (
        dict(tx=optax.chain(optim.scale_by_path(SCALES), optax.adam(1e-3)), scales=SCALES),
        ("scale-before-adam", "embed/embedding"),
    ),
    "scales before Adam, guessed": (
        dict(tx=optax.chain(optim.scale_by_path(SCALES), optax.adam(COSINE))),
        ("scale-before-adam", "blocks/1/bias"),
    ),
    "a schedule that ends too early": (
        dict(tx=ADAMW, plan=PLAN, groups=DEPTHS, schedule=optax.linear_schedule(1e-3, 0.0, 20)),
        ("schedule-ends", "'1'"),
    ),
    "a group that no stage unfreezes": (
        dict(tx=ADAMW, plan=optim.top_down([1, 2, 3], 5), groups=DEPTHS),
        ("never-trains", "embed/embedding"),
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_found_and_named_with_its_fix(name):
    arguments, (code, path) = MISUSES[name]
    arguments = {"params": PARAMS, **arguments}
    findings = optim.lint(arguments.pop("tx"), arguments.pop("params"), **arguments)
    by_code = {finding.code: finding for finding in findings}
    assert code in by_code, findings
    finding = by_code[code]
    assert finding.path == path or finding.path in path
    assert path.strip("'") in str(finding) and FIXES[code] in str(finding)
    assert "\n" not in str(finding)


RIGHT = {
    "adamw": dict(tx=ADAMW),
    "frozen": dict(tx=optim.freeze(ADAMW, FROZEN), frozen=FROZEN),
    "lion": dict(tx=optax.lion(1e-3)),
    "adafactor": dict(tx=optax.adafactor(1e-3)),
    "two betas": dict(
        tx=optax.multi_transform({0: optax.adam(0.1, b1=0.5), 1: optax.adam(0.1)}, FROZEN)
    ),
    "everything": dict(
        tx=optim.fine_tuning_optimizer(COSINE, frozen=FROZEN, scales=SCALES, clip=1.0),
        frozen=FROZEN,
        scales=SCALES,
        patterns=["embed/.*", r"blocks/\d/kernel"],
        metrics=lambda grads: optax.tree.norm(
            optim.split(grads, optim.train_labels(FROZEN))["train"]
        ),
    ),
    "unfreezing": dict(
        tx=optim.fine_tuning_optimizer(COSINE, plan=PLAN, groups=DEPTHS, clip=1.0),
        plan=PLAN,
        groups=DEPTHS,
        schedule=COSINE,
    ),
    "frozen parameters outside every stage": dict(
        tx=optim.fine_tuning_optimizer(
            COSINE, frozen=FROZEN, plan=optim.lp_ft([2, 3], 5), groups=DEPTHS
        ),
        frozen=FROZEN,
        plan=optim.lp_ft([2, 3], 5),
        groups=DEPTHS,
    ),
    "tied in the same group": dict(tx=ADAMW, tied=[("embed/embedding", "head/kernel")]),
    "average of the trainable part": dict(
        tx=optim.freeze(optax.chain(ADAMW, optim.weight_ema(0.9)), FROZEN), frozen=FROZEN
    ),
    "l2sp": dict(tx=optim.fine_tuning_optimizer(1e-3, decay=optim.l2sp(0.1))),
    "sam": dict(tx=optim.sam(optax.adam(1e-3), 0.05, frozen=FROZEN), frozen=FROZEN),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_has_no_finding(name):
    arguments = dict(RIGHT[name])
    assert optim.lint(arguments.pop("tx"), PARAMS, **arguments) == []


def test_rates_of_a_stack_fit_the_stand_ins():
    stacked = {"stack": {"kernel": jnp.ones((12, 3, 4))}, "head": {"kernel": jnp.ones((4, 2))}}
    scales = {"stack/kernel": optim.stacked_scales(12, 0.8), "head/kernel": 1.0}
    tx = optim.fine_tuning_optimizer(1e-3, scales=scales, clip=1.0)
    assert optim.lint(tx, stacked, scales=scales) == []


def test_paths_that_end_alike_are_not_confused():
    tree = {"head": {"kernel": jnp.ones((2, 2))}, "aux": {"head": {"kernel": jnp.ones((2, 2))}}}
    frozen = optim.select(tree, ["head/kernel"])
    assert optim.lint(optim.freeze(ADAMW, frozen), tree, frozen=frozen) == []
    frozen = optim.select(tree, ["aux/head/kernel"])
    assert optim.lint(optim.freeze(ADAMW, frozen), tree, frozen=frozen) == []
    (finding,) = optim.lint(optax.chain(optax.adam(0.1), optax.freeze(frozen)), tree, frozen=frozen)
    assert (finding.code, finding.path) == ("frozen-slots", "aux/head/kernel")


def test_parameters_named_like_slots_are_not_confused():
    tree = {"kernel": jnp.ones(2), "mu": {"kernel": jnp.full(2, 2.0)}}
    slots = probe.slots(optax.adam(0.1).init(tree), optim.leaf_paths(tree))
    assert {kind: sorted(slot) for kind, slot in slots.items()} == {
        "0/mu": ["kernel", "mu/kernel"], "0/nu": ["kernel", "mu/kernel"],
    }  # fmt: skip
