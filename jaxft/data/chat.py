"""Conversations: the shapes in which they are kept, and the messages that they are.

Read are columns of messages ({'role', 'content'}, as OpenAI has them, or {'from', 'value'}, as ShareGPT),
an instruction with its input and output (Alpaca), and pairs of a prompt and a completion.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tokenizers

from jaxft.base.nearest import nearest
from jaxft.data.files import Source
from jaxft.data.labels import find_column
from jaxft.data.targets import Unlabelled, unlabelled
from jaxft.data.text import lone_surrogate

T = TypeVar("T")
Message = dict[str, Any]  # 'role' and 'content', texts; and what else a template may read
_AT_A_TIME = 256  # rows that are looked at, and given to the tokenizer

# Columns under which conversations are commonly found, the likeliest first; all of a group are there.
GROUPS = (
    ("messages",),
    ("conversations",),
    ("conversation",),
    ("instruction", "input", "output"),
    ("instruction", "input", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("input", "output"),
)
ROLES = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "developer": "developer", "human": "user", "gpt": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "model": "assistant", "function": "tool", "observation": "tool",
}  # fmt: skip
_KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")


class NoConversation(ValueError):
    """What keeps a row from being one, as the end of a sentence whose subject is the row."""


def find_chat_columns(
    source: Source, given: Sequence[str] = (), label: str = ""
) -> tuple[str, ...]:
    """One column of messages, a prompt and a completion, or an instruction, an input and an output."""
    if len(given) > 3:
        raise ValueError(
            "a conversation is in one column of messages, in a prompt and a completion, or in an "
            f"instruction, an input and an output; got {len(given)} columns: {', '.join(given)}"
        )
    if given:
        return tuple(find_column(source, name, (), "text", option="text") for name in given)
    for group in GROUPS:
        if all(name in source.columns for name in group):
            return group
    known = "; ".join(", ".join(group) for group in GROUPS)
    raise ValueError(
        f"{source.name} has no columns of a conversation ({known}) among {', '.join(source.columns)}; name "
        "them by config.data.text: messages, or prompt and completion, or instruction, input and output"
    )


def conversation_of(values: Sequence[Any]) -> list[Message]:
    """The messages of a row, from the values of its columns in the order of `find_chat_columns`.

    Raises:
      NoConversation: they are none.
    """
    values = [_parsed(value) for value in values]
    if len(values) == 1:
        return _messages(values[0])
    *asked, answer = values
    if len(asked) == 2:
        asked = [_with_input(*asked)]
    messages = [
        *_turn(asked[0], "user", "instruction" if len(values) == 3 else "prompt"),
        *_turn(answer, "assistant", "output" if len(values) == 3 else "completion"),
    ]
    return messages


def messages_of(value: Any) -> list[Message] | str:
    """Of a value its messages, or the text that it is.

    Raises:
      NoConversation: it is neither.
    """
    value = _parsed(value)
    if isinstance(value, list | tuple):
        return _messages(value)
    return str(_turn(value, "assistant", "answer")[0]["content"])


def prompt_of(values: Sequence[Any]) -> list[Message]:
    """The messages that an answer is to be given to: without the last, where it is the assistant's.

    values: as of `conversation_of`, the last of several may be None.

    Raises:
      NoConversation: there is nothing to answer.
    """
    if len(values) > 1 and (values[-1] is None or values[-1] == ""):
        messages = conversation_of((*values[:-1], "-"))
    else:
        messages = conversation_of(values)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise NoConversation("has no message to answer")
    return messages


def read_conversations(
    source: Source, columns: Sequence[str], *, drop_bad: bool = False, advice: str = ""
) -> Unlabelled:
    """The rows of a source that are conversations with a message of the assistant.

    drop_bad: leave out the others rather than raise.
    advice: how the user can ask for that, for the message of this error.

    Raises ValueError: a row is none, naming the first and how many.
    """
    usable, faulty = usable_rows(
        source, columns, lambda values: answered(conversation_of(values)), _shown(columns),
        drop_bad=drop_bad, advice=advice,
    )  # fmt: skip
    found = unlabelled(len(source)).take(usable)
    return Unlabelled(found.rows, found.offsets, dropped=faulty)


def usable_rows(
    source: Source, columns: Sequence[str], read: Callable[[Sequence[Any]], object], what: str, *,
    drop_bad: bool, advice: str,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(rows that `read` takes the values of, the others), int64.

    what: is faulty, for messages. Other arguments and errors as of `read_conversations`.
    """
    usable, faulty, fault = array("q"), array("q"), ""
    for rows, columns_of_values in source.chunks(columns):
        for row, values in zip(rows.tolist(), zip(*columns_of_values, strict=True), strict=True):
            try:
                read(values)
                usable.append(row)
            except NoConversation as error:
                faulty.append(row)
                fault = fault or str(error)
    if faulty and not (drop_bad and usable):
        more = (
            f"; {len(faulty)} rows are like this ({source.numbered(faulty)})" if faulty[1:] else ""
        )
        raise ValueError(
            f"{source.where(faulty[0])}: {what} {fault}{more}: mend them, or leave them out{advice}"
        )
    return np.array(usable, np.int64), np.array(faulty, np.int64)


