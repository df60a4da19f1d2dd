"""An architecture: a family's stem, blocks and head at the sizes of one config.json."""

import dataclasses
import functools
import os
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models import cuts, heads
from jaxft.models.checkpoint import config_json, timm_config
from jaxft.models.contract import PLAIN, Pass
from jaxft.models.families import TIMM, family_of
from jaxft.models.family import (
    Backbone,
    Batch,
    Carry,
    Context,
    Family,
    ImageLimits,
    Kept,
    Outputs,
    Stored,
    TextLimits,
)
from jaxft.models.layers import mesh, ops
from jaxft.models.layers.batch_norm import sample_of
from jaxft.models.naming import Naming
from jaxft.models.rates import Rates, left_out, with_dropout
from jaxft.models.scanned import alone, scanned, steps_through
from jaxft.models.stacking import STACKED, Group, repeated
from jaxft.models.tree import Params, by_path, depth_at


@dataclasses.dataclass(frozen=True, eq=False)
class Architecture:
    """The native one (see contract.py). Equal only to itself, so jit may close over it."""

    family: Family[Any]
    hf_config: dict[str, Any]  # config.json; of HF's with the family's defaults for what it lacks
    config: Any  # the family's Config, with the dropout rates that will be used
    limits: TextLimits | ImageLimits  # which inputs it can take
    head: str  # kind of head, a key of family.heads
    num_labels: int
    num_blocks: int
    backbone_graph: nnx.GraphDef
    head_graph: nnx.GraphDef
    head_names: tuple[str, ...]  # of the head's modules, beside the backbone in the tree
    abstract: Params  # the parameters, as ShapeDtypeStruct leaves
    whole: Params  # the parameters and, where there are such, batch statistics beside them
    stored: dict[str, Stored]  # path in `whole` -> how it lies in a checkpoint
    depths: dict[str, int]  # parameter path -> stem 0, blocks 1.., head num_blocks + 1
    statistics: dict[str, int]  # path of a batch statistic, or of a fitted head -> the same
    tensor_rules: cuts.Rules  # how the tensor axis cuts parameters
    left_out: tuple[float, ...]  # how often each block's residual branches are, of an example
    new_head: bool  # the checkpoint's own classifier is for other labels: initialise one
    # path in `whole` -> its shape in the checkpoint, where that has fewer rows
    grown: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    from_scratch = True

    @property
    def inputs(self) -> str:
        """'text' or 'image': which batch it takes."""
        return "text" if isinstance(self.limits, TextLimits) else "image"

    @property
    def exports(self) -> str:
        """HF's class of this backbone with this head, `architectures` of an export."""
        return self.family.heads[self.head].architecture

    @property
    def model_type(self) -> str:
        """Of config.json."""
        return self.family.model_type

    @property
    def shares(self) -> tuple[str, ...]:
        """Of the carry, what several blocks take that has a gradient, beside 'hidden'."""
        return self.family.shares

    @property
    def note(self) -> str:
        """Which implementation this is, and what that means."""
        said = f"native {self.model_type}" + ": texts share rows" * (self.inputs == "text")
        return said + ", rows for new tokens" * bool(self.grown)

    @property
    def naming(self) -> Naming:
        """Which tensors of a checkpoint are its own."""
        return self.family.naming(self.head)

    def reads(self, batch: Batch) -> jax.Array | None:
        """Positions [B, K] of the tokens that the head reads; None: every token."""
        return self.family.heads[self.head].reads(self.config, batch)

    def init(self, key: jax.Array) -> Params:
        """All of `whole`, newly initialised. Under jit, leaves that are not used cost nothing."""
        parts = _make(self.family, self.config, self.head, self.num_labels, nnx.Rngs(key))
        return _tree(self.family.base_of(self.head), *map(nnx.state, parts))

    def apply(
        self, params: Params, batch: Batch, key: jax.Array | None = None, how: Pass = PLAIN
    ) -> Outputs:
        """The forward pass.

        Returns fp32 'logits': [R, K, C] for the K examples of each packed text row, [R, L, C] for
        its tokens (head 'token'), [B, C] for images. Heads that predict tokens ('causal', 'masked',
        'seq2seq') give no logits but what they are made of, see `vocabulary.outputs`. With
        `how.batch_stats` also 'moments' of norms above `how.frozen_blocks`, for `move_statistics`.

        The last block's queries, output and feed-forward are computed only for the tokens that the
        head reads, its keys and values for all: the same logits for 2/12 of that block's products.

        Args:
            params: in the structure of `whole`, or of a `Layout` of `repeats`: then the blocks of a group
                are one scan, which compiles in the time of one of them.
            key: drives dropout and stochastic depth, with seeds of their own for each depth; None
                turns both off.
        """
        return self.suffix(params, self.prefix(params, batch, 0, key, how), 0, key, how)

    def prefix(
        self,
        params: Params,
        batch: Batch,
        upto: int,
        key: jax.Array | None = None,
        how: Pass = PLAIN,
    ) -> Carry:
        """The stem and the first `upto` blocks: what `suffix` goes on from. Arguments as `apply`.

        Returns 'hidden' [B, T, D] in `how.dtype` after that depth, [B, K, D] if it is the last and
        not `how.all_positions`, and in their own dtypes what the blocks and the head still need.

        Raises:
            ValueError: there are fewer blocks.
        """
        self._check_depth("upto", upto)
        backbone, _ = self.modules(params)
        sample = sample_of(batch, how.axis_name) if how.batch_stats else None
        carry = backbone.stem(mesh.tokens(batch), how.context(0, key, None, sample))
        carry["hidden"] = mesh.rows(carry["hidden"].astype(how.dtype))
        if (reads := self.reads(batch)) is not None:
            carry["reads"] = reads
        if (averages := self.family.heads[self.head].averages(self.config, batch)) is not None:
            carry["averages"] = averages
        if sample is not None:
            carry["sample"] = sample
        return self._through(params, carry, range(1, upto + 1), key, how)

    def suffix(
        self,
        params: Params,
        carry: Carry,
        start: int,
        key: jax.Array | None = None,
        how: Pass = PLAIN,
    ) -> Outputs:
        """The blocks after the first `start`, and the head: from `prefix(…, start, …)` with the same
        key and `how` what `apply` gives.

        Raises:
            ValueError: there are fewer blocks.
        """
        self._check_depth("start", start)
        backbone, head = self.modules(mesh.used(params, self, self.num_blocks + 1))
        depths = range(start + 1, self.num_blocks + 1)
        carry = self._through(params, carry, depths, key, how)
        hidden = carry["hidden"]
        read = ops.take(hidden, carry.get("reads")) if how.all_positions else hidden
        finished = backbone.finish(read.astype(jnp.float32))
        if "averages" in carry:
            finished = carry["averages"] @ finished
        table = self.family.heads[self.head].table
        given = [by_path(params)[table]] if table else []
        outputs = head(finished, how.seed(key, self.num_blocks + 1), *given)
        kept = {"moments": carry["moments"]} if "moments" in carry else {}
        return {**outputs, **kept, **({"hidden": hidden} if how.all_positions else {})}

    @functools.cached_property
    def repeats(self) -> tuple[Group, ...]:
        """Equal blocks that follow each other, which may be stacked; the last one is never among them.

        It alone is computed for the tokens that are read. Not equal are blocks with batch statistics.
        """
        backbone, _ = self.modules(self.whole)
        return repeated(backbone.blocks, self.depths, self.whole, self.num_blocks - 1)

    def _through(
        self, params: Params, carry: Carry, depths: range, key: jax.Array | None, how: Pass
    ) -> Carry:
        moments, sample = carry.get("moments", {}), carry.get("sample")
        whole, meshed = self.modules(params)[0], bool(mesh.sizes())

        def run(depth: int, carry: Carry, context: Context) -> tuple[Carry, Kept]:
            # Over a mesh parameters are gathered in here, so that a block that is rerun lets them go.
            own = mesh.used(params, self, depth, how.dtype)
            backbone = self.modules(own)[0] if meshed else whole
            return backbone.blocks[depth - 1](carry, context)

        carry = {name: value for name, value in carry.items() if name != "moments"}
        alike = {depth for group in self.repeats for depth in group.depths}
        for depth, stack in steps_through(depths, params.get(STACKED, {})):
            if stack is not None:
                carry = scanned(whole.blocks[depth - 1], carry, depth, stack, key, how, self)
                continue
            if depth in alike and how.isolated:
                carry = alone(whole.blocks[depth - 1], carry, depth, key, how, self)
                continue
            block: Callable[..., Any] = functools.partial(run, depth)
            if how.remat and depth > how.frozen_blocks:
                block = jax.checkpoint(block)
            narrow = depth == self.num_blocks and not how.all_positions
            reads = carry.get("reads") if narrow else None
            context = how.context(depth, key, reads, sample, self.left_out[depth - 1])
            carry, kept = block(carry, context)
            carry = {**carry, "hidden": mesh.rows(carry["hidden"])}
            moments = {**moments, **kept.get("moments", {})}
        return {**carry, "moments": moments} if moments else carry

    def _check_depth(self, name: str, depth: int) -> None:
        if not 0 <= depth <= self.num_blocks:
            raise ValueError(
                f"{name} is {depth}; it may be 0 (the stem) to {self.num_blocks} blocks"
            )

    def modules(self, params: Params) -> tuple[Backbone, Callable[..., Outputs]]:
        """The modules with these parameters and statistics in them."""
        top = {name: params[name] for name in self.head_names}
        base = self.family.base_of(self.head)
        rest = {name: tree for name, tree in params.items() if name not in (*top, STACKED)}
        backbone = nnx.merge(self.backbone_graph, rest[base] if base else rest)
        return backbone, nnx.merge(self.head_graph, top)


