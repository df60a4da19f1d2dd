"""What the rest of jaxft asks of a model, be it a family of its own or a bridged PyTorch module."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxft.models.cuts import Rules
from jaxft.models.family import Batch, Context, ImageLimits, Outputs, Stored, TextLimits
from jaxft.models.layers import ops, seeds
from jaxft.models.layers.batch_norm import Sample
from jaxft.models.layers.stochastic_depth import Odds, StochasticDepth, odds
from jaxft.models.naming import Naming
from jaxft.models.tree import Params

# Above every depth: the key of what is left out is none of dropout's.
_BRANCHES = 2**20


@dataclasses.dataclass(frozen=True)
class Pass:
    """How a forward pass is run.

    Attributes:
        frozen_blocks: depths up to this one (0: stem only, -1: none) are a fixed feature
            extractor: no dropout, no branch left out, batch norms with the kept statistics, and
            no rematerialisation, as nothing there is differentiated.
        all_positions: run the last block, too, for every token, and return its output as
            'hidden' [B, T, D] in `dtype` (with dropout: under another mask than without).
        remat: recompute each other block in the backward pass, not keeping its activations. For
            accelerators: XLA:CPU drops the barriers it rests on, and only the FLOPs grow.
        dtype: of the blocks' activations and matrix products; stem, norms, softmax and head
            stay in fp32.
        batch_stats: batch norms take the statistics of this batch, of its examples whose
            'weight' [B], if it has one, is not 0.
        axis_name: the mapped axis under pmap, over which those are taken too; dropout is that of the
            rows of all devices together, as under jit.
        isolated: blocks that have equals beside them are compiled each by itself, so that on a CPU they
            have the same bits whether they are stacked or not.
    """

    frozen_blocks: int = -1
    all_positions: bool = False
    remat: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    batch_stats: bool = False
    axis_name: str | None = None
    isolated: bool = False

    def seed(self, key: jax.Array | None, depth: int) -> ops.Seed:
        """Of the dropout at one depth; frozen depths have none."""
        if key is None or depth <= self.frozen_blocks:
            return None
        return seeds.seed_of(key, depth, self.axis_name)

    def context(
        self,
        depth: int,
        key: jax.Array | None,
        reads: jax.Array | None,
        sample: Sample | None,
        left_out: float = 0.0,
    ) -> Context:
        """At one depth; a frozen one has no dropout, all branches, and the statistics that are kept.

        Args:
            left_out: how often a residual branch is left out of an example.
        """
        own = sample if depth > self.frozen_blocks else None
        seed = self.seed(key, depth)
        if key is None or seed is None or left_out == 0:
            return Context(seed, reads, own)
        return Context(seed, reads, own, depth=self.branches(key, depth, odds(left_out)))

    def branches(self, key: jax.Array, depth: int | jax.Array, odds: Odds) -> StochasticDepth:
        """How those of one depth that is not frozen are left out."""
        seed = seeds.seed_of(jax.random.fold_in(key, _BRANCHES), depth, self.axis_name)
        return StochasticDepth(seed, odds)


PLAIN = Pass()


class Architecture(Protocol):
    """Everything about a model but its numbers. Equal only to itself, so jit may close over it.

    Attributes:
        model_type: of config.json.
        note: which implementation this is, and what that means, for the terminal.
        hf_config: config.json, of which an export's is made.
        limits: which inputs it can take.
        inputs: 'text' or 'image': which batch it takes.
        head: its kind, see `models.load_architecture`.
        exports: class of the model with this head, `architectures` of an export.
        num_labels: outputs of the head; 0 of heads that predict tokens.
        num_blocks: depths between the stem, 0, and the head, `num_blocks` + 1.
        abstract: the parameters, as ShapeDtypeStruct leaves.
        whole: the parameters and, where there are such, batch statistics beside them.
        stored: path in `whole` -> how it lies in a checkpoint.
        depths: parameter path -> depth.
        statistics: path of a batch statistic, or of what else never trains -> the same.
        tensor_rules: how the tensor axis cuts parameters, see cuts.py.
        naming: which tensors of a checkpoint are its own.
        from_scratch: `init` gives every leaf a value to train from.
        new_head: the checkpoint's own classifier is for other labels: initialise one.
        grown: path in `whole` -> its shape in the checkpoint, which has no rows for the newest tokens.
    """

    @property
    def model_type(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def hf_config(self) -> dict[str, Any]: ...
    @property
    def limits(self) -> TextLimits | ImageLimits: ...
    @property
    def inputs(self) -> str: ...
    @property
    def head(self) -> str: ...
    @property
    def exports(self) -> str: ...
    @property
    def num_labels(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def abstract(self) -> Params: ...
    @property
    def whole(self) -> Params: ...
    @property
    def stored(self) -> dict[str, Stored]: ...
    @property
    def depths(self) -> dict[str, int]: ...
    @property
    def statistics(self) -> dict[str, int]: ...
    @property
    def tensor_rules(self) -> Rules: ...
    @property
    def naming(self) -> Naming: ...
    @property
    def from_scratch(self) -> bool: ...
    @property
    def new_head(self) -> bool: ...
    @property
    def grown(self) -> Mapping[str, tuple[int, ...]]: ...

    def init(self, key: jax.Array) -> Params:
        """All of `whole`, newly initialised. Under jit, leaves that are not used cost nothing."""

    def apply(
        self, params: Params, batch: Batch, key: jax.Array | None = None, how: Pass = PLAIN
    ) -> Outputs:
        """The forward pass: fp32 'logits' [R, K, C], [R, L, C] or [B, C], and perhaps 'moments'.

        Heads that predict tokens give what `vocabulary.outputs` says in place of logits.

        Args:
            params: in the structure of `whole`.
            key: drives dropout and stochastic depth; None turns them off.
        """


class Rereading(Architecture, Protocol):
    """A model that keeps nothing of the tokens it has read: a text that goes on is read again each time."""

    def encoded(self, params: Params, batch: Batch, how: Pass = PLAIN) -> Batch:
        """The batch of a model with an encoder and a decoder, with what the encoder gives once and for
        all, if the model takes that."""

    def next_logits(
        self, params: Params, batch: Batch, places: jax.Array, how: Pass = PLAIN
    ) -> jax.Array:
        """fp32 logits [R, V] of what follows the token at `places` [R] of each row, the decoder's if
        there are two.

        Args:
            batch: as `apply` takes it, perhaps from `encoded`.
            how: only `dtype` counts.
        """


def has_batch_norms(architecture: Architecture) -> bool:
    """It keeps statistics that can move, and not only what never trains, as tables of sines."""
    return any(path.endswith("running_mean") for path in architecture.statistics)
