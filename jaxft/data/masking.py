"""Masked tokens, as BERT learns from them (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxft.data.corruption import each_entry
from jaxft.data.targets import Batch

# Of the tokens that are to be guessed: those that are hidden; of the rest half are some other token.
_HIDDEN, _HIDDEN_OR_OTHER = 0.8, 0.9


@dataclasses.dataclass(frozen=True)
class Masking:
    """A `Corruption` that asks for some tokens; another choice in each epoch.

    Each token (or each word, with all of its tokens) is chosen with the same probability. Of the chosen
    tokens 80 % become the mask token, 10 % any token, and 10 % stay.

    Attributes:
      share: that probability.
      mask: id of the mask token.
      vocabulary: ids that a random token may have are below it.
      whole_words: choose words.
      seed: of the choice.

    Of a batch it reads 'word' [R, L]: of each token the number of its word, -1 of one that is never
    chosen. It changes input_ids and adds 'original' [R, L] int32, as they were, and 'chosen' [R, L] bool.
    """

    share: float
    mask: int
    vocabulary: int
    whole_words: bool
    seed: int

    def __call__(self, inputs: Batch, slots: np.ndarray, epoch: int) -> Batch:
        original, words = inputs["input_ids"], inputs["word"]
        chosen, ids = np.zeros(original.shape, bool), original.copy()
        for generator, row, columns in each_entry(inputs, slots, self.seed, epoch):
            own = words[row, columns]
            draws, fate = generator.random((2, len(own)))
            other = generator.integers(self.vocabulary, size=len(own))
            if self.whole_words:
                draws = draws[np.unique(own, return_inverse=True)[1]]
            chosen[row, columns] = (own >= 0) & (draws < self.share)
            ids[row, columns] = np.select(
                [fate < _HIDDEN, fate < _HIDDEN_OR_OTHER], [self.mask, other], ids[row, columns]
            )
        return {
            **inputs,
            "input_ids": np.where(chosen, ids, original),
            "original": original,
            "chosen": chosen,
        }
