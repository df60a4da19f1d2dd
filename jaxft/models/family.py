"""What a family of models is: one frozen record, made in its file of `families/`.

A model is a stem, a list of blocks and a head. Parameter paths are the tensors' names in a Hugging
Face checkpoint, with '/' for '.', up to the leaf; a pattern is a regular expression that must match
the whole path, and of ordered rules the first that matches decides.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypedDict, TypeVar

import jax
from flax import nnx

from jaxft.models.cuts import Rules
from jaxft.models.layers import ops
from jaxft.models.layers.batch_norm import Moments, Sample
from jaxft.models.layers.stochastic_depth import Branch, StochasticDepth, whole
from jaxft.models.naming import Naming, current_name, matching

Batch = Mapping[str, jax.Array]
# 'hidden' [B, T, D] in the compute dtype, what else the blocks need, and 'reads': the positions
# [B, K] that the head reads, where it does not read all, 'moments' that a stem leaves,
# and the 'sample' of its batch norms.
Carry = dict[str, Any]
Outputs = dict[str, Any]


class Kept(TypedDict, total=False):
    """What a block leaves beside the carry.

    Attributes:
        moments: of each of its batch norms that were given a sample, by the norm's path.
        entries: where it was given a cache: keys and values [B, T, G, C] of the batch's tokens or, where the
            cache has some, its own [B, G, S, C] with those of the batch's one token.
    """

    moments: dict[str, Moments]
    entries: tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What the attention of one block has of the tokens before those of a batch.

    Attributes:
        keys, values: [B, G, S, C] in slots, the tokens in any order; None: there are none before.
        positions: [B, S] int32, of each in its text, the new one included; -1 in a slot that is empty.
        slot: int32 scalar, of the new token, one of each sequence.
    """

    keys: jax.Array | None = None
    values: jax.Array | None = None
    positions: jax.Array | None = None
    slot: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a stem is given besides the batch, and a block besides the carry.

    Attributes:
        seed: of the dropout at its depth; None: no dropout.
        reads: positions [B, K] of the tokens of which alone 'hidden' is asked, as [B, K, D], though
            all are looked at; None: of every token.
        sample: the examples over which batch norms take their statistics; None: the kept ones.
        cache: of a decoder's block that is to leave its entries; None: as in training.
        depth: how residual branches are left out of examples; None: none is.
    """

    seed: ops.Seed = None
    reads: jax.Array | None = None
    sample: Sample | None = None
    cache: Cache | None = None
    depth: StochasticDepth | None = None

    def branches(self, count: int, segments: jax.Array | None = None) -> tuple[Branch, ...]:
        """What the block's residual branches go through, in order, before they are added.

        Args:
            segments: ids [R, T] of all tokens, where rows hold several texts; None: images.
        """
        if self.depth is None:
            return (whole,) * count
        own = None if segments is None else ops.take(segments, self.reads)
        return self.depth.branches(count, own)


class Config(Protocol):
    """The fields of HF's config that change the logits or their initial values; a dataclass."""

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> Self:
        """Raises ValueError for every key with a value that is not implemented or not possible."""


class Block(Protocol):
    """One depth. It leaves {} where it has no state."""

    def __call__(self, carry: Carry, context: Context) -> tuple[Carry, Kept]: ...


class Backbone(Protocol):
    """What all heads of a family stand on; its attributes are named as HF's."""

    def stem(self, batch: Batch, context: Context) -> Carry: ...

    @property
    def blocks(self) -> Sequence[Block]: ...

    def finish(self, hidden: jax.Array) -> jax.Array:
        """Hidden [B, K, D] fp32 of the tokens that are read -> what the head takes, same shape."""


class HeadModule(Protocol):
    """Its attributes stand beside the backbone in HF's model."""

    def __call__(self, hidden: jax.Array, seed: ops.Seed) -> Outputs:
        """Finished hidden [B, K, D] fp32 -> {'logits'}, fp32."""


