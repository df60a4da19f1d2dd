"""Text columns -> token ids, once: flat arrays that are cached on disk and memory-mapped.

Texts are read, hashed and tokenised a few at a time; they are never all in memory. Nothing here
knows about batches; `Tokens.lengths` is what batching.py plans with.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from jaxft.data import token_cache
from jaxft.data.facts import digest_of, packed, unpacked
from jaxft.data.files import IMAGE_SUFFIXES, Source
from jaxft.data.labels import find_column
from jaxft.data.tokenizer import attempt, load_tokenizer
from jaxft.data.tokens import Tokens, gathered, joined

__all__ = ["Tokens", "find_text_columns", "load_tokenizer", "tokenize"]

# Names under which text columns are commonly found; a pair counts only if both are there, and
# pairs come first because some pair datasets also carry the two texts in one column.
PAIR_COLUMNS = (
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text1", "text2"),
)
TEXT_COLUMNS = ("text", "sentence", "content", "review", "document", "message", "comment", "tweet")

# Texts given to the tokenizer at a time, at most: enough for its threads, and little memory, since
# an encoding holds some ten Python objects per token until its ids are copied out, also of the
# tokens beyond max_length. So many characters end a chunk, however few its texts.
CHUNK, CHUNK_CHARACTERS = 1024, 1 << 20


def find_text_columns(
    source: Source, given: Sequence[str] = (), label: str = ""
) -> tuple[str, ...]:
    """One or two text columns: as given, or usual names, or the only column beside the label."""
    if len(given) > 2:
        raise ValueError(f"one or two text columns can be used, got {len(given)}: {given}")
    if given:
        return tuple(find_column(source, name, (), "text", option="text") for name in given)
    for pair in PAIR_COLUMNS:
        if all(name in source.columns for name in pair):
            return pair
    others = [name for name in source.columns if name != label]
    if len(others) == 1 and isinstance(value := source[0][others[0]], str):
        if Path(value).suffix.lower() in IMAGE_SUFFIXES:
            raise ValueError(
                f"{source.name} holds images, not texts; for images: config.task='image_classification'"
            )
        return (others[0],)
    return (find_column(source, "", TEXT_COLUMNS, "text", option="text"),)


# Tokenising


def tokenize(
    source: Source,
    rows: np.ndarray,
    columns: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    *,
    max_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises the given rows, or maps what an earlier call made of the same texts.

    max_length: longer examples are cut; of a pair, always the longer text (as in transformers).
    vocab_size: of the model; a token beyond it means that the tokenizer is another model's.
    cache_dir: made if missing; None keeps the tokens in memory. The name of a file is a hash of the
      texts themselves, the tokenizer and max_length; a damaged file is made anew.

    Sets the tokenizer's truncation. Raises ValueError for a row without text or without a token
    (naming it) and for tokens >= vocab_size.
    """
    set_truncation(tokenizer, max_length, pairs=len(columns) == 2)

    def part(rows: np.ndarray) -> Tokens:
        encoded = functools.partial(_encoded, source, rows, columns, tokenizer, vocab_size)
        if cache_dir is None:
            return gathered(encoded())
        path = Path(cache_dir) / f"{_known_key(source, rows, columns, tokenizer)}.npy"
        if found := token_cache.load(path, len(rows)):
            return found
        with token_cache.writing(path, len(rows), vocab_size) as writer:
            for chunk in encoded():
                writer.append(*chunk)
        return replace(token_cache.load(path, len(rows)) or gathered(encoded()), cached=False)

    tokens = joined([part(shard) for shard in token_cache.shards(rows)])
    if (empty := np.flatnonzero(tokens.lengths == 0)).size:
        raise ValueError(
            f"{source.where(int(rows[empty[0]]))}: the tokenizer makes no token of its text, and it adds "
            f"none of its own; {len(empty)} such in all: leave them out"
        )
    check_vocabulary(tokens.largest, tokenizer, vocab_size)  # of what was made for another model
    return tokens


def set_truncation(
    tokenizer: tokenizers.Tokenizer, max_length: int, *, pairs: bool = False
) -> None:
    """Longer texts are cut. ValueError: the length is too small, or the tokenizer cannot cut."""
    # What the tokenizer adds (to a pair of BERT's 3, of RoBERTa's 4) and a word: less is silently
    # not truncated, or holds no text.
    least = max(4, tokenizer.num_special_tokens_to_add(pairs) + 1)
    if max_length < least:
        raise ValueError(
            f"the longest text must be allowed at least {least} tokens, got {max_length}"
        )
    failure = "the checkpoint's tokenizer cannot cut texts"
    attempt(lambda: tokenizer.enable_truncation(max_length), failure)


