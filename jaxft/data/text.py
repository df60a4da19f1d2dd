"""Text columns -> token ids, once: a flat array that is cached on disk and memory-mapped.

Nothing here knows of batches; `Tokens.lengths` is what batching.py plans with.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxft.data.files import IMAGE_SUFFIXES, Source
from jaxft.data.labels import find_column

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

# Texts given to the tokenizer at a time: enough for its threads, and little memory, since an
# encoding holds some ten Python objects per token until its ids are copied out.
CHUNK = 1024

# First words of a cache file. The version changes whenever the layout or its meaning does.
MAGIC, VERSION = 0x4A46_5431, 1


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokenised texts, one after the other.

    ids [total] int32: the tokens of example j are ids[offsets[j]:offsets[j + 1]].
    offsets [n + 1] int64.
    second [n] int32: where in example j token type 1 begins (its length if it never does).
    cached: read from the disk rather than made now.
    """

    ids: np.ndarray
    offsets: np.ndarray
    second: np.ndarray
    cached: bool

    def __len__(self) -> int:
        return len(self.second)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, special tokens included: [n] int32."""
        return np.diff(self.offsets).astype(np.int32)


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


# The tokenizer


def load_tokenizer(directory: str) -> tokenizers.Tokenizer:
    """The checkpoint's tokenizer without the padding it may have been saved with.

    Reading tokenizer.json takes 0.05 s; AutoTokenizer, 2 to 4 s because it imports torch where
    that is installed, is asked only if there is no tokenizer.json or if it would change it.
    """
    path = Path(directory)
    tokenizer = _plain_wordpiece(path)
    if tokenizer is None:
        if not any(
            (path / name).exists() for name in ("tokenizer.json", "vocab.txt", "vocab.json")
        ):
            raise ValueError(f"{directory}: no tokenizer there (tokenizer.json or vocab.txt)")
        from transformers import AutoTokenizer

        try:
            wrapped = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            tokenizer = tokenizers.Tokenizer.from_str(wrapped.backend_tokenizer.to_str())
        except (OSError, ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{directory}: its tokenizer cannot be read ({reason})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _plain_wordpiece(path: Path) -> tokenizers.Tokenizer | None:
    """tokenizer.json as it is, if it is BERT's and AutoTokenizer would read it to the same effect.

    transformers lets the flags of tokenizer_config.json (or BertTokenizer's defaults) override the
    normalizer of tokenizer.json, so the two must agree. Guarded by test_data_text.py.
    """
    file = path / "tokenizer.json"
    if not file.exists():
        return None
    try:
        saved = json.loads(file.read_text("utf-8"))
        flags = _read_json(path / "tokenizer_config.json")
    except ValueError as error:
        raise ValueError(f"{path}: its tokenizer is not readable JSON ({error})") from None
    normalizer = saved.get("normalizer") or {}
    plain = (
        saved["model"].get("type") == "WordPiece"
        and normalizer.get("type") == "BertNormalizer"
        and (saved.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and (saved.get("post_processor") or {}).get("type")
        in ("TemplateProcessing", "BertProcessing")
    )
    agrees = (
        normalizer.get("lowercase") == flags.get("do_lower_case", True)
        and normalizer.get("handle_chinese_chars") == flags.get("tokenize_chinese_chars", True)
        and normalizer.get("strip_accents") == flags.get("strip_accents")
        and normalizer.get("clean_text") is True
    )
    return tokenizers.Tokenizer.from_file(str(file)) if plain and agrees else None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


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
    cache_dir: made if missing; None keeps nothing. The file's name is a hash of the texts
      themselves, the tokenizer and max_length; a damaged file is made anew.

    Sets the tokenizer's truncation. Raises ValueError for a row without text (naming it) and for
    tokens >= vocab_size.
    """
    if max_length < 4:  # a pair needs [CLS] [SEP] [SEP] and a word; less is silently not truncated
        raise ValueError(f"the longest text must be allowed at least 4 tokens, got {max_length}")
    texts = _texts(source, rows, columns)
    tokenizer.enable_truncation(max_length)
    path = Path(cache_dir) / f"{_key(texts, tokenizer)}.npy" if cache_dir else None
    tokens = _load(path, len(rows)) if path else None
    if tokens is None:
        tokens = _encode_all(texts, tokenizer)
        if path:
            _save(path, tokens)
            # The mapped file replaces the copy in memory.
            tokens = dataclasses.replace(_load(path, len(rows)) or tokens, cached=False)
    largest = int(tokens.ids.max(initial=0))
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer gives token {largest} ({tokenizer.id_to_token(largest)!r}), but the "
            f"model's vocabulary has {vocab_size}: the tokenizer belongs to another model"
        )
    return tokens


