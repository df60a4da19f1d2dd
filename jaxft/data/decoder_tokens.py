"""The tokens around the texts that an encoder and decoder gives, by the files of a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tokenizers

from jaxft.base.json_file import read_object
from jaxft.data.tokenizer import load_tokenizer

# Their classes put the last token of a text, whichever it is, before its first.
_WRAPPING = ("fsmt", "mbart", "plbart")


@dataclasses.dataclass(frozen=True)
class Around:
    """What config.json and generation_config.json say, as transformers reads them.

    Attributes:
      start: what the decoder reads before the first token.
      end: ends a text; None: nothing does.
      pad: stands where there is no token.
      first, last: are given whatever the model says, first and where a text has come to its longest.
      never: are not given.
    """

    start: int
    end: int | None
    pad: int
    first: int | None
    last: int | None
    never: tuple[int, ...]


def around(directory: str) -> Around:
    """Of a checkpoint; its tokenizer is read where a text begins with the token that ends it."""
    config = read_object(str(Path(directory) / "config.json")) or {}
    generation = read_object(str(Path(directory) / "generation_config.json")) or {}
    both = {**config, **{key: value for key, value in generation.items() if value is not None}}
    end = _token(config.get("eos_token_id", 1))
    first, last = (_token(both.get(f"forced_{name}_token_id")) for name in ("bos", "eos"))
    words = both.get("bad_words_ids")
    words = words if isinstance(words, list) else []
    single = [_token(word) for word in words if isinstance(word, list) and len(word) == 1]
    never = tuple(token for token in single if token is not None and token != end)
    pad = _token(config.get("pad_token_id"))
    named = (_token(value) for value in (both.get("decoder_start_token_id"), pad, 0))
    start = next(value for value in named if value is not None)
    found = Around(start, end, 0 if pad is None else pad, first, last, never)
    if config.get("model_type") in _WRAPPING:
        ids = _ending(load_tokenizer(directory), found).encode("").ids
        return dataclasses.replace(found, start=ids[-1]) if ids else found
    return found


def decoder_tokenizer(directory: str) -> tokenizers.Tokenizer:
    """The checkpoint's, for texts to be given: each ends with the token that ends one and, where one has
    to come first, as the language of a translation, begins with it."""
    return _ending(load_tokenizer(directory), around(directory))


def _ending(tokenizer: tokenizers.Tokenizer, tokens: Around) -> tokenizers.Tokenizer:
    """Most tokenizers of such models do so by themselves; of several languages in that of their input."""
    before, after = _added(tokenizer)
    first = before if tokens.first is None or tokens.first in before[-1:] else [tokens.first]
    first = first if before else []
    last = after if tokens.end is None or tokens.end in after else [*after, tokens.end]
    names = {number: tokenizer.id_to_token(number) for number in (*first, *last)}
    if (first, last) == (before, after) or None in names.values():
        return tokenizer
    whole = [*(names[n] for n in first), "$A", *(names[n] for n in last)]
    special = [(name, number) for number, name in names.items()]
    template = tokenizers.processors.TemplateProcessing
    tokenizer.post_processor = template(single=whole, special_tokens=special)
    return tokenizer


def _added(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that it puts before a text, and after."""
    found = tokenizer.encode("a")
    own = [place for place, special in enumerate(found.special_tokens_mask) if not special]
    if not own:
        return [], found.ids
    return found.ids[: own[0]], found.ids[own[-1] + 1 :]


def _token(value: Any) -> int | None:
    one = value[0] if isinstance(value, list) and value else value
    return one if type(one) is int and one >= 0 else None
