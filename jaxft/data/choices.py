"""Questions with several possible answers: their columns, their tokens, and which choice is right."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxft.base.nearest import nearest
from jaxft.data import token_cache
from jaxft.data.checks import text_fault
from jaxft.data.encode import Encoded, kept
from jaxft.data.files import Source, some
from jaxft.data.labels import Labels, find_column
from jaxft.data.questions import text_of
from jaxft.data.text import check_vocabulary, second_start, set_truncation
from jaxft.data.tokenizer import attempt
from jaxft.data.tokens import Tokens, grouped, joined

# Names under which lists of choices are commonly found, and those of columns of one choice each, which a
# number or a letter follows: ending0, sol1, option_a.
CHOICE_COLUMNS = ("choices", "options", "endings", "candidates")
_ONE_CHOICE = re.compile(r"(ending|choice|option|sol|solution|answer|candidate)_?([0-9]+|[A-Ha-h])")
# Names under which what they are choices for is found; of two the second is completed by the choice.
PROMPT_COLUMNS = (
    ("sent1", "sent2"),
    ("article", "question"),
    ("passage", "question"),
    ("context", "question"),
    ("premise", "question"),
    ("question",),
    ("context",),
    ("ctx",),
    ("goal",),
    ("premise",),
    ("sentence",),
    ("prompt",),
    ("text",),
)
ANSWER_COLUMNS = ("label", "labels", "answer", "answerKey", "answerkey", "gold", "target")
_EXAMPLES = 256  # whose choices are given to the tokenizer at a time


def find_choice_columns(source: Source, given: Sequence[str], label: str) -> tuple[str, ...]:
    """The columns of the prompt, one or two, and of the choices: one of lists, or one for each choice.

    Raises ValueError: there are none, or those that are given cannot be told apart.
    """
    for name in given:
        find_column(source, name, (), "choices", option="text")
    names = tuple(given) or source.columns
    # An answer1 is a choice, and an answer never is.
    choices = [name for name in names if _ONE_CHOICE.fullmatch(name) and name != label]
    lists = [name for name in names if name.lower() in CHOICE_COLUMNS and name != label]
    if given and not lists and not choices:
        row = source[0]
        lists = [name for name in given if isinstance(row[name], list | tuple | dict | np.ndarray)]
    found = tuple(lists[:1] or choices)
    if not found or (not lists and len(found) < 2):
        raise ValueError(
            f"{source.name}: no choices found among {some(names)}; name by config.data.text what they are "
            "for and a column of lists, or one for each choice: ending0, ending1, …"
        )
    rest = [name for name in names if name not in found]
    if not given:
        lower = {name.lower(): name for name in reversed(rest)}
        rest = next(
            ([lower[name] for name in pair] for pair in PROMPT_COLUMNS if set(pair) <= set(lower)),
            [],
        )
    if not 1 <= len(rest) <= 2:
        raise ValueError(
            f"{source.name}: the choices ({some(found)}) are for one text or two, not for "
            f"{some(rest)}; name them all by config.data.text"
        )
    return (*rest, *found)


def parts_of(columns: Sequence[str], row: Sequence[Any]) -> tuple[list[str], list[str]]:
    """(texts of the prompt, choices) of the values in these columns, which have no fault."""
    texts = [_texts(value) for value in row]
    at = next(
        (i for i, value in enumerate(texts) if isinstance(value, list)),
        next((i for i, name in enumerate(columns) if _ONE_CHOICE.fullmatch(name)), len(columns)),
    )
    prompt = [str(text) for text in texts[:at]]
    after = texts[at:]
    return prompt, after[0] if after and isinstance(after[0], list) else [str(x) for x in after]


def _texts(value: Any) -> str | list[str]:
    """A text, or the texts of a list, of {'text': …}, or of JSON's text of one of the two."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            read = json.loads(value)
            return _texts(read) if isinstance(read, list | dict) else value
        except (ValueError, RecursionError):
            return value
    if isinstance(value, Mapping):
        return _texts(list(value["text"]))
    if isinstance(value, list | tuple | np.ndarray):
        return [text_of(item) for item in value]
    return text_of(value)


