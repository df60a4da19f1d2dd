"""Model families as stem, blocks and head, and the one table that names them.

To add a family: its file, its line in FAMILIES, its row in the parity test. The file has
  INPUTS                    'text' or 'image'
  HEADS                     kind -> heads.Head, the classification head first
  BASE                      the prefix that files of the base model leave out
  Config                    frozen; Config.from_hf(raw) refuses what is not implemented; each field
                            has its type and bounds in config_json.RULES
  DROPOUT_FIELDS            the fields of Config that are dropout rates
  Model(config, head, num_labels, *, rngs)
      stem(batch, seed)     -> carry: a dict with 'hidden' [B, T, D] and what else the blocks need
      blocks                each: (carry, seed, reads) -> carry. reads None: 'hidden' of every token;
                            positions [B, K]: of these alone, [B, K, D], though all are looked at
      head(hidden, seed)    hidden [B, K, D] of what the head reads -> {'logits'}. A seed of None
                            means no dropout
  depth_rules(num_blocks)   ordered (path pattern, depth), covering every parameter
  TENSOR_RULES              ordered (path pattern, PartitionSpec over 'tensor')
  OTHER_HEADS, ALIASES      checkpoint names to drop; (pattern, replacement) for names to modernise
Patterns are regular expressions that must match the whole path; the first that does decides.
"""

import dataclasses
import difflib
import os
import re
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxft.models import bert, config_json, heads, ops, vit
from jaxft.models.checkpoint_files import brief

FAMILIES = {
    "bert": bert,
    "vit": vit,
}

Params = dict  # nested dict of arrays; str keys, int keys for list entries


@dataclasses.dataclass(frozen=True, eq=False)
class Architecture:
    """Everything about a model but its numbers. Equal only to itself, so jit may close over it."""

    family: str  # key of FAMILIES
    hf_config: dict[str, Any]  # config.json, with the family's defaults for what it lacks
    config: Any  # the family's Config, with the dropout rates that will be used
    inputs: str  # 'text' or 'image': which batch it takes
    head: str  # kind of head, a key of the family's HEADS
    exports: str  # HF's class of this backbone and head, `architectures` of config.json
    reads: heads.Reads  # batch -> positions [B, K] of the tokens that the head reads; None: all
    num_labels: int
    num_blocks: int
    graphdef: nnx.GraphDef
    abstract: Params  # ShapeDtypeStruct leaves
    depths: dict[str, int]  # parameter path -> stem 0, blocks 1.., head num_blocks + 1
    tensor_rules: tuple[tuple[str, PartitionSpec], ...]  # as the family's TENSOR_RULES
    new_head: bool  # the checkpoint's own classifier is for other labels: initialise one

    def init(self, key: jax.Array) -> Params:
        """Every parameter, newly initialised. Under jit, leaves that are not used cost nothing."""
        family = FAMILIES[self.family]
        model = family.Model(self.config, self.head, self.num_labels, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(model))

    def apply(
        self,
        params: Params,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        *,
        frozen_blocks: int = -1,
        all_positions: bool = False,
        remat: bool = False,
        dtype: jax.typing.DTypeLike = jnp.float32,
    ) -> dict[str, jax.Array]:
        """The forward pass.

        Returns fp32 'logits': [R, K, C] for the K examples of each packed text row, [R, L, C] for
        its tokens (head 'token'), [B, C] for images.

        The last block's queries, output and feed-forward are computed only for the tokens that the
        head reads, its keys and values for all: the same logits for 2/12 of that block's products.

        Args:
            key: drives dropout, with a seed of its own for each depth; None turns it off.
            frozen_blocks: depths up to this one (0: stem only, -1: none) are a fixed feature
                extractor: no dropout, and no rematerialisation, as nothing there is differentiated.
            all_positions: run the last block, too, for every token, and return its output as
                'hidden' [B, T, D] in `dtype` (with dropout: under another mask than without).
            remat: recompute each other block in the backward pass, not keeping its activations. For
                accelerators: XLA:CPU drops the barriers it rests on, and only the FLOPs grow.
            dtype: of the blocks' activations and matrix products; stem, norms, softmax and head
                stay in fp32.
        """
        model = nnx.merge(self.graphdef, params)

        def seed(depth: int) -> ops.Seed:
            return None if key is None or depth <= frozen_blocks else ops.seed_of(key, depth)

        reads = self.reads(batch)
        carry = cast_floating(model.stem(batch, seed(0)), dtype)
        for depth, block in enumerate(model.blocks, start=1):
            run = jax.checkpoint(block.__call__) if remat and depth > frozen_blocks else block
            only = reads if depth == self.num_blocks and not all_positions else None
            carry = run(carry, seed(depth), only)
        hidden, head_seed = carry["hidden"], seed(self.num_blocks + 1)
        if all_positions:
            return {**model.head(ops.take(hidden, reads), head_seed), "hidden": hidden}
        return model.head(hidden, head_seed)