def check_vocabulary(largest: int, tokenizer: tokenizers.Tokenizer, vocab_size: int) -> None:
    """ValueError where the largest token is not below vocab_size, the model's."""
    if largest >= vocab_size:
        word = tokenizer.id_to_token(largest)
        raise ValueError(
            f"the tokenizer gives token {largest} ({word!r}), but the "
            f"model's vocabulary has {vocab_size}: the tokenizer belongs to another model, or has "
            "tokens added to it: then set config.model.resize_vocabulary=True"
        )


def texts_of(source: Source, rows: np.ndarray, columns: Sequence[str]) -> Iterator[list[list[str]]]:
    """Of some rows after the other one list of texts a column.

    Raises ValueError for a row without text, naming it.
    """
    for part, values in source.chunks(columns, rows):
        yield [_column(source, part, *pair) for pair in zip(columns, values, strict=True)]


def _column(source: Source, rows: np.ndarray, column: str, values: Sequence[Any]) -> list[str]:
    texts = list(values)
    for position, value in enumerate(texts):
        if type(value) is not str:
            where = f"{source.where(int(rows[position]))}: column {column!r}"
            texts[position] = _text(value, where)
    if lone_surrogate("".join(texts)):
        position = next(i for i, text in enumerate(texts) if lone_surrogate(text))
        raise ValueError(
            f"{source.where(int(rows[position]))}: column {column!r} holds "
            f"{lone_surrogate(texts[position])!a}, half of a pair of surrogates, which is no "
            "character; remove or replace it"
        )
    return texts


def _text(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 (byte {error.start})") from None
    # An empty text is a text; a missing one, or a list, is a mistake in the data or the column.
    if not isinstance(value, str | int | float) or value != value:
        raise ValueError(f"{where} has no text ({value!r:.40})")
    return str(value)


def lone_surrogate(text: str) -> str:
    """The first character that UTF-8 cannot write; '' if there is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""


def _known_key(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokenizer: tokenizers.Tokenizer
) -> str:
    """`texts_key`; texts of a large file are hashed once, since the hash of the file is of them too."""
    if source.facts is None:
        return texts_key(source, rows, columns, tokenizer)
    made_by = hashlib.blake2b(tokenizer.to_str().encode(), digest_size=16).hexdigest()
    what = ("tokens", str(token_cache.VERSION), made_by, *columns, digest_of(rows))
    kept = source.facts.known(
        what, lambda: {"key": packed(texts_key(source, rows, columns, tokenizer))}
    )
    return str(unpacked(kept["key"]))


def texts_key(
    source: Source,
    rows: np.ndarray,
    columns: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    how: str = "",
) -> str:
    """Under which what is made of these texts is kept: 32 hexadecimal digits.

    Of the texts themselves, so that no clue by file times, which may be wrong, is needed.

    how: what else it follows from; '' for their tokens as the tokenizer makes them.
    """
    digest = hashlib.blake2b(f"{how}{token_cache.VERSION} {len(rows)} ".encode(), digest_size=16)
    digest.update(tokenizer.to_str().encode())  # holds max_length as well: truncation is set
    for chunk in texts_of(source, rows, columns):
        for texts in chunk:
            # With the lengths, or "ab", "c" would equal "a", "bc".
            digest.update(np.fromiter(map(len, texts), np.int64, len(texts)).data)
            digest.update("".join(texts).encode())
    return digest.hexdigest()


def _encoded(
    source: Source, rows: np.ndarray, columns: Sequence[str], tokenizer: tokenizers.Tokenizer,
    vocab_size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # fmt: skip
    """(lengths, second, ids) of some rows after the other, int32."""
    for texts in texts_of(source, rows, columns):
        for chunk in chunked(texts):
            encodings = attempt(
                functools.partial(tokenizer.encode_batch_fast, chunk),
                f"the checkpoint's tokenizer fails on the texts of {source.name}",
            )
            own = [encoding.ids for encoding in encodings]
            ids = np.fromiter(itertools.chain.from_iterable(own), np.int32)
            check_vocabulary(int(ids.max(initial=-1)), tokenizer, vocab_size)
            second = [second_start(encoding.type_ids) for encoding in encodings]
            yield np.array(list(map(len, own)), np.int32), np.array(second, np.int32), ids


def chunked(texts: list[list[str]]) -> Iterator[list[Any]]:
    """What is tokenised at a time, of `texts_of`: single texts, or pairs."""
    start = characters = 0
    sizes = [sum(map(len, parts)) for parts in zip(*texts, strict=True)]
    for position, size in enumerate(sizes, start=1):
        characters += size
        full = position - start == CHUNK or characters >= CHUNK_CHARACTERS
        if full or position == len(sizes):
            parts = [column[start:position] for column in texts]
            yield parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
            start, characters = position, 0


def second_start(types: list[int]) -> int:
    """[0, 0, 0, 1, 1] -> 3; [0, 0] -> 2."""
    ones = sum(types)
    if ones and types != [0] * (len(types) - ones) + [1] * ones:
        raise ValueError("the tokenizer's token types are not zeros followed by ones")
    return len(types) - ones
