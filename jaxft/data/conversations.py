"""Conversations -> token ids, with the tokens that are to be learned: the completions, or all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.chat import Message, answered, contents_key, conversation_of, rows_read
from jaxft.data.chat_template import ChatTemplate
from jaxft.data.encode import Encoded, kept
from jaxft.data.files import Source
from jaxft.data.text import check_vocabulary
from jaxft.data.tokenizer import attempt
from jaxft.data.tokens import Tokens, joined


def tokenize_conversations(
    source: Source,
    rows: np.ndarray,
    columns: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    template: ChatTemplate,
    *,
    completions_only: bool,
    max_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises conversations as the template writes them; what is beyond max_length is cut off.

    'counted' of `Tokens.extra` is 1 of each token that is learned, 2 where it is the last of a completion,
    else 0; `Tokens.cut` says how many completions are cut or left out. A token is of a completion if any of
    its characters are, as `apply_chat_template` has it.

    Arguments and cache as of `text.tokenize`.

    Raises:
      ValueError: a row is no conversation, or the template refuses it, naming it; every completion is cut.
    """

    def part(rows: np.ndarray) -> Tokens:
        key = ""
        if cache_dir:
            how = [template.source, dict(template.special), completions_only, max_length]
            key = _key(source, rows, columns, tokenizer, how)
        tokens = kept(
            lambda: _encoded(
                source, rows, columns, tokenizer, template, completions_only, max_length, vocab_size
            ),
            ("counted",), key, len(rows), tokenizer, vocab_size=vocab_size, cache_dir=cache_dir,
        )  # fmt: skip
        return dataclasses.replace(
            tokens, cut=_cut(source, rows, columns, tokens, max_length), cut_things="completions"
        )

    tokens = joined([part(shard) for shard in token_cache.shards(rows)])
    if (empty := np.flatnonzero(tokens.lengths == 0)).size:
        raise ValueError(
            f"{source.where(int(rows[empty[0]]))}: the chat template writes nothing of it; {len(empty)} "
            "such in all: leave them out"
        )
    counted = tokens.extra["counted"]
    if not (counted[np.arange(len(counted))] > 0).any():
        raise ValueError(
            f"{source.name}: every completion lies beyond the first {max_length} tokens of its conversation, "
            "so nothing would be learned: raise config.data.max_length"
        )
    return tokens


def _encoded(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokenizer: tokenizers.Tokenizer,
    template: ChatTemplate, completions_only: bool, max_length: int, vocab_size: int,
) -> Iterator[Encoded]:  # fmt: skip
    for numbers, conversations in _conversations(source, rows, columns):
        written = []
        for row, messages in zip(numbers, conversations, strict=True):
            try:
                written.append(
                    template.rendered(messages)
                    if completions_only
                    else (template.text(messages), [])
                )
            except ValueError as error:
                raise ValueError(f"{source.where(row)}: {error}") from None
        yield encoded(tokenizer, written, completions_only, max_length, vocab_size, source.name)


def encoded(
    tokenizer: tokenizers.Tokenizer,
    written: Sequence[tuple[str, Sequence[tuple[int, int]]]],
    completions_only: bool,
    max_length: int,
    vocab_size: int,
    name: str,
) -> Encoded:
    """Of texts with the [start, end) of their completions, each cut to max_length; `name`: for messages."""
    encodings = attempt(
        functools.partial(
            tokenizer.encode_batch, [text for text, _ in written], add_special_tokens=False
        ),
        f"the checkpoint's tokenizer fails on the texts of {name}",
    )
    counted = []
    for encoding, (_, spans) in zip(encodings, written, strict=True):
        counted.append(_counted(encoding.offsets, spans, completions_only)[:max_length])
    ids = np.concatenate([np.array(one.ids[:max_length], np.int32) for one in encodings])
    check_vocabulary(int(ids.max(initial=-1)), tokenizer, vocab_size)
    lengths = np.array(list(map(len, counted)), np.int32)
    return Encoded(lengths, lengths, ids, {"counted": np.concatenate(counted)})


def _counted(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], completions_only: bool
) -> np.ndarray:
    """[tokens] int32; see `tokenize_conversations`. Offsets and spans are in order."""
    found = np.full(len(offsets), 0 if completions_only else 1, np.int32)
    if not spans:
        return found
    start, end = (np.array([pair[k] for pair in offsets]) for k in (0, 1))
    for first, last in spans:
        own = np.flatnonzero((start < last) & (end > first))
        found[own] = 1
        found[own[-1:]] = 2
    return found


def _cut(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokens: Tokens, max_length: int
) -> int:
    """Completions that do not end within the tokens of their conversation."""
    counted = tokens.extra["counted"]
    full = np.flatnonzero(tokens.lengths == max_length)
    if not (counted[np.arange(len(counted))] == 2).any() or not len(full):
        return 0
    lost = 0
    there = (m for _, part in _conversations(source, rows[full], columns) for m in part)
    for j, messages in zip(full.tolist(), there, strict=True):
        own = counted[np.arange(*tokens.offsets[j : j + 2])]
        lost += sum(m["role"] == "assistant" for m in messages) - int((own == 2).sum())
    return lost


def _conversations(
    source: Source, rows: np.ndarray, columns: Sequence[str]
) -> Iterator[tuple[list[int], list[list[Message]]]]:
    """Some rows after the other, with their messages."""
    return rows_read(source, rows, columns, lambda values: answered(conversation_of(values)), "it")


def _key(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokenizer: tokenizers.Tokenizer,
    how: Sequence[Any],
) -> str:  # fmt: skip
    parts = (conversations for _, conversations in _conversations(source, rows, columns))
    return contents_key(f"chat {token_cache.VERSION} {len(rows)} ", how, tokenizer, parts)