def rows_read(
    source: Source, rows: np.ndarray, columns: Sequence[str], read: Callable[[Sequence[Any]], T],
    what: str,
) -> Iterator[tuple[list[int], list[T]]]:  # fmt: skip
    """Some rows after the other, few at a time, with what `read` makes of the values of each.

    what: is faulty, for the message. ValueError: `read` raised NoConversation, naming the row.
    """
    for part, values in source.chunks(columns, rows):
        every = list(zip(*values, strict=True))
        for start in range(0, len(part), _AT_A_TIME):
            numbers, found = part[start : start + _AT_A_TIME].tolist(), []
            for row, own in zip(numbers, every[start : start + _AT_A_TIME], strict=True):
                try:
                    found.append(read(own))
                except NoConversation as error:
                    raise ValueError(f"{source.where(row)}: {what} {error}") from None
            yield numbers, found


def contents_key(
    kind: str, how: Sequence[Any], tokenizer: tokenizers.Tokenizer, parts: Iterable[Any]
) -> str:
    """A hash of what the tokens of conversations follow from: 32 hexadecimal digits."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    digest.update(json.dumps(how).encode() + tokenizer.to_str().encode())
    for part in parts:
        digest.update(json.dumps(part, default=str).encode())
    return digest.hexdigest()


def answered(messages: list[Message]) -> list[Message]:
    """The same. NoConversation: the assistant says nothing, so there is nothing to learn."""
    if not any(message["role"] == "assistant" for message in messages):
        raise NoConversation("has no message of the assistant, so there is nothing to learn")
    return messages


def shown_chat(values: Sequence[Any]) -> str:
    """What a reader sees of a conversation."""
    try:
        return " | ".join(f"{m['role']}: {m['content']}" for m in conversation_of(values))
    except NoConversation:
        return " | ".join(map(str, values))


def _shown(columns: Sequence[str]) -> str:
    return "the row" if columns[1:] else f"column {columns[0]!r}"


def _parsed(value: Any) -> Any:
    """Lists as such, also where they come as JSON text or as an array."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str) and value.lstrip()[:2].replace(" ", "").startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _with_input(instruction: Any, given: Any) -> Any:
    """As one text, the input after an empty line, where there is one."""
    if isinstance(instruction, str) and isinstance(given, str) and given.strip():
        return f"{instruction}\n\n{given}"
    return instruction


def _turn(value: Any, role: str, name: str) -> list[Message]:
    """A text as a message of this role; messages as they are."""
    if isinstance(value, list | tuple):
        return _messages(value)
    if isinstance(value, int | float) and value == value:
        value = str(value)
    if not isinstance(value, str):
        raise NoConversation(f"has no text as the {name} ({value!r:.40})")
    if not value.strip():
        raise NoConversation(f"has an empty {name}")
    if found := lone_surrogate(value):
        raise NoConversation(
            f"holds half of a surrogate pair ({found!a}) in the {name}, which is no character"
        )
    return [{"role": role, "content": value}]


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list | tuple):
        raise NoConversation(
            f"holds {value!r:.40}, which is no list of messages with a role and a content"
        )
    if not value:
        raise NoConversation("has no messages")
    return [_message(entry, number) for number, entry in enumerate(value, start=1)]


def _message(given: Any, number: int) -> Message:
    if not isinstance(given, Mapping):
        raise NoConversation(
            f"holds {given!r:.40} as message {number}, which has no role and no content"
        )
    key = next((key for key in ("role", "from") if isinstance(given.get(key), str)), "")
    if not key:
        has = ", ".join(map(repr, given)) or "nothing"
        raise NoConversation(f"has a message {number} without a role (it has {has})")
    role = ROLES.get(given[key].strip().lower())
    if role is None:
        raise NoConversation(
            f"has a message {number} of the role {given[key]!r:.40}; there are "
            f"{', '.join(ROLES)}{nearest(given[key], ROLES)}"
        )
    kept = {name: given[name] for name in _KEPT if given.get(name) is not None}
    content = _content(given, number)
    if role == "assistant" and not content.strip() and not kept.get("tool_calls"):
        raise NoConversation(f"has a message {number}, of the assistant, that is empty")
    return {"role": role, "content": content, **kept}


def _content(given: Mapping[str, Any], number: int) -> str:
    content = given.get("content", given.get("value"))
    if isinstance(content, list | tuple | np.ndarray):
        parts = [_text_part(part, number) for part in content]
        content = "".join(parts)
    if content is None and given.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise NoConversation(f"has a message {number} without a text as content ({content!r:.40})")
    if found := lone_surrogate(content):
        raise NoConversation(
            f"holds half of a surrogate pair ({found!a}) in message {number}, which is no character"
        )
    return content


def _text_part(part: Any, number: int) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise NoConversation(f"has a message {number} with a part that is no text ({kind!r:.40})")
    return text
