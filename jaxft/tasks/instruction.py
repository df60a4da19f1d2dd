"""Instruction tuning: the completions of conversations, or all of their tokens, by the next token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxft.data.chat import read_conversations
from jaxft.data.files import Source
from jaxft.data.targets import Unlabelled
from jaxft.tasks.contract import Reading
from jaxft.tasks.language_modelling import LanguageModelling


@dataclasses.dataclass(frozen=True)
class Instruction(LanguageModelling):
    """As `LanguageModelling`, of what of a conversation counts; each is read as a whole."""

    inputs: str = "conversation"
    endings: tuple[str, ...] = ()  # its exports are language models like others

    @property
    def join(self) -> None:
        return None

    def read(
        self, source: Source, column: str, inputs: Sequence[str], reading: Reading
    ) -> Unlabelled:
        return read_conversations(source, inputs, drop_bad=reading.drop, advice=reading.advice)