def _texts(source: Source, rows: np.ndarray, columns: Sequence[str]) -> list[list[str]]:
    """One list of texts a column."""
    texts = []
    for column in columns:
        values = source.column(column)
        texts.append([_text(values[row], source, int(row), column) for row in rows])
    return texts


def _text(value: Any, source: Source, row: int, column: str) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    # An empty text is a text; a missing one, or a list, is a mistake in the data or the column.
    if not isinstance(value, str | int | float) or value != value:
        raise ValueError(f"{source.where(row)}: column {column!r} has no text ({value!r:.40})")
    return str(value)


def _key(texts: list[list[str]], tokenizer: tokenizers.Tokenizer) -> str:
    digest = hashlib.blake2b(f"{VERSION} {len(texts)} ".encode(), digest_size=16)
    digest.update(tokenizer.to_str().encode())  # holds max_length as well: truncation is set
    for column in texts:
        for text in column:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little"))  # or "ab","c" would equal "a","bc"
            digest.update(data)
    return digest.hexdigest()


def _encode_all(texts: list[list[str]], tokenizer: tokenizers.Tokenizer) -> Tokens:
    ids, second = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    lengths = [np.zeros(0, np.int32)]
    for chunk in _chunks(texts):
        encodings = tokenizer.encode_batch_fast(chunk)
        lengths.append(np.array([len(encoding) for encoding in encodings], np.int32))
        ids.extend(np.array(encoding.ids, np.int32) for encoding in encodings)
        starts = [_second_start(encoding.type_ids) for encoding in encodings]
        second.append(np.array(starts, np.int32))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    return Tokens(np.concatenate(ids), offsets, np.concatenate(second), cached=False)


def _chunks(texts: list[list[str]]) -> Iterator[list[Any]]:
    for start in range(0, len(texts[0]), CHUNK):
        parts = [column[start : start + CHUNK] for column in texts]
        yield parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))


def _second_start(types: list[int]) -> int:
    """[0, 0, 0, 1, 1] -> 3; [0, 0] -> 2."""
    ones = sum(types)
    if ones and types != [0] * (len(types) - ones) + [1] * ones:
        raise ValueError("the tokenizer's token types are not zeros followed by ones")
    return len(types) - ones


# The cache: one int32 .npy file [header | lengths | second | ids]. One file, so that replacing it
# is atomic; .npy rather than .npz, which cannot be memory-mapped.


class Header(NamedTuple):
    magic: int
    version: int
    examples: int
    checksum: int  # crc32 of all that follows


def _save(path: Path, tokens: Tokens) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [tokens.lengths, tokens.second, tokens.ids]
    checksum = functools.reduce(lambda crc, part: zlib.crc32(part.data, crc), body, 0)
    header = np.array(Header(MAGIC, VERSION, len(tokens), checksum), np.uint32).view(np.int32)
    layout = {"descr": "<i4", "fortran_order": False, "shape": (len(header) + sum(map(len, body)),)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.lib.format.write_array_header_1_0(file, layout)
            for part in [header, *body]:
                file.write(part.data)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # a write, unlike an open, does not say of what
        raise


def _load(path: Path, examples: int) -> Tokens | None:
    """The cached tokens, or None if the file is missing, damaged or of another version."""
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    size = len(Header._fields)
    if data.dtype != np.int32 or data.ndim != 1 or len(data) < size + 2 * examples:
        return None
    header = Header(*data[:size].view(np.uint32).tolist())
    body = data[size:]
    if header != Header(MAGIC, VERSION, examples, zlib.crc32(body.data)):
        return None
    lengths, second, ids = np.split(body, [examples, 2 * examples])
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Tokens(ids, offsets, np.asarray(second), cached=True)
