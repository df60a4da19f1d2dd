"""A checkpoint's chat template, and which characters of a conversation it renders are completions.

Rendered by transformers in Jinja's sandbox, as `apply_chat_template` does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from jaxft.base.json_file import read_object, read_text
from jaxft.data.chat import Message
from jaxft.data.special_tokens import special_token, text_of

FILE = "chat_template.jinja"
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Of a checkpoint without a template of its own. An answer ends with the token that ends a text, by which
# generation knows that it is done.
_PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How messages become one text.

    Attributes:
      source: in Jinja.
      special: what it may write besides the messages: 'bos_token', 'eos_token', ….
      own: the checkpoint has it; else it is a plain one of ours.
    """

    source: str
    special: Mapping[str, str]
    own: bool

    def prompt(self, messages: Sequence[Message]) -> str:
        """What the assistant answers to.

        Raises:
          ValueError: the template refuses these messages.
        """
        return self._render(messages, add_generation_prompt=True)

    def rendered(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """(the text, [start, end) of each completion of the assistant in it).

        By the template's own {% generation %} marks. Where it has none, a completion is what it writes
        beyond the prompt, which is right only if it writes a conversation so far as it begins the whole.

        Raises:
          ValueError: the template refuses these messages, or where their completions are cannot be told.
        """
        if _MARKED.search(self.source):
            return self._marked(messages)
        text, spans = self._render(messages), []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._render(messages[:number], add_generation_prompt=True)
                after = self._render(messages[: number + 1])
                if not (after.startswith(before) and text.startswith(after)):
                    raise ValueError(
                        f"the chat template writes message {number + 1} otherwise when others follow, so its "
                        "completions cannot be told apart: put {% generation %} marks into it, or learn "
                        "from all tokens by config.data.loss_on='all'"
                    )
                spans.append((len(before), len(after)))
        return text, spans

    def text(self, messages: Sequence[Message]) -> str:
        """The whole conversation. ValueError: as `prompt`."""
        return self._render(messages)

    def _marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        texts, spans = self._call(messages, return_assistant_tokens_mask=True)
        return texts[0], [(start, end) for start, end in spans[0] if end > start]

    def _render(self, messages: Sequence[Message], **more: Any) -> str:
        return self._call(messages, **more)[0][0]

    def _call(self, messages: Sequence[Message], **more: Any) -> Any:
        # Imports torch where that is installed, which takes seconds.
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        given: dict[str, Any] = {"chat_template": self.source, **self.special, **more}
        try:
            return render_jinja_template([list(messages)], **given)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the chat template refuses it ({reason})") from None


def load_template(directory: str, tokenizer: tokenizers.Tokenizer) -> ChatTemplate:
    """The checkpoint's, or a plain one.

    Raises:
      ValueError: a file is not what it should be.
    """
    special = {
        f"{role}_token": text_of(tokenizer, special_token(tokenizer, directory, role))
        for role in ("bos", "eos", "pad")
    }
    if own := _own(Path(directory)):
        return ChatTemplate(own, special, True)
    begins = tokenizer.encode("").tokens[:1] == [special["bos_token"]]
    return ChatTemplate("{{ bos_token }}" * begins + _PLAIN, special, False)


def _own(path: Path) -> str:
    if (path / FILE).exists():
        return read_text(path / FILE) or ""
    given = (read_object(path / "tokenizer_config.json") or {}).get("chat_template")
    if isinstance(given, list):  # several by name
        named = {
            entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)
        }
        given = named.get("default")
    return given if isinstance(given, str) else ""
