"""Noise in the tokens of training texts: some are hidden, some words change places.

Neither the texts nor their tokens on the disk change, and special tokens stay as they are.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import tokenizers

from jaxft.data.corruption import each_entry
from jaxft.data.special_tokens import special_token, unknown_token
from jaxft.data.targets import Batch

# How a tokenizer writes a token that begins a word, where it does not mark those that continue one.
_WORD_STARTS = ("Ġ", "▁", " ")


@dataclasses.dataclass(frozen=True)
class TextNoise:
    """A `Corruption` of the tokens of texts; other noise in each epoch.

    Attributes:
      dropout: probability of each token to be replaced.
      swap: probability of each word to change places with the next one (Wei & Zou 2019, arXiv:1901.11196,
        swap any two); a word changes places once.
      hidden: id of the token that stands for what was replaced.
      special: [V] bool, ids that are never touched.
      begins: [V] bool, ids that begin a word.
      seed: of the choice.
    """

    dropout: float
    swap: float
    hidden: int
    special: np.ndarray
    begins: np.ndarray
    seed: int

    def __call__(self, inputs: Batch, slots: np.ndarray, epoch: int) -> Batch:
        ids = inputs["input_ids"].copy()
        types = inputs["token_type_ids"]
        for generator, row, columns in each_entry(inputs, slots, self.seed, epoch):
            own, draws = ids[row, columns], generator.random((2, columns.stop - columns.start))
            fixed = self.special[own]
            if self.swap:
                own[:] = own[self._order(own, fixed, types[row, columns], draws[0])]
            own[~fixed & (draws[1] < self.dropout)] = self.hidden
        return {**inputs, "input_ids": ids}

    def _order(
        self, own: np.ndarray, fixed: np.ndarray, types: np.ndarray, draws: np.ndarray
    ) -> np.ndarray:
        """Places from which the tokens are taken; a special token, or another text, is passed by no word."""
        edge = self.begins[own] | fixed | (np.diff(types, prepend=types[:1]) != 0)
        edge[0] = True
        edge[1:] |= fixed[:-1]
        starts = np.flatnonzero(edge)
        ends = np.append(starts[1:], len(own))
        order, word = np.arange(len(own)), 0
        while word + 1 < len(starts):
            a, b, c = starts[word], starts[word + 1], ends[word + 1]
            apart = fixed[a] or fixed[b] or types[a] != types[b]
            if not apart and draws[a] < self.swap:
                order[a:c] = np.concatenate([np.arange(b, c), np.arange(a, b)])
                word += 1
            word += 1
        return order


def text_noise(
    tokenizer: tokenizers.Tokenizer, directory: str, vocab_size: int, *, dropout: float, swap: float,
    seed: int,
) -> TextNoise:  # fmt: skip
    """The noise for a checkpoint's tokenizer: what is hidden becomes its mask token, or else the unknown one.

    Raises ValueError: it has neither, and tokens are to be hidden.
    """
    hidden = special_token(tokenizer, directory, "mask")
    hidden = unknown_token(tokenizer) if hidden is None else hidden
    if hidden is None and dropout:
        raise ValueError(
            f"{directory}: its tokenizer has neither a mask token nor an unknown one to put in the place of "
            "others, so config.data.token_dropout must be 0"
        )
    special = np.zeros(vocab_size, bool)
    numbers = [n for n, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    numbers += tokenizer.encode("").ids  # what it puts around a text, if it does not say so
    numbers += [] if hidden is None else [hidden]
    special[[number for number in numbers if number < vocab_size]] = True
    return TextNoise(
        dropout,
        swap,
        -1 if hidden is None else hidden,
        special,
        _begins(tokenizer, vocab_size),
        seed,
    )


def _begins(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> np.ndarray:
    """[V] bool; of a tokenizer that marks neither beginnings nor continuations, each token is a word."""
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = [(w, n) for w, n in tokenizer.get_vocab().items() if n < vocab_size]
    begins = np.zeros(vocab_size, bool)
    numbers = np.array([n for _, n in vocabulary], np.int64)
    if prefix := model.get("continuing_subword_prefix"):
        begins[numbers] = [not word.startswith(prefix) for word, _ in vocabulary]
    else:
        begins[numbers] = [word.startswith(_WORD_STARTS) for word, _ in vocabulary]
    return begins if begins.any() else ~begins
