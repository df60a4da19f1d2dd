"""Texts that a decoder goes on with: prompts to tokens, tokens to texts, and what ends one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxft.base.json_file import read_object
from jaxft.data.chat import prompt_of
from jaxft.data.chat_template import load_template
from jaxft.data.special_tokens import special_token
from jaxft.data.tokenizer import load_tokenizer
from jaxft.experiment.inference import Inference
from jaxft.experiment.split import Split
from jaxft.generation.decoding import Settings, check, generate
from jaxft.generation.rereading import without_cache
from jaxft.generation.sampling import Sampling
from jaxft.tasks.contract import Predicted, Task
from jaxft.tasks.table import TASKS


@dataclasses.dataclass(frozen=True)
class Continuing(Inference):
    """A decoder that writes how a row goes on, and does not say what its task does of it.

    Attributes:
      settings: how it goes on.
    """

    settings: Settings = Settings()  # noqa: RUF009 frozen

    @property
    def note(self) -> str:
        """What a text costs where no cache is kept, or ''."""
        return without_cache(self.architecture)

    @property
    def task(self) -> Task[Any]:
        """One whose predictions are texts."""
        return TASKS["seq2seq"]

    def predict(self, split: Split) -> Predicted:
        """'written': of a conversation what the assistant says next, else what follows the text."""
        tokenizer, source = load_tokenizer(self.encoder.directory), split.source
        chat = self.encoder.inputs == "conversation"
        template = load_template(self.encoder.directory, tokenizer) if chat else None
        prompts = []
        for row in split.targets.rows.tolist():
            values = [source[row][name] for name in self.encoder.columns]
            try:
                prompts.append(
                    _begun(tokenizer, values[0], self.settings.eos)
                    if template is None
                    else tokenizer.encode(
                        template.prompt(prompt_of(values)), add_special_tokens=False
                    ).ids
                )
            except ValueError as error:
                raise ValueError(f"{source.where(row)}: {error}") from None
        texts = _texts(self, prompts)
        return {"written": np.array(texts, object), "seen": np.ones(len(texts), bool)}


def continuing(
    model: Inference, *, max_new_tokens: int, stop: Sequence[str] = (), **sampling: Any
) -> Continuing:
    """The same model, going on with what it reads.

    Args:
      sampling: see `generation.sampling.Sampling`.

    Raises:
      ValueError: a setting that cannot be, or a model that does not predict the next token.
    """
    directory, architecture = model.encoder.directory, model.architecture
    eos = ending_tokens(directory, load_tokenizer(directory), architecture.hf_config)
    dtype = jnp.dtype(model.config.model.dtype)
    settings = Settings(max_new_tokens, Sampling(**sampling), eos, tuple(stop), dtype=dtype)
    check(architecture, (), settings)
    own = {field.name: getattr(model, field.name) for field in dataclasses.fields(Inference)}
    return Continuing(**own, settings=settings)


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
    own = dataclasses.asdict(sampling)
    going = continuing(model, max_new_tokens=max_new_tokens, stop=stop, **own)
    tokenizer = load_tokenizer(model.encoder.directory)
    return _texts(going, [_begun(tokenizer, prompt, going.settings.eos) for prompt in prompts])


def _texts(model: Continuing, prompts: Sequence[list[int]]) -> list[str]:
    tokenizer, settings = load_tokenizer(model.encoder.directory), model.settings

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids))

    found = generate(model.architecture, model.params, prompts, settings, text=text)
    return [
        _until(_new_text(tokenizer, prompt, _without_end(ids, settings.eos)), settings.stop)
        for prompt, ids in zip(prompts, found, strict=True)
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


def _begun(tokenizer: tokenizers.Tokenizer, text: str, eos: Sequence[int]) -> list[int]:
    """A prompt is not over, even where the tokenizer ends each text by a token; one alone begins a text."""
    ids = tokenizer.encode(text).ids
    return ids if len(ids) == 1 else _without_end(ids, eos)


def _without_end(ids: list[int], eos: Sequence[int]) -> list[int]:
    return ids[:-1] if ids and ids[-1] in eos else ids


def _new_text(tokenizer: tokenizers.Tokenizer, prompt: list[int], ids: list[int]) -> str:
    """Of the new tokens, as they read behind the prompt: some tokenizers write no space before the first."""
    before, both = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode(ids)


def _until(text: str, stop: Sequence[str]) -> str:
    return text[: min((text.index(string) for string in stop if string in text), default=len(text))]
