"""The tokens to which a checkpoint gives a meaning: the end of a text, what is hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import tokenizers

from jaxft.base.json_file import read_object

Role = Literal["bos", "eos", "mask", "pad"]
# Where no file says which token it is: the usual ones, if the vocabulary has them.
_USUAL: dict[str, tuple[str, ...]] = {"mask": ("[MASK]", "<mask>")}
_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def special_token(tokenizer: tokenizers.Tokenizer, directory: str, role: Role) -> int | None:
    """Its id by the checkpoint's tokenizer files, else by the numbers in its config; None: it has none.

    Raises:
      ValueError: a file names a token that the tokenizer does not have.
    """
    path = Path(directory)
    for name in _FILES:
        given = (read_object(path / name) or {}).get(f"{role}_token")
        text = given.get("content") if isinstance(given, dict) else given
        if isinstance(text, str) and text:
            number = tokenizer.token_to_id(text)
            if number is None:
                raise ValueError(
                    f"{path / name}: {role}_token is {text!r}, which the tokenizer lacks"
                )
            return number
    for text in _USUAL.get(role, ()):
        if (number := tokenizer.token_to_id(text)) is not None:
            return number
    return _number((read_object(path / "config.json") or {}).get(f"{role}_token_id"), tokenizer)


def unknown_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Of the token that stands for what the vocabulary lacks; None where nothing can be lacking."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    return tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def text_of(tokenizer: tokenizers.Tokenizer, token: int | None) -> str:
    """How a token is written; '' of none."""
    return "" if token is None else tokenizer.id_to_token(token) or ""


def _number(given: Any, tokenizer: tokenizers.Tokenizer) -> int | None:
    first = given[0] if isinstance(given, list) and given else given
    known = type(first) is int and first >= 0 and tokenizer.id_to_token(first) is not None
    return first if known else None