def load_architecture(
    directory: str,
    *,
    num_labels: int,
    head: str | None = None,
    dropout: float | None = None,
    new_head: bool = False,
) -> Architecture:
    """Reads `directory/config.json`; no weights are touched.

    Args:
        num_labels: classes of the head, whatever the checkpoint's own head has.
        head: kind of head, 'sequence', 'token' or 'image'; None: the family's first.
        dropout: replaces every dropout rate of the checkpoint; None keeps them.
        new_head: initialise the classifier even if the checkpoint's would fit, since its classes
            mean something else. So it is, too, if `architectures` of config.json names the class
            of another head of the family.

    Raises:
        ValueError: no such file, an unknown model_type, a head that the family lacks, keys that are
            not implemented or fields that cannot be, all of them listed.
    """
    raw = config_json.load(directory)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        near = difflib.get_close_matches(str(family)[:60].lower(), FAMILIES, n=1)
        raise ValueError(
            f"{directory}/config.json: model_type {brief(family)} is not implemented; known are "
            f"{', '.join(FAMILIES)}" + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    module = FAMILIES[family]
    kind = heads.choose(module.HEADS, head, family)
    others = {other.architecture for key, other in module.HEADS.items() if key != kind}
    try:
        config = module.Config.from_hf(raw)
    except ValueError as error:  # "config.json: …"
        raise ValueError(os.path.join(directory, str(error))) from None
    if dropout is not None:
        config = dataclasses.replace(config, **dict.fromkeys(module.DROPOUT_FIELDS, dropout))
    # One key for all, as only shapes are made: the counter in nnx.Rngs, traced, takes time that is
    # quadratic in the blocks (12: 0.22 s, 100: 5.1 s, 200: 35 s).
    keys: Any = types.SimpleNamespace(params=lambda: jax.random.key(0))
    model = nnx.eval_shape(lambda: module.Model(config, kind, num_labels, rngs=keys))
    graphdef, state = nnx.split(model)
    abstract = nnx.to_pure_dict(state)
    rules = module.depth_rules(len(model.blocks))
    return Architecture(
        family=family,
        hf_config=_defaults(module.Config) | raw,
        config=config,
        inputs=module.INPUTS,
        head=kind,
        exports=module.HEADS[kind].architecture,
        reads=module.HEADS[kind].reads,
        num_labels=num_labels,
        num_blocks=len(model.blocks),
        graphdef=graphdef,
        abstract=abstract,
        depths={path: _depth(path, rules) for path in flatten(abstract)},
        tensor_rules=module.TENSOR_RULES,
        new_head=new_head or not others.isdisjoint(_texts(raw.get("architectures"))),
    )


def _texts(value: Any) -> list[str]:
    return [x for x in value if isinstance(x, str)] if isinstance(value, list) else []


def _defaults(config_type: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config_type)}


def flatten(tree: Params) -> dict[str, Any]:
    """{'a': {0: {'kernel': x}}} -> {'a/0/kernel': x}, in the order of jax.tree.leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def cast_floating(tree: Any, dtype: jax.typing.DTypeLike) -> Any:
    """Casts floating-point leaves; ids keep their dtype."""

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def _depth(path: str, rules: tuple[tuple[str, int], ...]) -> int:
    for pattern, depth in rules:
        if re.fullmatch(pattern, path):
            return depth
    raise AssertionError(f"no depth rule covers {path}")
