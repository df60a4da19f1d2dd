"""A checkpoint's tokenizer, from files that may hold anything; no code in them is executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from jaxft.base.json_file import read_object, read_text, require_plain

T = TypeVar("T")

# Files that may make a tokenizer. They are looked at before any library reads them: libraries name
# neither the file nor the mistake, and wait for ever on a named pipe.
_OBJECTS = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "config.json")
_TEXTS = ("vocab.txt", "merges.txt")
_SOURCES = ("tokenizer.json", "vocab.txt", "vocab.json")


def load_tokenizer(directory: str) -> tokenizers.Tokenizer:
    """The checkpoint's tokenizer without the padding it may have been saved with.

    Reading tokenizer.json takes 0.05 s; AutoTokenizer, 2 to 4 s because it imports torch where
    that is installed, is asked only if there is no tokenizer.json or if it would change it.

    Raises ValueError, in one line that names the file, for whatever is wrong with it.
    """
    path = Path(directory)
    saved = read_object(path / "tokenizer.json")
    flags = read_object(path / "tokenizer_config.json") or {}
    source = next((name for name in _SOURCES if (path / name).exists()), None)
    if source is None:
        raise ValueError(f"{directory}: no tokenizer there (tokenizer.json or vocab.txt)")
    file = path / source
    if saved is not None:
        _check_vocabulary(file, saved)
    if saved is not None and _is_plain_wordpiece(saved, flags):
        tokenizer = _attempt(lambda: tokenizers.Tokenizer.from_file(str(file)), file)
    else:
        for name in _OBJECTS:
            read_object(path / name)
        for name in _TEXTS:
            read_text(path / name)
        if (path / "chat_template.jinja").exists():
            require_plain(path / "chat_template.jinja")
        tokenizer = _attempt(lambda: _auto_tokenizer(directory), file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # A known word, an unknown one and none: a vocabulary without its [UNK] fails here, not later.
    _attempt(lambda: tokenizer.encode_batch_fast(["a \u2603", ""]), file, "cannot encode a text")
    return tokenizer


def attempt(function: Callable[[], T], message: str) -> T:
    """function(), or a ValueError `message (reason)` whatever a tokenizer raised in it."""
    try:
        return function()
    # The libraries raise anything on a malformed file: KeyError, TypeError, RecursionError, plain
    # Exception, and on a panic of the Rust part an exception that is none of Python's own.
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = next(iter(str(error).splitlines()), "")[:300] or type(error).__name__
        raise ValueError(f"{message} ({type(error).__name__}: {reason})") from None


def _attempt(function: Callable[[], T], file: Path, failure: str = "cannot be read") -> T:
    return attempt(function, f"{file}: the tokenizer {failure}")


def _auto_tokenizer(directory: str) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    # Without an answer in advance it would ask on the terminal whether to run a checkpoint's code.
    wrapped = AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    return tokenizers.Tokenizer.from_str(wrapped.backend_tokenizer.to_str())


def _is_plain_wordpiece(saved: dict[str, Any], flags: dict[str, Any]) -> bool:
    """Whether tokenizer.json is BERT's and AutoTokenizer would read it to the same effect.

    transformers lets the flags of tokenizer_config.json (or BertTokenizer's defaults) override the
    normalizer of tokenizer.json, so the two must agree. Guarded by test_data_text.py.
    """
    normalizer = _part(saved, "normalizer")
    plain = (
        _part(saved, "model").get("type") == "WordPiece"
        and normalizer.get("type") == "BertNormalizer"
        and _part(saved, "pre_tokenizer").get("type") == "BertPreTokenizer"
        and _part(saved, "post_processor").get("type") in ("TemplateProcessing", "BertProcessing")
    )
    return plain and (
        normalizer.get("lowercase") == flags.get("do_lower_case", True)
        and normalizer.get("handle_chinese_chars") == flags.get("tokenize_chinese_chars", True)
        and normalizer.get("strip_accents") == flags.get("strip_accents")
        and normalizer.get("clean_text") is True
    )


def _part(saved: dict[str, Any], name: str) -> dict[str, Any]:
    part = saved.get(name)
    return part if isinstance(part, dict) else {}


def _check_vocabulary(file: Path, saved: dict[str, Any]) -> None:
    """What the Rust library would tell with a line number of a 700 kB line, or with a panic."""
    model = saved.get("model")
    if not isinstance(model, dict) or not model.get("vocab"):
        raise ValueError(f"{file}: it holds no tokenizer (a 'model' with a 'vocab' is missing)")
    vocabulary = model["vocab"]
    added = saved.get("added_tokens") or []
    ids = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    if isinstance(added, list):
        ids += [(t.get("content"), t.get("id")) for t in added if isinstance(t, dict)]
    for token, number in ids:
        if type(number) is not int or not 0 <= number < 1 << 31:
            raise ValueError(
                f"{file}: token {token!r} has the id {number!r:.40}; an id is an integer from 0 on"
            )
