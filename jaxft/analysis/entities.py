"""Entities in tagged words, and how many of them are found: precision, recall and F1 by type.

An entity counts as found if its first word, its last word and its type are right (CoNLL-2003: Tjong Kim Sang
& De Meulder 2003). Tags that do not follow their scheme are read as conlleval, the script of that task,
reads them. Computed from counts; tests hold the numbers to seqeval's.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.analysis.confusion import Confusion

# (number of the example, first word, one past the last, type)
Span = tuple[int, int, int, str]
Split = Callable[[str], tuple[str, str]]
NONE = "no entity"
_STARTS, _ENDS = "BSU", "ELSU"


def spans_of(tags: Sequence[str], split: Split, example: int = 0) -> Iterator[Span]:
    """The entities among the tags of one example, in order.

    split: 'B-person' -> ('B', 'person'); ('', tag) for a tag without a prefix. Such a tag (a part of
    speech) is an entity of one word, but for 'O', which is none.
    """
    start, kind, before = 0, "", ""
    for place, tag in enumerate(tags):
        prefix, own = split(tag)
        outside = not prefix and own == "O"
        goes_on = (
            not outside and kind == own and prefix and prefix not in _STARTS
            and before not in _ENDS
        )  # fmt: skip
        if kind and not goes_on:
            yield example, start, place, kind
            kind = ""
        if not outside and not goes_on:
            start, kind = place, own
        before = prefix or "U"
    if kind:
        yield example, start, len(tags), kind


class EntityCounts:
    """How many entities are found, by type: of all examples, added a few at a time."""

    def __init__(self) -> None:
        self._by_type: collections.defaultdict[str, list[int]] = collections.defaultdict(
            lambda: [0, 0, 0]  # right, found, true
        )
        self._pairs: collections.Counter[tuple[str, str]] = collections.Counter()

    def add(self, found: set[Span], true: set[Span]) -> None:
        """The entities of some examples, all of them."""
        for place, spans in enumerate((found & true, found, true)):
            for span in spans:
                self._by_type[span[3]][place] += 1
        found_at, true_at = ({span[:3]: span[3] for span in spans} for spans in (found, true))
        self._pairs.update(
            (true_at.get(place, NONE), found_at.get(place, NONE))
            for place in found_at.keys() | true_at.keys()
        )

    def metrics(self) -> dict[str, Any]:
        """Metrics of the entities of a whole split, as plain JSON.

        Returns:
          'f1', 'precision', 'recall' over all entities (micro average), 'f1_macro' (mean over the types
          that occur), 'entities', 'predicted_entities', 'per_class' {type: precision, recall, f1,
          support}. A ratio without a denominator is 0.
        """
        per_class = {kind: _scores(*own) for kind, own in sorted(self._by_type.items())}
        right, found, true = (
            sum(counts) for counts in zip(*self._by_type.values(), (0, 0, 0), strict=True)
        )
        total = _scores(right, found, true)
        return {
            **{name: total[name] for name in ("f1", "precision", "recall")},
            "f1_macro": float(np.mean([row["f1"] for row in per_class.values()] or [0.0])),
            "entities": true,
            "predicted_entities": found,
            "per_class": per_class,
        }

    def confusion(self, types: Sequence[str]) -> Confusion:
        """Which type is taken for which, of entities with the same words; `NONE` is no such entity."""
        number = {kind: i for i, kind in enumerate((*types, NONE))}
        rows = sorted((number[true], number[found], n) for (true, found), n in self._pairs.items())
        return Confusion(tuple(number), *np.array(rows, np.int64).reshape(-1, 3).T)


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What in the metrics is probably not meant: a model that finds nothing."""
    if metrics["predicted_entities"] or not metrics["entities"]:
        return []
    return [
        f"no entity is found, and there are {metrics['entities']:,}: too short a run, or a learning rate "
        "that is too high or too low"
    ]


def _scores(right: int, found: int, true: int) -> dict[str, float]:
    return {
        "precision": right / found if found else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (found + true) if found + true else 0.0,
        "support": true,
    }
