"""Pairs of answers of which one is preferred: their columns, and both as tokens in one entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.chat import (
    Message,
    NoConversation,
    contents_key,
    conversation_of,
    messages_of,
    rows_read,
    usable_rows,
)
from jaxft.data.chat_template import ChatTemplate
from jaxft.data.conversations import encoded
from jaxft.data.encode import Encoded, kept
from jaxft.data.files import Source
from jaxft.data.labels import find_column
from jaxft.data.targets import Batch, Unlabelled
from jaxft.data.tokens import Tokens, grouped, joined

GROUPS = (
    ("prompt", "chosen", "rejected"),
    ("question", "chosen", "rejected"),
    ("instruction", "chosen", "rejected"),
    ("chosen", "rejected"),
)
Pair = tuple[
    list[Message], list[Message], int
]  # both conversations, and how many messages they share


@dataclasses.dataclass(frozen=True)
class Preferences(Unlabelled):
    """Pairs of answers, as targets of a task; see `Targets`.

    reference [n, 2] float32: of the preferred and the other answer what the model that training begins
    with says, the sum of their tokens' log-probabilities; None: not known yet.
    """

    reference: np.ndarray | None = None

    def take(self, positions: np.ndarray) -> Preferences:
        rows = self.rows[positions]
        reference = None if self.reference is None else self.reference[positions]
        return Preferences(
            rows, np.arange(len(rows) + 1), dropped=self.dropped, reference=reference
        )

    def with_reference(self, reference: np.ndarray) -> Preferences:
        """The same with it: [n, 2]."""
        assert reference.shape == (len(self), 2), reference.shape
        return dataclasses.replace(self, reference=reference.astype(np.float32))

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """'weight' and 'index' [R, K], and 'reference' [R, K, 2] where it is known; 0 where empty."""
        found = super().fill(slots, inputs)
        if self.reference is not None:
            real = (slots >= 0)[..., None]
            found["reference"] = np.where(real, self.reference[slots], 0).astype(np.float32)
        return found


def find_preference_columns(
    source: Source, given: Sequence[str] = (), label: str = ""
) -> tuple[str, ...]:
    """A prompt, the preferred and the other answer; or two conversations with the same beginning."""
    if given and len(given) not in (2, 3):
        raise ValueError(
            "a preference is in three columns, the prompt, the preferred and the other answer, or in two of "
            f"whole conversations; got {len(given)}: {', '.join(given)}"
        )
    if given:
        return tuple(find_column(source, name, (), "text", option="text") for name in given)
    for group in GROUPS:
        if all(name in source.columns for name in group):
            return group
    raise ValueError(
        f"{source.name} has no columns of preferences (prompt, chosen, rejected) among "
        f"{', '.join(source.columns)}; name them in this order by config.data.text"
    )


def pair_of(values: Sequence[Any]) -> Pair:
    """Both conversations of a row, from the values of its columns, and how many messages they share.

    Raises:
      NoConversation: they are none, or there is nothing to prefer.
    """
    *prompt, chosen, rejected = values
    both = []
    for name, answer in (("preferred", chosen), ("other", rejected)):
        answer = messages_of(answer)
        if not isinstance(answer, str) and not (answer and answer[0]["role"] == "assistant"):
            both.append(answer)  # a whole conversation, the prompt in it
        elif not prompt:
            raise NoConversation(f"has no prompt: its {name} answer is no whole conversation")
        else:
            both.append(conversation_of((prompt[0], answer)))
    first, second = both
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    for name, messages in (("preferred", first), ("other", second)):
        if first != second and len(messages) == shared:
            raise NoConversation(f"has a {name} answer that is the beginning of the other one")
    if first == second:
        shared = len(first) - 1
    for name, messages in (("preferred", first), ("other", second)):
        if messages[-1]["role"] != "assistant":
            raise NoConversation(f"has a {name} answer that does not end with the assistant")
    if not shared:
        raise NoConversation("has two conversations that do not begin alike, so there is no prompt")
    return first, second, shared


def read_preferences(
    source: Source, columns: Sequence[str], *, drop_bad: bool = False, advice: str = ""
) -> Preferences:
    """The rows of a source that are pairs of answers. Arguments and errors as of `read_conversations`."""
    rows, faulty = usable_rows(
        source, columns, pair_of, "the row", drop_bad=drop_bad, advice=advice
    )
    return Preferences(rows, np.arange(len(rows) + 1), dropped=faulty)


def every_preference(source: Source, columns: Sequence[str]) -> Preferences:
    """All rows, to be predicted."""
    return Preferences(np.arange(len(source)), np.arange(len(source) + 1))


def shown_preference(values: Sequence[Any]) -> str:
    """What a reader sees of a row."""
    try:
        first, second, shared = pair_of(values)
    except NoConversation:
        return " | ".join(map(str, values))
    texts = (" ".join(m["content"] for m in part) for part in (first[shared:], second[shared:]))
    return f"{first[shared - 1]['content']} | preferred: {' | other: '.join(texts)}"


def tokenize_preferences(
    source: Source,
    rows: np.ndarray,
    columns: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    template: ChatTemplate,
    *,
    max_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises both conversations of each pair, one after the other, into an entry of two texts.

    'counted' of `Tokens.extra` is 1 of the tokens of an answer, which is what the template writes beyond
    the prompt, 2 of its last, else 0. Arguments, cache and errors as of
    `conversations.tokenize_conversations`.
    """

    def part(rows: np.ndarray) -> Tokens:
        how = [template.source, dict(template.special), max_length]
        return kept(
            lambda: _encoded(source, rows, columns, tokenizer, template, max_length, vocab_size),
            ("counted",), _key(source, rows, columns, tokenizer, how) if cache_dir else "",
            2 * len(rows), tokenizer, vocab_size=vocab_size, cache_dir=cache_dir,
        )  # fmt: skip

    tokens = joined([part(shard) for shard in token_cache.shards(rows)])
    ends = tokens.extra["counted"]
    whole = np.add.reduceat(ends[np.arange(len(ends))] == 2, tokens.offsets[:-1])
    if not whole.any():
        raise ValueError(
            f"{source.name}: every answer is cut off at {max_length} tokens: raise config.data.max_length"
        )
    return dataclasses.replace(
        grouped(tokens, 2), cut=int((whole == 0).sum()), cut_things="answers"
    )


