"""A bridged model: PyTorch's module behind the contract of the native ones."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.bridge import trace, writing
from jaxft.models.bridge.module import Built, Forward, path_of
from jaxft.models.bridge.norms import BatchNorms
from jaxft.models.contract import PLAIN, Pass
from jaxft.models.cuts import Rules
from jaxft.models.family import Batch, ImageLimits, Outputs, Stored, TextLimits
from jaxft.models.layers.batch_norm import Sample, sample_of
from jaxft.models.naming import Naming
from jaxft.models.tree import Params, by_path


@dataclasses.dataclass(frozen=True, eq=False)
class BridgedArchitecture:
    """See `contract.Architecture`. Leaves lie in torch's own layout, at its names with '/' for '.'."""

    built: Built
    because: str
    model_type: str
    hf_config: dict[str, Any]
    head: str
    num_labels: int
    num_blocks: int
    abstract: Params
    whole: Params
    stored: dict[str, Stored]
    depths: dict[str, int]
    statistics: dict[str, int]
    new_head: bool
    grown: Mapping[str, tuple[int, ...]]

    @property
    def limits(self) -> TextLimits | ImageLimits:
        """Which inputs it can take."""
        return self.built.limits

    @property
    def inputs(self) -> str:
        """'text' or 'image'."""
        return "text" if isinstance(self.limits, TextLimits) else "image"

    @property
    def exports(self) -> str:
        """The class of the module, `architectures` of an export."""
        return self.built.exports

    @property
    def note(self) -> str:
        """Which implementation this is, and what that means."""
        row = "one text a row, " if self.inputs == "text" else ""
        row += "texts written without a cache, " if self.head in ("causal", "seq2seq") else ""
        said = f"bridge to {self.exports} of {self.built.library}: {row}no remat, no tensor axis"
        said += ", rows for new tokens" * bool(self.grown)
        return f"{said}; not native, since {self.because}" if self.because else said

    @property
    def from_scratch(self) -> bool:
        """`init` gives every leaf a value to train from."""
        return self.built.from_scratch

    @property
    def naming(self) -> Naming:
        """Which tensors of a checkpoint are its own."""
        return self.built.naming

    @property
    def tensor_rules(self) -> Rules:
        """None: under a mesh, leaves are cut by their size alone."""
        return ()

    def init(self, key: jax.Array) -> Params:
        """All of `whole` as the module's own library initialises it, with draws from `key`."""
        built = self.built
        leaves = by_path(self.whole)
        start = {
            name: jnp.zeros(x.shape, jnp.float32 if x.is_floating_point() else jnp.int32)
            for name, x in (*built.module.named_parameters(), *built.module.named_buffers())
        }
        constants = {name: jnp.asarray(x) for name, x in built.constants.items()}
        found = trace.initialise(
            built.module, {**start, **constants}, built.initialise, key, built.split
        )
        named = {path_of(name): x for name, x in found.items() if name not in constants}
        treedef = jax.tree.structure(self.whole)
        return jax.tree.unflatten(
            treedef, [named[path].astype(x.dtype) for path, x in leaves.items()]
        )

    def apply(
        self, params: Params, batch: Batch, key: jax.Array | None = None, how: Pass = PLAIN
    ) -> Outputs:
        """The forward pass of the module, one example a row; of G texts, each in a G-th of the row.

        Returns fp32 'logits': [R, G, C] for the texts of each row ('choice': C is 1), [R, L, C] for its
        tokens (head 'token', and 'question' with C of 2: to be the first and the last of an answer), [B, C]
        for images, and for each token of a row those of the vocabulary, [R, L, V]
        ('masked'; 'causal': of the token after it; 'seq2seq': of the decoder's row, [R, M, V], which
        is 'decoder_input_ids' and 'decoder_segment_ids'). With `batch_stats` also 'moments', for
        `move_statistics`.

        Args:
            params: in the structure of `whole`.
            key: drives dropout and stochastic depth; None turns both off. Each device draws for itself
                under pmap.
            how: the submodules of depths up to `frozen_blocks` are in evaluation mode; batch norms above
                take the statistics of this batch with `batch_stats`; parameters, and inputs that are no
                integers, are cast to `dtype`; `remat` and `all_positions` are not implemented.

        Raises:
            ValueError: the module does what cannot be traced, or what is not implemented; one line.
        """
        if how.remat:
            raise ValueError("config.model.remat=True is not implemented for bridged models")
        assert not how.all_positions
        inputs = self._text(batch) if self.inputs == "text" else self._image(batch, how.dtype)
        sample = sample_of(batch, how.axis_name) if how.batch_stats else None
        norms = self._norms(sample, how.frozen_blocks)
        if key is not None and how.axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(how.axis_name))
        logits = self._traced(params, self.built.forward, inputs, norms, key, how)
        outputs: Outputs = {"logits": self._by_row(logits.astype(jnp.float32), batch)}
        return {**outputs, "moments": norms.moments} if how.batch_stats else outputs

    def encoded(self, params: Params, batch: Batch, how: Pass = PLAIN) -> Batch:
        """The batch of a module with an encoder and a decoder, with what the encoder gives, 'encoded'
        [R, L, D] in `how.dtype`, if the module takes it."""
        if "encoder_outputs" not in self.built.takes:
            return batch
        forward = functools.partial(writing.encoded, self.built)
        own = {name: self._apart(batch[name], 1) for name in ("input_ids", "segment_ids")}
        inputs = self._tokens(own, "")
        return {
            **batch,
            writing.ENCODED: self._traced(
                params, forward, inputs, self._norms(None, -1), None, how
            ),
        }

    def next_logits(
        self, params: Params, batch: Batch, places: jax.Array, how: Pass = PLAIN
    ) -> jax.Array:
        """fp32 logits [R, V] of what follows the token at `places` [R] of each row, the decoder's if
        there are two.

        Args:
            batch: as `apply` takes it, perhaps from `encoded`.
            how: only `dtype` counts.

        Raises:
            ValueError: as `apply`.
        """
        inputs = self._text(batch) | {writing.PLACES: places}
        if writing.ENCODED in batch:
            inputs[writing.ENCODED] = batch[writing.ENCODED]
        forward = functools.partial(writing.logits_at, self.built)
        logits = self._traced(params, forward, inputs, self._norms(None, -1), None, how)
        if logits.shape[1] > 1:
            logits = jnp.take_along_axis(logits, places[:, None, None], axis=1)
        return logits[:, 0].astype(jnp.float32)

    def _traced(
        self, params: Params, forward: Forward, inputs: Batch, norms: BatchNorms,
        key: jax.Array | None, how: Pass,
    ) -> jax.Array:  # fmt: skip
        """`forward` of the module with these parameters in it."""
        built, leaves = self.built, by_path(params)
        arrays = {name: jnp.asarray(x) for name, x in built.constants.items()}
        for name in (*built.parameters, *built.statistics):
            x = leaves[path_of(name)]
            arrays[name] = x.astype(how.dtype) if name in built.parameters else x
        depth_of = self._module_depths()
        return trace.run(
            built.module,
            arrays,
            forward,
            inputs,
            key=key,
            join=built.join,
            training=lambda name: depth_of.get(name, 0) > how.frozen_blocks,
            norms=norms,
        )

    def _norms(self, sample: Sample | None, frozen_blocks: int) -> BatchNorms:
        """The batch norms, of which those above the frozen depths take the statistics of a sample."""
        means = (name for name in self.built.statistics if name.endswith(".running_mean"))
        paths = {name: path_of(name.rpartition(".")[0]) for name in means}
        moving = {
            name: path
            for name, path in paths.items()
            if self.statistics[f"{path}/running_mean"] > frozen_blocks
        }
        return BatchNorms(sample, moving)

    def _by_row(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """What the module gives for each text, put together for each row."""
        if self.inputs == "image" or self.head == "seq2seq":
            return logits
        rows, length = batch["input_ids"].shape
        if self.head in ("sequence", "choice"):
            return logits.reshape(rows, _texts(batch), -1)
        # [R * G, M, C] of tokens; behind them nothing is read.
        width = length // _texts(batch)
        logits = jnp.pad(logits, ((0, 0), (0, width - logits.shape[1]), (0, 0)))
        logits = logits.reshape(rows, -1, logits.shape[-1])
        return jnp.pad(logits, ((0, 0), (0, length - logits.shape[1]), (0, 0)))

    def _apart(self, rows: jax.Array, texts: int) -> jax.Array:
        """[R, L] -> [R * G, M], the texts of each row; for head 'choice' [R, G, M]."""
        assert isinstance(self.limits, TextLimits)
        width = rows.shape[1] // texts
        found = rows[:, : texts * width].reshape(len(rows), texts, width)
        # Rows are of a few lengths, and may be longer than texts can be.
        found = found[:, :, : self.limits.positions]
        return found if self.head == "choice" else found.reshape(-1, found.shape[2])

    def _text(self, batch: Batch) -> dict[str, jax.Array]:
        own = {
            name: self._apart(batch[name], _texts(batch))
            for name in ("input_ids", "segment_ids", "token_type_ids")
            if name in batch
        }
        if self.built.left:
            own = _at_the_end(own)
        inputs = self._tokens(own, "")
        if "token_type_ids" in own:
            inputs["token_type_ids"] = own["token_type_ids"]
        if self.head == "seq2seq":
            inputs |= self._tokens(batch, "decoder_")
        wanted = self.built.takes - ({"token_type_ids"} if not self.types_differ else set())
        return {name: x for name, x in inputs.items() if name in wanted}

    def _tokens(self, batch: Batch, side: str) -> dict[str, jax.Array]:
        """Ids and mask of the encoder's row, or with side 'decoder_' of the decoder's."""
        present = batch[f"{side}segment_ids"] > 0
        # Softmax over nothing is no number: a row without an example reads one token of padding.
        read = present | (~present.any(-1, keepdims=True) & (jnp.arange(present.shape[-1]) == 0))
        return {
            f"{side}input_ids": jnp.where(present, batch[f"{side}input_ids"], self.built.pad),
            f"{side}attention_mask": read.astype(jnp.int32),
        }

    @property
    def types_differ(self) -> bool:
        """The model has token types for a second text."""
        config = getattr(self.built.module, "config", None)
        types = getattr(config, "type_vocab_size", None)
        return isinstance(types, int) and types > 1

    def _image(self, batch: Batch, dtype: jax.typing.DTypeLike) -> dict[str, jax.Array]:
        return {"pixel_values": batch["pixel_values"].transpose(0, 3, 1, 2).astype(dtype)}

    def _module_depths(self) -> dict[str, int]:
        """The depth of each submodule: the highest of what is in it, and of one without parameters,
        as dropout, that of the nearest module around it that has some."""
        found: dict[str, int] = {}
        for path, depth in (self.depths | self.statistics).items():
            name = path.replace("/", ".")
            while "." in name:
                name = name.rpartition(".")[0]
                found[name] = max(found.get(name, 0), depth)
        for name, _ in self.built.module.named_modules():
            if name not in found:
                parent = name.rpartition(".")[0]
                # Directly in the model: its own dropout comes before the head.
                found[name] = found.get(parent, self.num_blocks + 1)
        return found


def _texts(batch: Batch) -> int:
    """G, of the example in each row."""
    return batch["starts"].shape[1] if "starts" in batch else 1


def _at_the_end(texts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """[…, M] with padding before the texts, and not after them."""
    segments = texts["segment_ids"]
    width = segments.shape[-1]
    count = (segments > 0).sum(-1, keepdims=True)
    places = (jnp.arange(width) + count) % width
    return {name: jnp.take_along_axis(x, places, axis=-1) for name, x in texts.items()}