class VocabularyModule(Protocol):
    """A head that predicts tokens."""

    def __call__(self, hidden: jax.Array, seed: ops.Seed, table: jax.Array) -> Outputs:
        """Finished hidden [R, L, D] fp32 and the input embeddings [V, E] -> as `vocabulary.outputs`."""


C = TypeVar("C", bound=Config)


@dataclasses.dataclass(frozen=True)
class Head(Generic[C]):
    """One kind of head of a family.

    Attributes:
        architecture: HF's class of the backbone with this head, `architectures` of an export.
        module: `(config, num_labels, rngs)`, rngs having served the backbone already.
        reads: `(config, batch) ->` positions [B, K] of the tokens that it takes; None: every token.
        averages: `(config, batch) ->` weights [R, K, L] by which the finished tokens are averaged before
            the head; None: they are not.
        classifier: path of its module whose outputs are the labels; '': it has no labels.
        unused: patterns of tensors of the base model that HF's class with this head lacks.
        table: path of the input embeddings, which a head that predicts tokens is given; '': it is not.
        ties: `config ->` path -> the names under which HF's class has this parameter again.
        base: name of the backbone in HF's class with this head; None: the family's.
    """

    architecture: str
    module: Callable[[C, int, nnx.Rngs], HeadModule | VocabularyModule]
    reads: Callable[[C, Batch], jax.Array | None]
    averages: Callable[[C, Batch], jax.Array | None] = lambda config, batch: None
    classifier: str = "classifier"
    unused: tuple[str, ...] = ()
    table: str = ""
    ties: Callable[[C], Mapping[str, tuple[str, ...]]] = lambda config: {}
    base: str | None = None


@dataclasses.dataclass(frozen=True)
class TextLimits:
    """What texts a model can take.

    Attributes:
        vocabulary: token ids are below it.
        positions: tokens of the longest example.
        pairs: it can tell two texts in an example apart.
        usual: tokens at which examples are cut where no length is asked for; None: `positions`.
        alone: a row holds one example, since attention does not know where another begins.
        cut: rows may be cut over a context axis, since tokens meet in `attention.among` alone.
    """

    vocabulary: int
    positions: int
    pairs: bool
    alone: bool = False
    cut: bool = False
    usual: int | None = None


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """What images a model takes: no others. A height and width of None: any."""

    height: int | None
    width: int | None
    channels: int


@dataclasses.dataclass(frozen=True)
class Stored:
    """How a parameter or statistic lies in a checkpoint.

    Attributes:
        name: of its tensor.
        axes: the tensor's, in the parameter's order.
        ties: other names of the same tensor. A checkpoint may lack them, or hold it again under
            them, or under one of them only; an export has it once, as `name`.
    """

    name: str
    axes: tuple[int, ...]
    ties: tuple[str, ...] = ()

    def reordered(self, items: tuple) -> tuple:
        """A parameter's shape or index for the tensor: (3, 5) -> (5, 3) where it is transposed."""
        return tuple(items[self.axes.index(axis)] for axis in range(len(items)))


def stored_by_leaf(path: str, ndim: int, config: Any = None) -> Stored:
    """The rule for nearly everything: by the type of the leaf, as PyTorch's modules have it.

    'classifier/kernel' [in, out] -> 'classifier.weight', (1, 0)
    'x/projection/kernel' HWIO    -> 'x.projection.weight', (2, 3, 1, 0), as OIHW is stored
    'x/LayerNorm/scale'           -> 'x.LayerNorm.weight', (0,)
    'vit/embeddings/cls_token'    -> 'vit.embeddings.cls_token', (0, 1, 2)
    """
    *parents, leaf = path.split("/")
    name = "weight" if leaf in ("kernel", "embedding", "scale") else leaf
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}[ndim] if leaf == "kernel" else tuple(range(ndim))
    return Stored(".".join((*parents, name)), axes)