def _encoded(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokenizer: tokenizers.Tokenizer,
    template: ChatTemplate, max_length: int, vocab_size: int,
) -> Iterator[Encoded]:  # fmt: skip
    for numbers, pairs in _pairs(source, rows, columns):
        written = []
        for row, (first, second, shared) in zip(numbers, pairs, strict=True):
            try:
                written += [_written(template, messages, shared) for messages in (first, second)]
            except ValueError as error:
                raise ValueError(f"{source.where(row)}: {error}") from None
        yield encoded(tokenizer, written, True, max_length, vocab_size, source.name)


def _written(
    template: ChatTemplate, messages: list[Message], shared: int
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation, and where in it the answer is."""
    prompt, text = template.prompt(messages[:shared]), template.text(messages)
    if not text.startswith(prompt):
        raise ValueError(
            "the chat template writes the prompt otherwise when an answer follows, so the answer cannot be "
            "told from it"
        )
    return text, [(len(prompt), len(text))]


def _pairs(
    source: Source, rows: np.ndarray, columns: Sequence[str]
) -> Iterator[tuple[list[int], list[Pair]]]:
    """Some rows after the other, with their pairs."""
    return rows_read(source, rows, columns, pair_of, "the row")


def _key(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokenizer: tokenizers.Tokenizer,
    how: Sequence[Any],
) -> str:  # fmt: skip
    parts = (pairs for _, pairs in _pairs(source, rows, columns))
    return contents_key(f"pairs {token_cache.VERSION} {len(rows)} ", how, tokenizer, parts)
