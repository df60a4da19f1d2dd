"""Tags of words as targets: the column they are in, their names and numbers, and what is not a tag."""

from __future__ import annotations

import dataclasses
import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.base.nearest import nearest
from jaxft.data.files import Column, Source, some
from jaxft.data.targets import Batch, offsets_of, places
from jaxft.data.words import words_of

# Names under which columns of tags are commonly found, the likeliest first.
TAG_COLUMNS = ("tags", "ner_tags", "ner", "labels", "pos_tags", "pos", "upos", "label")
OUTSIDE = "O"
# BIO (IOB1, IOB2), BILOU and BIOES: where in its entity a word is, and of which type that is.
_TAG = re.compile(r"([BILUES])-(.+)", re.DOTALL)
_NEARLY = re.compile(r"([BILUES])[ _:]+(.+)", re.DOTALL)
_ORDER = "BILESU"


@dataclasses.dataclass(frozen=True)
class Tags:
    """A tag a word: names[ids[offsets[j] + w]] is that of word w of the source's row rows[j].

    rows [n] int64, offsets [n + 1] int64, ids [offsets[n]] int32, dropped [m] int64. words [n]: the
    words of each example, read when they are asked for. See `Targets`.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    words: Column
    dropped: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> Tags:
        positions = np.asarray(positions, np.int64)
        counts = np.diff(self.offsets)[positions]
        offsets = offsets_of(counts)
        # One entry a word: where it was is where its example began, and its number in it.
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        ids = self.ids[np.repeat(self.offsets[positions], counts) + within]
        words = self.words.take(positions)
        return Tags(self.names, self.rows[positions], offsets, ids, words, self.dropped)

    def numbered_as(self, names: Sequence[str]) -> Tags:
        """The same tags under another numbering of the same names."""
        number = {name: i for i, name in enumerate(names)}
        renumber = np.array([number[name] for name in self.names], np.int32)
        return dataclasses.replace(self, names=tuple(names), ids=renumber[self.ids])

    def strata(self) -> np.ndarray:
        """Of each example the rarest of its types, so that rare ones, too, are in both parts."""
        types = [type_of(name) for name in self.names]
        number = {name: i for i, name in enumerate(dict.fromkeys(types))}
        of_tag = np.array([number[name] for name in types])
        of_word, example = of_tag[self.ids], np.repeat(np.arange(len(self)), np.diff(self.offsets))
        rarity = np.argsort(np.argsort(np.bincount(of_word, minlength=len(number)), kind="stable"))
        strata = np.full(len(self), len(number))  # what an example without words keeps
        np.minimum.at(strata, example, rarity[of_word])
        return strata

    def said_of_strata(self) -> str:
        return "of those with each tag alike"

    def fill(self, slots: np.ndarray, inputs: Batch) -> Batch:
        """'labels' int32 and 'weight' float32 [R, L]: the first token of each word counts."""
        word = self.word_of(slots, inputs)
        counts = word >= 0
        labels = np.zeros(word.shape, np.int32)
        labels[counts] = self.ids[word[counts]]
        index = places(self.rows, slots)["index"]
        return {"labels": labels, "weight": counts.astype(np.float32), "index": index}

    def word_of(self, slots: np.ndarray, inputs: Batch) -> np.ndarray:
        """[R, L] int64: of each token that begins a word its number among those of all examples, else -1."""
        words = inputs["words"]
        slot = np.maximum(inputs["segment_ids"] - 1, 0)
        example = np.take_along_axis(slots, slot, axis=1)
        return np.where(words >= 0, self.offsets[example] + words, -1)

    def contents(self) -> tuple[np.ndarray, ...]:
        return self.rows, self.offsets, self.ids


def split_tag(name: str) -> tuple[str, str]:
    """('B', 'person') of 'B-person'; ('', 'O') of what is no part of an entity.

    >>> split_tag("I-creative-work"), split_tag("NOUN")
    (('I', 'creative-work'), ('', 'NOUN'))
    """
    match = _TAG.fullmatch(name)
    return (match[1], match[2]) if match else ("", name)


def type_of(name: str) -> str:
    """'person' of 'B-person'; a tag without a prefix is its own type."""
    return split_tag(name)[1]


def read_tags(
    source: Source,
    column: str,
    words: str,
    *,
    names: Sequence[str] | None = None,
    drop_bad: bool = False,
    advice: str = "",
) -> Tags:
    """Reads a tag for each word of the column `words`: a list of names or of class numbers, or a text.

    names: those of the model; None (this is the training data) takes the source's class names or,
      for plain files, the tags that occur, 'O' first, then by type, completed by the prefixes that
      occur with any type (B-x is given I-x even where x has one word each time).
    drop_bad: leave out rows whose tags are missing or not as many as their words, rather than raise.
    advice: how the user can ask for that, for the message of this error.

    Raises ValueError: a row without tags, or with another number of them than words (the first such
    row, and how many); a tag that is none of the names.
    """
    item_names = source.item_names.get(column)
    codes: dict[str, int] = {}  # of the tags, in the order of first use
    found, counts, usable, faulty = array("i"), array("q"), array("q"), array("q")
    fault = ""
    for part, (given, sentences) in source.chunks((column, words)):
        for row, value, sentence in zip(part.tolist(), given, sentences, strict=True):
            tags = _tags_of(value, item_names)
            if own := _fault(tags, _words(sentence), value, column):
                faulty.append(row)
                fault = fault or own
                continue
            usable.append(row)
            counts.append(len(tags or ()))
            found.extend(codes.setdefault(tag, len(codes)) for tag in tags or ())
    rows, dropped = np.array(usable, np.int64), np.array(faulty, np.int64)
    if len(dropped) and not (drop_bad and len(rows)):
        raise ValueError(_said_of(source, dropped, fault) + advice)
    if names is None:
        names = item_names or complete(set(codes))
        _check_prefixes(f"{source.name}: column {column!r}", names)
        if len(names) < 2:
            raise ValueError(
                f"{source.name}: column {column!r} holds one tag only ({some(names)}); there is nothing "
                "to learn"
            )
    number = {name: i for i, name in enumerate(names)}
    ids = np.array([number.get(tag, -1) for tag in codes], np.int32)[np.array(found, np.int32)]
    offsets = offsets_of(np.array(counts, np.int64))
    if len(strange := np.flatnonzero(ids < 0)):
        example = int(np.searchsorted(offsets, strange[0], side="right")) - 1
        tag = list(codes)[found[strange[0]]]
        raise ValueError(_unknown(source, int(rows[example]), tag, len(strange), names))
    own_words = Column(source, words, rows, words_of)
    return Tags(tuple(names), rows, offsets, ids, own_words, dropped)


def complete(found: set[str]) -> list[str]:
    """The tags that a model is to know, in order, where these occur.

    >>> complete({"B-b", "O", "B-a", "I-a"})
    ['O', 'B-a', 'I-a', 'B-b', 'I-b']
    """
    parts = [split_tag(name) for name in found]
    prefixes = sorted({prefix for prefix, _ in parts if prefix}, key=_ORDER.index)
    types = sorted({kind for prefix, kind in parts if prefix})
    plain = sorted(kind for prefix, kind in parts if not prefix and kind != OUTSIDE)
    entities = [f"{prefix}-{kind}" for kind in types for prefix in prefixes]
    outside = [OUTSIDE] if OUTSIDE in found or entities else []
    return [*outside, *plain, *entities]


def _check_prefixes(where: str, names: Sequence[str]) -> None:
    """Raises ValueError if every tag but 'O' has a prefix without its hyphen: each would be a type."""
    nearly = [_NEARLY.fullmatch(name) for name in names if name != OUTSIDE]
    begins = next((match for match in nearly if match and match[1] == "B"), None)
    if begins and all(nearly):
        raise ValueError(
            f"{where} has tags like {begins[0]!r}, whose prefix is not told from its type; a hyphen joins "
            f"them: {begins[1] + '-' + begins[2]!r}"
        )


def _words(value: Any) -> list[str] | None:
    """The words of a row; None where it has none, which is said when the inputs are looked at."""
    return words_of(value) if isinstance(value, str | list | tuple | np.ndarray) else None


def _tags_of(value: Any, names: Sequence[str] | None) -> list[str] | None:
    """The names of a row's tags; None where it has none."""
    if not isinstance(value, str | list | tuple | np.ndarray):
        return None
    found: list[Any] = words_of(value)
    if names is not None and all(isinstance(tag, int) for tag in found):
        return [names[tag] if 0 <= tag < len(names) else str(tag) for tag in found]
    return [str(tag).strip() for tag in found] if None not in found else None


def _fault(tags: list[str] | None, words: list[str] | None, value: Any, column: str) -> str:
    if tags is None:
        return f"column {column!r} has no tags ({value!r:.40})"
    if words is not None and len(tags) != len(words):
        return f"column {column!r} has {len(tags)} tags for {len(words)} words"
    return f"column {column!r} has an empty tag" if "" in tags else ""


def _said_of(source: Source, rows: np.ndarray, fault: str) -> str:
    more = f"; {len(rows)} rows are like this ({source.numbered(rows)})" if len(rows) > 1 else ""
    return f"{source.where(int(rows[0]))}: {fault}{more}: mend them, or leave them out"


def _unknown(source: Source, row: int, tag: str, count: int, names: Sequence[str]) -> str:
    more = f" ({count} words have unknown tags)" if count > 1 else ""
    return (
        f"{source.where(row)}: the tag {tag!r} is unknown{more}; the model's tags are "
        f"{some(names, 20)}{nearest(tag, names)}"
    )