def choice_fault(value: Any) -> str:
    """What keeps a value from being a text or a list of choices, or ''."""
    if isinstance(value, Mapping):
        texts = value.get("text")
        if not isinstance(texts, list | tuple | np.ndarray):
            return f"holds {value!r:.40}, which has no list under 'text'"
        return choice_fault(list(texts))
    if not isinstance(value, list | tuple | np.ndarray):
        return text_fault(value)
    if len(value) < 2:
        return f"holds {len(value)} choices; two are the least"
    faults = (text_fault(item) for item in value)
    return next((fault for fault in faults if fault), "")


def shown(columns_values: Sequence[Any]) -> str:
    """Of the values of a row: all of its texts."""
    parts = (_texts(value) for value in columns_values)
    return " | ".join(" / ".join(part) if isinstance(part, list) else part for part in parts)


def tokenize_choices(
    source: Source,
    rows: np.ndarray,
    columns: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    *,
    max_length: int,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises the prompt of each row with each of its choices, or maps what an earlier call made.

    Arguments, cache and errors as of `text.tokenize`. An entry is as many texts as there are choices.

    Raises ValueError: a row with another number of choices than the first.
    """
    set_truncation(tokenizer, max_length, pairs=True)
    count = len(parts_of(columns, [source[int(rows[0])][name] for name in columns])[1])
    return tokenize_groups(
        lambda rows: _pairs(source, rows, columns, count), source, rows, count, tokenizer,
        vocab_size=vocab_size, cache_dir=cache_dir,
    )  # fmt: skip


def tokenize_groups(
    texts: Callable[[np.ndarray], Iterator[list[Any]]],
    source: Source,
    rows: np.ndarray,
    count: int,
    tokenizer: tokenizers.Tokenizer,
    *,
    vocab_size: int,
    cache_dir: str | None,
) -> Tokens:
    """Tokenises `count` texts a row, each by itself, as one entry of that many texts.

    texts: of rows, some rows after the other: texts or pairs of them, those of a row together.
    tokenizer: with its truncation set. Other arguments and cache as of `text.tokenize`.

    Raises ValueError: a text without a token, naming its row.
    """

    def part(rows: np.ndarray) -> Tokens:
        return kept(
            lambda: _encoded(texts(rows), source, count, tokenizer, vocab_size), (),
            _key(texts(rows), len(rows), count, tokenizer) if cache_dir else "",
            len(rows) * count, tokenizer, vocab_size=vocab_size, cache_dir=cache_dir,
        )  # fmt: skip

    tokens = joined([part(shard) for shard in token_cache.shards(rows)])
    if (empty := np.flatnonzero(tokens.lengths == 0)).size:
        raise ValueError(
            f"{source.where(int(rows[empty[0] // count]))}: the tokenizer makes no token of a text, and it "
            f"adds none of its own; {len(empty)} such in all: leave them out"
        )
    return grouped(tokens, count)


def _pairs(
    source: Source, rows: np.ndarray, columns: Sequence[str], count: int
) -> Iterator[list[tuple[str, str]]]:
    """(prompt, choice) of all choices of some rows after the other."""
    for part, values in source.chunks(columns, rows):
        pairs = []
        for row, own in zip(part.tolist(), zip(*values, strict=True), strict=True):
            prompt, choices = parts_of(columns, own)
            if len(choices) != count:
                raise ValueError(
                    f"{source.where(row)}: {len(choices)} choices, where the first row has {count}; all "
                    "rows must have as many"
                )
            # As in transformers' recipe: of two texts the second begins what the choice ends.
            pairs += [(prompt[0], " ".join((*prompt[1:], choice))) for choice in choices]
        yield pairs


def _encoded(
    chunks: Iterator[list[Any]], source: Source, count: int, tokenizer: tokenizers.Tokenizer,
    vocab_size: int,
) -> Iterator[Encoded]:  # fmt: skip
    for texts in chunks:
        for start in range(0, len(texts), _EXAMPLES * count):
            encodings = attempt(
                functools.partial(
                    tokenizer.encode_batch_fast, texts[start : start + _EXAMPLES * count]
                ),
                f"the checkpoint's tokenizer fails on the texts of {source.name}",
            )
            own = [encoding.ids for encoding in encodings]
            ids = np.fromiter(itertools.chain.from_iterable(own), np.int32)
            check_vocabulary(int(ids.max(initial=-1)), tokenizer, vocab_size)
            second = [second_start(encoding.type_ids) for encoding in encodings]
            yield Encoded(
                np.array(list(map(len, own)), np.int32), np.array(second, np.int32), ids, {}
            )


def _key(
    chunks: Iterator[list[Any]], rows: int, count: int, tokenizer: tokenizers.Tokenizer
) -> str:
    made_by = f"groups {token_cache.VERSION} {rows} {count} "
    digest = hashlib.blake2b(made_by.encode(), digest_size=16)
    digest.update(tokenizer.to_str().encode())  # holds max_length as well: truncation is set
    for texts in chunks:
        digest.update(json.dumps(texts).encode())
    return digest.hexdigest()


# Which choice is right


def read_choices(
    source: Source,
    column: str,
    inputs: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    drop_bad: bool = False,
    advice: str = "",
) -> Labels:
    """Reads which choice of each row is right: its number, from 0 or from 1, its letter, or its text.

    names: what the choices are called, by number; None (this is the training data) makes them of what
      occurs: numbers from 1 where the last choice has the number of choices, letters, else numbers from 0.
    drop_bad: leave out rows that say of none that it is right, rather than raise.
    advice: how the user can ask for that, for the message of this error.

    Raises ValueError: a row with another number of choices than the first, or one that says of none of
    its choices that it is right (the first such row, and how many).
    """
    given, rows, count = [], array("q"), 0
    own: dict[int, int] = {}  # of rows that name the choice by its text or by a key of their own
    for part, values in source.chunks((column, *inputs)):
        for row, value, *texts in zip(part.tolist(), *values, strict=True):
            keys, choices = _choices(inputs, texts)
            count = count or len(choices)
            if choices and len(choices) != count:
                raise ValueError(
                    f"{source.where(row)}: {len(choices)} choices, where the first row has {count}; all "
                    "rows must have as many"
                )
            name = _name(value)
            if name in keys:
                own[row] = keys.index(name)
            elif name in choices and not _is_number_or_letter(name):
                own[row] = choices.index(name)
            given.append(name)
            rows.append(row)
    named = tuple(
        names or _names([n for r, n in zip(rows, given, strict=True) if r not in own], count)
    )
    number = {name: i for i, name in enumerate(named)}
    ids = np.array(
        [own.get(row, number.get(name, -1)) for row, name in zip(rows, given, strict=True)],
        np.int32,
    )
    ids[ids >= count] = -1
    faulty = np.flatnonzero(ids < 0)
    if len(faulty) and (not drop_bad or len(faulty) == len(ids)):
        raise ValueError(_said_of(source, faulty, given[faulty[0]], column, named) + advice)
    usable = np.flatnonzero(ids >= 0)
    return Labels(named, usable, ids[usable], faulty)


def _choices(inputs: Sequence[str], values: Sequence[Any]) -> tuple[list[str], list[str]]:
    """(keys that the row itself gives its choices, the choices); none where a value is no text."""
    if any(choice_fault(value) for value in values):  # said when the inputs are looked at
        return [], []
    keyed = next((v for v in values if isinstance(v, Mapping) and "label" in v), {})
    return [str(key) for key in keyed.get("label", ())], parts_of(inputs, values)[1]


def _name(value: Any) -> str:
    """A label as text: '1' of 1, of 1.0 and of '1.0'; '' where there is none."""
    text = "" if value is None else text_of(value).strip()
    return text[:-2] if re.fullmatch(r"[0-9]+\.0", text) else "" if text == "nan" else text


def _is_number_or_letter(name: str) -> bool:
    return bool(re.fullmatch(r"[0-9]+|[A-Za-z]", name))


def _names(found: Sequence[str], count: int) -> list[str]:
    kinds = {name for name in found if name}
    letters = [chr(ord("A") + i) for i in range(count)]
    for style in (letters, [letter.lower() for letter in letters]):
        if kinds and kinds <= set(style):
            return style
    first = int("0" not in kinds and str(count) in kinds)
    return [str(first + i) for i in range(count)]


def _said_of(
    source: Source, faulty: np.ndarray, name: str, column: str, names: Sequence[str]
) -> str:
    what = f"{name!r:.40} is none of the choices" if name else "says of no choice that it is right"
    more = f"; {len(faulty)} rows are like this ({source.numbered(faulty)})"
    return (
        f"{source.where(int(faulty[0]))}: column {column!r}: {what}, which are called "
        f"{', '.join(names)}{nearest(name, names) if name else ''}{more if len(faulty) > 1 else ''}: "
        "mend them, or leave them out"
    )
