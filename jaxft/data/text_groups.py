"""Rows of texts that are embedded one by one: pairs of alike ones, with unlike ones after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers

from jaxft.data.choices import tokenize_groups
from jaxft.data.files import Source, some
from jaxft.data.labels import find_column
from jaxft.data.questions import text_of
from jaxft.data.text import TEXT_COLUMNS, set_truncation
from jaxft.data.tokens import Tokens

# Names under which two texts that are alike are commonly found; columns that begin with 'negative' follow.
ALIKE_COLUMNS = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "document"),
    ("query", "passage"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question", "answer"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
)
SCORE_COLUMNS = ("score", "similarity", "similarity_score")


def find_text_group(source: Source, given: Sequence[str], label: str) -> tuple[str, ...]:
    """The columns of texts, of any number: as given, pairs with usual names, or one text."""
    if given:
        return tuple(find_column(source, name, (), "text", option="text") for name in given)
    for pair in ALIKE_COLUMNS:
        if set(pair) <= set(source.columns):
            unlike = [name for name in source.columns if name.startswith("negative")]
            return (*pair, *unlike)
    others = [name for name in source.columns if name != label]
    if len(others) == 1:
        return (others[0],)
    known = (*TEXT_COLUMNS, "anchor", "query", "question")
    if not any(name in source.columns for name in known):
        raise ValueError(
            f"{source.name}: no texts to embed found among {some(source.columns)}; name them by "
            "config.data.text (or call them 'anchor' and 'positive')"
        )
    return (find_column(source, "", known, "text", option="text"),)


def tokenize_text_group(
    source: Source,
    rows: np.ndarray,
    columns: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    *,
    max_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises the texts of each row, each by itself. Arguments, cache and errors as of `text.tokenize`."""
    set_truncation(tokenizer, max_length)

    def texts(rows: np.ndarray) -> Iterator[list[str]]:
        for _, values in source.chunks(columns, rows):
            yield [text_of(value) for row in zip(*values, strict=True) for value in row]

    return tokenize_groups(
        texts, source, rows, len(columns), tokenizer, vocab_size=vocab_size, cache_dir=cache_dir
    )