def load_architecture(
    directory: str,
    *,
    num_labels: int,
    head: str | None = None,
    dropout: float | None = None,
    new_head: bool = False,
    vocabulary: int = 0,
    stochastic_depth: float | None = None,
) -> Architecture:
    """Reads `directory/config.json`; no weights are touched.

    Args:
        num_labels: classes of the head, whatever the checkpoint's own head has; 0 of heads that predict
            tokens.
        head: kind of head, a key of `Family.heads`; None: the family's first.
        dropout: replaces every dropout rate of the checkpoint; None keeps them.
        new_head: initialise the classifier even if the checkpoint's would fit, since its classes
            mean something else. So it is, too, if `architectures` of config.json names the class
            of another head of the family.
        vocabulary: of a model of text, how many token ids it has to know: where config.json says fewer,
            every leaf with an axis of them is `grown`.
        stochastic_depth: how often residual branches of the last block are left out of an example, of
            the first never, of those between by equal steps; None: as config.json says.

    Raises:
        ValueError: no such file, an unknown model_type or architecture, a head that the family
            lacks, keys that are not implemented or fields that cannot be, all of them listed.
    """
    raw = config_json.load(directory)
    rates = Rates(dropout, stochastic_depth)
    given = _load(directory, raw, num_labels, head, rates, new_head)
    if not isinstance(given.limits, TextLimits) or given.limits.vocabulary >= vocabulary:
        return given
    raw = {**raw, "vocab_size": vocabulary}
    larger, old = _load(directory, raw, num_labels, head, rates, new_head), by_path(given.whole)
    new = by_path(larger.whole)
    grown = {path: leaf.shape for path, leaf in old.items() if leaf.shape != new[path].shape}
    return dataclasses.replace(larger, grown=grown)