def depth_rules(
    stem: str, blocks: Iterable[str], head: str, *, last: str | None = None
) -> tuple[tuple[str, int], ...]:
    """The rules of a family, of a path pattern for the stem, one for each block, and one for the head.

    `last` matches what comes after the blocks and has the depth of the last of them, as in timm's groups.
    """
    patterns = list(blocks)
    after = [] if last is None else [(last, len(patterns))]
    return (
        (stem, 0),
        *((pattern, depth) for depth, pattern in enumerate(patterns, start=1)),
        *after,
        (head, len(patterns) + 1),
    )


def defaults(config_type: Any) -> dict[str, Any]:
    """Those that are not null, which says no more than a key that is not there."""
    given = {field.name: field.default for field in dataclasses.fields(config_type)}
    return {name: value for name, value in given.items() if value is not None}


def with_defaults(config_type: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the defaults of the fields that it lacks."""
    return defaults(config_type) | dict(raw)


@dataclasses.dataclass(frozen=True)
class Family(Generic[C]):
    """All that differs between one family and another.

    Attributes:
        model_type: of config.json; of timm's models, which have none there, a name for messages.
        config: reads config.json; each field has a type and bounds there.
        completed: `(config, config.json) ->` the config.json of which an export's is made, with the defaults
            of `config` where the fields belong.
        dropouts: the fields of `config` that are dropout rates.
        left_out: `(config, blocks) ->` how often each block's branches are left out, by default; None: never.
        limits: which inputs a model can take.
        base: name of the backbone in HF's models with a head, which files of the base model leave out;
            '': its modules stand beside the head's.
        backbone: `(config, kind of head, rngs)`.
        heads: by kind ('sequence', 'token', 'question', 'choice', 'embedding', 'image'; 'causal', 'masked'
            and 'seq2seq', which predict tokens), the classification head first.
        depth_rules: ordered (path pattern, depth), covering every parameter and statistic: stem 0,
            blocks 1..L, head L + 1.
        tensor_rules: how the tensor axis cuts parameters, see cuts.py.
        stored: `(path, number of axes, config) ->` how a parameter or statistic lies in a checkpoint.
        causal: a token sees itself and those before it, none after it.
        shares: of the carry, what several blocks take that has a gradient from each, beside 'hidden'.
        settled: `(config, directory) ->` the config with what only the tensors there say; there may be
            none.
        other_heads: patterns of tensors of heads that are not here, and of buffers.
        aliases: (pattern, replacement) for names that other versions of transformers write.
        timm: of a family of timm's or torchvision's, `architecture` of its config.json -> the fields
            of `config` that are not the defaults there.
    """

    model_type: str
    config: type[C]
    dropouts: tuple[str, ...]
    limits: Callable[[C], TextLimits | ImageLimits]
    base: str
    backbone: Callable[[C, str, nnx.Rngs], Backbone]
    heads: Mapping[str, Head[C]]
    depth_rules: Callable[[C], tuple[tuple[str, int], ...]]
    tensor_rules: Callable[[C], Rules]
    left_out: Callable[[C, int], Sequence[float]] | None = lambda config, blocks: (0.0,) * blocks
    stored: Callable[[str, int, C], Stored] = stored_by_leaf
    completed: Callable[[type[C], Mapping[str, Any]], dict[str, Any]] = with_defaults
    causal: bool = False
    shares: tuple[str, ...] = ()
    settled: Callable[[C, str], C] = lambda config, directory: config
    other_heads: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    timm: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def base_of(self, head: str) -> str:
        """Name of the backbone in the model with this head."""
        own = self.heads[head].base
        return self.base if own is None else own

    def naming(self, head: str) -> Naming:
        """Of the model with this head."""
        return Naming(
            base=self.base_of(head),
            classifiers=tuple(filter(None, (self.heads[head].classifier,))),
            current=functools.partial(current_name, aliases=self.aliases),
            unused=functools.partial(
                matching, patterns=(*self.other_heads, *self.heads[head].unused)
            ),
        )
