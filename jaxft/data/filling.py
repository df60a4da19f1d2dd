"""Token ids, and what is kept of a frozen prefix, into the rows of a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxft.data.kept import Kept, Places
from jaxft.data.targets import Batch
from jaxft.data.tokens import Answers, Tokens


class Placed(NamedTuple):
    """Where the texts of some entries lie in rows.

    Attributes:
      real: [R, K * G] bool, of texts that there are.
      starts: [R, K * G] column of each one's first token.
      slot, second: [texts that there are], each one's slot, and where its token type 1 begins.
      size: [the same] its tokens.
      entry: [the same] its entry.
      position, source, target: [tokens], of each its position in its text, its number among all tokens,
        and its place in the rows, one after the other.
    """

    real: np.ndarray
    starts: np.ndarray
    slot: np.ndarray
    second: np.ndarray
    size: np.ndarray
    entry: np.ndarray
    position: np.ndarray
    source: np.ndarray
    target: np.ndarray


def placed(tokens: Tokens, slots: np.ndarray, length: int) -> Placed:
    """The entries in slots [R, K] one after the other in rows of `length` tokens."""
    if tokens.parts is None:
        own = (tokens.offsets[slots + 1] - tokens.offsets[slots])[:, :, None]
    else:
        own = tokens.parts[slots]
    # [R, K, G] so far, of the G texts of each entry; [R, K * G], a text each, from here on.
    begins = tokens.offsets[slots][:, :, None] + np.cumsum(own, axis=2) - own
    begins, own, second = (
        array.reshape(len(slots), -1) for array in (begins, own, tokens.second[slots])
    )
    entries = np.repeat(slots, tokens.texts, axis=1)
    real = entries >= 0
    sizes = np.where(real, own, 0)
    starts = np.cumsum(sizes, axis=1) - sizes
    if tokens.even:  # of one entry a row
        starts = np.broadcast_to(np.arange(tokens.texts) * (length // tokens.texts), starts.shape)
    row, slot = np.nonzero(real)
    begin, size = begins[row, slot], sizes[row, slot]
    # One number per token from here on: its position in its text, its source and its target.
    position = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    source = np.repeat(begin, size) + position
    target = np.repeat(row * length + starts[row, slot], size) + position
    return Placed(
        real, starts, slot, second[row, slot], size, entries[row, slot], position, source, target
    )


def fill_text(tokens: Tokens, slots: np.ndarray, length: int) -> Batch:
    """Writes the entries in slots [R, K] one after the other into rows of `length` tokens."""
    at = placed(tokens, slots, length)

    def scatter(values: np.ndarray) -> np.ndarray:
        flat = np.zeros(len(slots) * length, np.int32)
        flat[at.target] = values
        return flat.reshape(len(slots), length)

    inputs = {
        "input_ids": scatter(tokens.ids[at.source]),
        "segment_ids": scatter(np.repeat(at.slot + 1, at.size)),
        "positions": scatter(at.position),
        "token_type_ids": scatter(at.position >= np.repeat(at.second, at.size)),
        "starts": np.where(at.real, at.starts, 0).astype(np.int32),
    }
    for name, values in tokens.extra.items():
        inputs[name] = scatter(values[at.source] + 1) - 1
    return inputs


def fill_answers(answers: Answers, slots: np.ndarray, length: int) -> Batch:
    """The answers of the entries in slots [R, K], in rows beside theirs, which have `length` tokens.

    decoder_input_ids (what is read before each token), decoder_segment_ids (as of the entries),
    decoder_positions and labels: [R, M] int32.
    """
    given = fill_text(answers.tokens, slots, answers.row_length(length))
    labels, segments, positions = (
        given[name] for name in ("input_ids", "segment_ids", "positions")
    )
    before = np.where(positions == 0, answers.start, np.roll(labels, 1, axis=1))
    return {
        "decoder_input_ids": np.where(segments > 0, before, 0).astype(np.int32),
        "decoder_segment_ids": segments,
        "decoder_positions": positions,
        "labels": labels,
    }


def places_of(kept: Kept, tokens: Tokens | None, slots: np.ndarray, length: int) -> Places:
    """Where the units of the entries in some slots lie in the array that a batch has of them.

    Args:
      tokens: of texts, [R, K] of whose entries are in `slots`; None: images, [B].
      length: of a row of texts; 0 of images.
    """
    if kept.space == "tokens" or kept.space == "answers":
        assert tokens is not None
        if kept.space == "answers":
            assert tokens.answers is not None
            length, tokens = tokens.answers.row_length(length), tokens.answers.tokens
        at = placed(tokens, slots, length)
        moved = np.repeat(kept.starts[at.entry] - tokens.offsets[at.entry], at.size)
        return Places(at.source + moved, at.target, (len(slots), length))
    texts = 1 if tokens is None else tokens.texts
    units = kept.starts[slots][..., None] + np.arange(texts)
    target = np.flatnonzero(np.repeat(slots.reshape(-1) >= 0, texts))
    shape = slots.shape if tokens is None else (len(slots), slots.shape[1] * texts)
    return Places(units.reshape(-1)[target], target, shape)


def fill_kept(kept: Kept, tokens: Tokens | None, slots: np.ndarray, length: int = 0) -> Batch:
    """What is kept of the entries in some slots, in the places of a batch; 0 elsewhere. See `places_of`."""
    at = places_of(kept, tokens, slots, length)
    flat = np.zeros((int(np.prod(at.shape)), *kept.unit), kept.dtype)
    flat[at.target] = kept[at.units]
    return {kept.name: flat.reshape(*at.shape, *kept.unit)}