def _load(
    directory: str,
    raw: dict[str, Any],
    num_labels: int,
    head: str | None,
    rates: Rates,
    new_head: bool,
) -> Architecture:
    """As config.json says, which is `raw`."""
    timm = timm_config.is_timm(raw)
    family = (
        timm_config.family_of(directory, raw, TIMM)
        if timm
        else family_of(directory, raw.get("model_type"))
    )
    kind = heads.choose(family.heads, head, family.model_type)
    try:
        config: Any = family.config.from_hf(timm_config.settings(raw, family) if timm else raw)
    except ValueError as error:  # "config.json: …"
        raise type(error)(os.path.join(directory, str(error))) from None
    config = family.settled(config, directory)
    config = with_dropout(family, config, rates.dropout)
    # One key for all, as only shapes are made: the counter in nnx.Rngs, traced, takes time that is
    # quadratic in the blocks (12: 0.22 s, 100: 5.1 s, 200: 35 s).
    keys: Any = types.SimpleNamespace(params=lambda: jax.random.key(0))
    backbone, top = nnx.eval_shape(lambda: _make(family, config, kind, num_labels, keys))
    backbone_graph, backbone_state = nnx.split(backbone)
    head_graph, head_state = nnx.split(top)
    base, blocks = family.base_of(kind), len(backbone.blocks)
    whole = _tree(base, backbone_state, head_state)
    abstract = _tree(base, nnx.state(backbone, nnx.Param), nnx.state(top, nnx.Param))
    leaves, parameters = by_path(whole), by_path(abstract)
    fitted = (f"{heads.SENTENCE}/.*", len(backbone.blocks) + 1)  # of whichever family
    rules = (*family.depth_rules(config), fitted)
    depths = {path: depth_at(path, rules) for path in leaves}
    others = {one.architecture for one in family.heads.values()} - {family.heads[kind].architecture}
    return Architecture(
        family=family,
        hf_config=raw if timm else family.completed(family.config, raw),
        config=config,
        limits=family.limits(config),
        head=kind,
        num_labels=num_labels,
        num_blocks=blocks,
        backbone_graph=backbone_graph,
        head_graph=head_graph,
        head_names=tuple(nnx.to_pure_dict(head_state)),
        abstract=abstract,
        whole=whole,
        stored=heads.stored(family, kind, config, leaves),
        depths={path: depths[path] for path in parameters},
        statistics={path: depth for path, depth in depths.items() if path not in parameters},
        tensor_rules=family.tensor_rules(config),
        left_out=left_out(family, config, blocks, rates.stochastic_depth),
        new_head=new_head or not others.isdisjoint(config_json.texts(raw.get("architectures"))),
    )


def _make(
    family: Family[Any], config: Any, kind: str, num_labels: int, rngs: nnx.Rngs
) -> tuple[Any, Any]:
    """(backbone, head), the backbone initialised first."""
    backbone = family.backbone(config, kind, rngs)
    return backbone, family.heads[kind].module(config, num_labels, rngs)


def _tree(base: str, backbone: Any, head: Any) -> Params:
    """The tree of the checkpoint: the backbone, under its name if it has one, and beside it the head."""
    body = nnx.to_pure_dict(backbone)
    return {**({base: body} if base else body), **nnx.to_pure_dict(head)}
