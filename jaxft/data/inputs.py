"""The kinds of inputs that a task may have, one record each: columns, checks, tokens.

A kind whose inputs are texts says how rows become tokens; batches of them are made of `Tokens` alone. To add
one: its file, and its line in KINDS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxft.data.chat import find_chat_columns, shown_chat
from jaxft.data.chat_template import FILE, load_template
from jaxft.data.checks import path_fault, text_fault
from jaxft.data.choices import choice_fault, find_choice_columns, tokenize_choices
from jaxft.data.choices import shown as shown_choices
from jaxft.data.conversations import tokenize_conversations
from jaxft.data.corruption import Corruption
from jaxft.data.documents import find_document_column, tokenize_documents
from jaxft.data.files import Column, Source
from jaxft.data.images import find_image_column
from jaxft.data.masked_texts import tokenize_masked
from jaxft.data.masking import Masking
from jaxft.data.preferences import (
    every_preference,
    find_preference_columns,
    shown_preference,
    tokenize_preferences,
)
from jaxft.data.questions import find_question_columns, text_of, tokenize_questions
from jaxft.data.special_tokens import special_token
from jaxft.data.targets import Unlabelled, unlabelled, unlabelled_words
from jaxft.data.text import find_text_columns, tokenize
from jaxft.data.text_groups import find_text_group, tokenize_text_group
from jaxft.data.text_to_text import find_source_column, tokenize_both
from jaxft.data.tokenizer import load_tokenizer
from jaxft.data.tokens import Tokens
from jaxft.data.words import find_words_column, tokenize_words, words_fault, words_of


@dataclasses.dataclass(frozen=True)
class Tokenising:
    """How rows become tokens.

    Attributes:
      directory: the checkpoint's, for its tokenizer.
      max_length: of an entry, in tokens, special ones included.
      vocab_size: of the model: ids are below it.
      cache_dir: where tokens are kept; None: in memory.
      settings: the config fields that the kind asks for, by dotted name.
    """

    directory: str
    max_length: int
    vocab_size: int
    cache_dir: str | None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def usual(self) -> dict[str, Any]:
        """The arguments that every kind of texts takes."""
        return {
            "max_length": self.max_length,
            "vocab_size": self.vocab_size,
            "cache_dir": self.cache_dir,
        }

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The checkpoint's, read anew: each kind sets its own truncation."""
        return load_tokenizer(self.directory)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of inputs.

    Attributes:
      name: for messages, and the key under which rows of predictions show it.
      find_columns: `(source, given, label) ->` the columns that are read: as given, or found by usual
        names. label: the column of the targets, '' where there is none.
      fault: what keeps a value of such a column from being used, or ''; None: that is found when the
        targets are read, of all of a row's values together.
      model: 'text' or 'image': which models take it.
      tokens: `(source, rows, columns, how)`; None: images.
      shown: `values ->` what a reader sees of a row of texts, of the values of its columns.
      unlabelled: `(source, columns) ->` all rows, to be predicted.
      pairs: two columns are one text after the other, which token types have to tell apart.
      windowed: an example may become several entries (`Tokens.windows`), so that the number of
        entries, by which epochs are counted, is known only when the texts have been tokenised.
      answers: the targets are texts that the model is to give, so their column is tokenised, too, as the
        last of `columns`; where rows are predicted it is not there.
      settings: config fields that its tokens depend on, beyond data.max_length.
      corrupt: `(how, seed)`: what happens to the tokens of a batch, also where they are evaluated (there
        with seed 0); None: nothing.
      says: `(directory of the checkpoint) ->` what is to be known of how its inputs are read, or ''.
      companions: `(directory of the checkpoint) ->` files, name -> text, that an export has beside those
        that it copies, so that its inputs become the same tokens.
      alone: each column is a text of its own, so that others may be read than those of the training.
    """

    name: str
    find_columns: Callable[[Source, Sequence[str], str], tuple[str, ...]]
    fault: Callable[[Any], str] | None
    model: str = "text"
    tokens: Callable[[Source, np.ndarray, Sequence[str], Tokenising], Tokens] | None = None
    shown: Callable[[Sequence[Any]], str] = lambda values: " | ".join(map(str, values))
    unlabelled: Callable[[Source, Sequence[str]], Unlabelled] = lambda source, columns: unlabelled(
        len(source)
    )
    pairs: bool = False
    windowed: bool = False
    answers: bool = False
    settings: tuple[str, ...] = ()
    corrupt: Callable[[Tokenising, int], Corruption] | None = None
    says: Callable[[str], str] = lambda directory: ""
    companions: Callable[[str], Mapping[str, str]] = lambda directory: {}
    alone: bool = False


def _tokens_of_documents(
    source: Source, rows: np.ndarray, columns: Sequence[str], how: Tokenising
) -> Tokens:
    tokenizer = how.tokenizer()
    end = special_token(tokenizer, how.directory, "eos")
    return tokenize_documents(source, rows, columns[0], tokenizer, end=end, **how.usual)


def _masking(how: Tokenising, seed: int) -> Masking:
    tokenizer = how.tokenizer()
    mask = special_token(tokenizer, how.directory, "mask")
    if mask is None or mask >= how.vocab_size:  # as transformers adds one to a BERT without it
        raise ValueError(
            f"{how.directory} has no mask token that its model knows, so nothing can be masked; for a "
            "model of the next token: config.task='causal_lm'"
        )
    share, whole_words = (how.settings[name] for name in _MASKING)
    vocabulary = min(tokenizer.get_vocab_size(), how.vocab_size)
    return Masking(share, mask, vocabulary, whole_words, seed)


def _one_text(source: Source, columns: Sequence[str]) -> Unlabelled:
    if len(columns) > 1:
        raise ValueError(
            f"{source.name}: the texts of one column are embedded at a time, not those of "
            f"{', '.join(columns)}; name it by --text"
        )
    return unlabelled(len(source))


def _with_contexts(source: Source, columns: Sequence[str]) -> Unlabelled:
    contexts = Column(source, columns[1], np.arange(len(source)), text_of)
    return dataclasses.replace(unlabelled(len(source)), contexts=contexts)


def _tokens_of_conversations(
    source: Source, rows: np.ndarray, columns: Sequence[str], how: Tokenising
) -> Tokens:
    tokenizer = how.tokenizer()
    template = load_template(how.directory, tokenizer)
    alone = how.settings["data.loss_on"] == "completions"
    return tokenize_conversations(
        source, rows, columns, tokenizer, template, completions_only=alone, **how.usual
    )


def _tokens_of_preferences(
    source: Source, rows: np.ndarray, columns: Sequence[str], how: Tokenising
) -> Tokens:
    tokenizer = how.tokenizer()
    template = load_template(how.directory, tokenizer)
    return tokenize_preferences(source, rows, columns, tokenizer, template, **how.usual)


def _chat_template(directory: str) -> dict[str, str]:
    """A file with the template by which conversations were written, where the checkpoint has none."""
    template = load_template(directory, load_tokenizer(directory))
    return {} if template.own else {FILE: template.source}


def _said_of_template(directory: str) -> str:
    own = load_template(directory, load_tokenizer(directory)).own
    plain = "a plain one is used ('User: …', 'Assistant: …'), and exported"
    return "" if own else f"the checkpoint has no chat template: {plain}"


def _tokens_of_both(
    source: Source, rows: np.ndarray, columns: Sequence[str], how: Tokenising
) -> Tokens:
    prefix, most = (how.settings[name] for name in _BOTH)
    return tokenize_both(
        source, rows, columns, how.directory, prefix=prefix, max_target_length=most, **how.usual
    )


def _every_word(source: Source, columns: Sequence[str]) -> Unlabelled:
    return unlabelled_words(Column(source, columns[0], np.arange(len(source)), words_of))


_MASKING = ("data.mask_share", "data.mask_whole_words")
_BOTH = ("data.prefix", "data.max_target_length")
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "text",
            find_text_columns,
            text_fault,
            tokens=lambda source, rows, columns, how: tokenize(
                source, rows, columns, how.tokenizer(), **how.usual
            ),
            pairs=True,
        ),
        Kind(
            "document", find_document_column, text_fault, tokens=_tokens_of_documents, windowed=True
        ),
        Kind(
            "masked text",
            find_document_column,
            text_fault,
            tokens=lambda source, rows, columns, how: tokenize_masked(
                source, rows, columns[0], how.tokenizer(), **how.usual
            ),
            windowed=True,
            settings=_MASKING,
            corrupt=_masking,
        ),
        Kind(
            "conversation",
            find_chat_columns,
            None,
            tokens=_tokens_of_conversations,
            shown=shown_chat,
            settings=("data.loss_on",),
            companions=_chat_template,
            says=_said_of_template,
        ),
        Kind(
            "preference",
            find_preference_columns,
            None,
            tokens=_tokens_of_preferences,
            shown=shown_preference,
            unlabelled=every_preference,
            companions=_chat_template,
            says=_said_of_template,
        ),
        Kind(
            "words",
            lambda source, given, label: find_words_column(source, given),
            words_fault,
            tokens=lambda source, rows, columns, how: tokenize_words(
                source, rows, columns[0], how.tokenizer(), **how.usual
            ),
            shown=lambda values: " ".join(words_of(values[0])),
            unlabelled=_every_word,
        ),
        Kind(
            "question",
            lambda source, given, label: find_question_columns(source, given),
            text_fault,
            tokens=lambda source, rows, columns, how: tokenize_questions(
                source,
                rows,
                columns,
                how.tokenizer(),
                stride=how.settings["data.stride"],
                **how.usual,
            ),
            shown=lambda values: text_of(values[0]),
            unlabelled=_with_contexts,
            pairs=True,
            windowed=True,
            settings=("data.stride",),
        ),
        Kind(
            "choices",
            find_choice_columns,
            choice_fault,
            tokens=lambda source, rows, columns, how: tokenize_choices(
                source, rows, columns, how.tokenizer(), **how.usual
            ),
            shown=shown_choices,
            pairs=True,
        ),
        Kind(
            "texts",
            find_text_group,
            text_fault,
            tokens=lambda source, rows, columns, how: tokenize_text_group(
                source, rows, columns, how.tokenizer(), **how.usual
            ),
            unlabelled=_one_text,
            alone=True,
        ),
        Kind(
            "text to text",
            find_source_column,
            text_fault,
            tokens=_tokens_of_both,
            answers=True,
            settings=_BOTH,
        ),
        Kind(
            "image",
            lambda source, given, label: (find_image_column(source, given[0] if given else ""),),
            path_fault,
            model="image",
        ),
    )
}
