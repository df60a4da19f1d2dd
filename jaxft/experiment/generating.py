"""Texts that a decoder goes on with: prompts to tokens, tokens to texts, and what ends one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tokenizers

from jaxft.base.json_file import read_object
from jaxft.data.special_tokens import special_token
from jaxft.data.tokenizer import load_tokenizer
from jaxft.experiment.inference import Inference
from jaxft.generation.decoding import Settings, generate
from jaxft.generation.sampling import Sampling


def continuations(
    model: Inference,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> list[str]:
    """What follows each prompt, up to an ending token or a stop string, without either.

    Raises:
      ValueError: as `generation.decoding.generate`; a prompt that is no text.
    """
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {number} is no text: {prompt!r:.40}")
    directory = model.encoder.directory
    tokenizer = load_tokenizer(directory)
    eos = ending_tokens(directory, tokenizer, model.architecture.hf_config)
    settings = Settings(
        max_new_tokens, sampling, eos, tuple(stop), dtype=jnp.dtype(model.config.model.dtype)
    )
    # A prompt is not over, even where the tokenizer ends each text by a token; one alone begins a text.
    encoded = [ids if len(ids) == 1 else _without_end(ids, eos)
               for ids in (tokenizer.encode(prompt).ids for prompt in prompts)]  # fmt: skip

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids))

    found = generate(model.architecture, model.params, encoded, settings, text=text)
    return [
        _until(_new_text(tokenizer, prompt, _without_end(ids, eos)), settings.stop)
        for prompt, ids in zip(encoded, found, strict=True)
    ]


def ending_tokens(
    directory: str, tokenizer: tokenizers.Tokenizer, hf_config: dict[str, Any]
) -> tuple[int, ...]:
    """Those that end a text, by the files of a checkpoint: generation_config.json, config.json and the
    tokenizer's."""
    generation = read_object(Path(directory) / "generation_config.json") or {}
    own = special_token(tokenizer, directory, "eos")
    found = {own} if own is not None else set()
    for given in (generation.get("eos_token_id"), hf_config.get("eos_token_id")):
        several = given if isinstance(given, list) else [given]
        found |= {number for number in several if type(number) is int and number >= 0}
    return tuple(sorted(found))


def _without_end(ids: list[int], eos: Sequence[int]) -> list[int]:
    return ids[:-1] if ids and ids[-1] in eos else ids


def _new_text(tokenizer: tokenizers.Tokenizer, prompt: list[int], ids: list[int]) -> str:
    """Of the new tokens, as they read behind the prompt: some tokenizers write no space before the first."""
    before, both = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode(ids)


def _until(text: str, stop: Sequence[str]) -> str:
    return text[: min((text.index(string) for string in stop if string in text), default=len(text))]
