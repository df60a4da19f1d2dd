"""Labels of sets and tags of words that a probe disagrees with: confident learning as in suspicious.py.

Each label of a set is asked for on its own, yes or no (Thyagarajan et al., "Identifying Incorrect
Annotations in Multi-Label Classification Data", 2022). Each word is an example of its tag's type (Wang and
Mueller, "Detecting Label Errors in Token Classification Data", 2022); where an entity begins is not asked.
Folds are of rows, so that the words of a sentence are in one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxft.analysis import probing
from jaxft.insight.finding import SHOWN, Finding, cut, graded
from jaxft.insight.parts import Part, said_of_sample, tag_types
from jaxft.insight.suspicious import FEW_EACH, FEWEST, FOLDS, KNOWS, ranked

_MOST_LABELS = 50  # that are asked for, the most frequent
_MOST_WORDS = 20_000  # that are asked about
_FEWEST_WORDS = 500
_LEAST = 1e-12

# (fitted, asked) rows, [n] bool -> probabilities [asked] that it is true of them
YesNo = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def yes_or_no(features: Any) -> YesNo:
    """Logistic regression on features [n, D], dense ones standardised, sparse ones as they are."""
    from sklearn.linear_model import LogisticRegression

    def probe(fitted: np.ndarray, asked: np.ndarray, true: np.ndarray) -> np.ndarray:
        if true[fitted].all() or not true[fitted].any():
            return np.full(len(asked), float(true[fitted][0]))
        if isinstance(features, np.ndarray):
            classes = true[fitted].astype(np.int64)
            return np.exp(probing.classify(features[fitted], classes, features[asked], 2)[:, 1])
        model = LogisticRegression(C=10.0, solver="liblinear").fit(features[fitted], true[fitted])
        return model.predict_proba(features[asked])[:, 1]

    return probe


def asked_labels(part: Part) -> np.ndarray:
    """Numbers of the labels of a set that can be doubted: enough rows have them, and enough have not."""
    if part.sets is None:
        return np.zeros(0, np.int64)
    counts = part.sets.counts()
    enough = np.flatnonzero(np.minimum(counts, len(part) - counts) >= FEW_EACH)
    return np.sort(enough[np.argsort(-counts[enough], kind="stable")][:_MOST_LABELS])


def why_not(part: Part) -> str:
    """Why the labels or tags of a part cannot be doubted, or ''."""
    if part.sets is not None and (len(part) < FEWEST or not len(asked_labels(part))):
        return f"{len(part)} rows, no label in {FEW_EACH} of them and not in {FEW_EACH}: too few to doubt one"
    if part.tags is not None:
        assert part.labels is not None
        words, known = len(part.tags.ids), int((part.labels.counts() >= FEW_EACH).sum())
        if words < _FEWEST_WORDS or not known:
            return (
                f"{words} words, {known} types of tags in {FEW_EACH} rows: too few to doubt a tag"
            )
    return ""


def findings_of_sets(part: Part, probe: YesNo, by: str, seed: int) -> list[Finding]:
    """The most suspicious labels of rows that may have several: those they have, and those they lack.

    Args:
      by: what the probe reads, in words.

    Raises ValueError: cleanlab is not installed.
    """
    assert part.sets is not None
    asked = asked_labels(part)
    dense = part.sets.dense(np.arange(len(part)))
    folds = probing.folds(part.sets.strata(), FOLDS, seed)
    doubts: list[
        tuple[float, int, int, bool]
    ] = []  # probability of what is given, row, label, is an alarm
    known = []
    for label in asked.tolist():
        true, given = dense[:, label], np.zeros(len(part))
        for fitted, rest in folds:
            given[rest] = probe(fitted, rest, true)
        order, sure = ranked(true.astype(np.int64), np.stack([1 - given, given], 1))
        error, constant = np.mean((given > 0.5) != true), min(true.mean(), 1 - true.mean())
        if 1 - error / constant >= KNOWS:
            known.append(part.names[label])
        own = np.where(true, given, 1 - given)
        alarm = sure & (1 - error / constant >= KNOWS)
        doubts += [(float(own[i]), i, label, bool(alarm[i])) for i in order.tolist()]
    doubts.sort(key=lambda one: (not one[3], one[0]))
    rows = len({i for _, i, _, alarm in doubts if alarm})
    summary = (
        f"a probe of {by} doubts {len(doubts):,} of {len(asked) * len(part):,} labels given or not given, "
        f"{sum(one[3] for one in doubts):,} of them surely, in {rows:,} rows; it knows {len(known)} of the "
        f"{len(asked)} labels asked for well enough for an alarm"
    )
    table = tuple(
        (
            part.where(i), part.names[label], "given" if dense[i, label] else "not given",
            f"{1 - own:.2f}", cut(part.shown(i)),
        )
        for own, i, label, _ in doubts[:SHOWN]
    )  # fmt: skip
    found = [
        [int(part.rows[i]), part.names[label], bool(dense[i, label]), 1 - own, alarm]
        for own, i, label, alarm in doubts
    ]
    heads = ("row", "label", "is", "the probe doubts it")
    return [_finding(part, rows / len(part), summary, heads, table, [i for _, i, _, _ in doubts],
                     {"known": known, "rows": found})]  # fmt: skip


def findings_of_tags(part: Part, seed: int) -> list[Finding]:
    """The words whose tag is most suspicious, by a probe of the word, its form and its neighbours.

    Raises ValueError: cleanlab is not installed.
    """
    assert part.tags is not None
    a_row = max(1.0, len(part.tags.ids) / len(part))
    part = part.sample(max(FEWEST, int(_MOST_WORDS / a_row)), seed)
    tags = part.tags
    assert tags is not None
    kinds, of_tag = tag_types(tags.names)
    classes = of_tag[tags.ids]
    sentences = [list(words) for words in tags.words]
    row = np.repeat(np.arange(len(part)), np.diff(tags.offsets))
    given = _of_words(
        sentences, classes, row, probing.folds(tags.strata(), FOLDS, seed), len(kinds)
    )
    there = np.unique(classes)  # cleanlab asks for an example of each
    order, sure = ranked(
        np.searchsorted(there, classes), given[:, there] / given[:, there].sum(1, keepdims=True)
    )
    right = float((given.argmax(1) == classes).mean())
    constant = float(np.bincount(classes).max() / len(classes))
    knows = (right - constant) / max(1 - constant, _LEAST)
    order = order[np.argsort(~sure[order], kind="stable")]
    rows = len(np.unique(row[sure]))
    summary = (
        f"a probe of words and their neighbours (right for {right:.1%} of them; always the same: "
        f"{constant:.1%}) doubts {len(order):,} of {len(classes):,} tags, {int(sure.sum()):,} of them "
        f"surely, in {rows:,} rows"
        + ("" if knows >= KNOWS else "; it knows too little of the task for an alarm")
    )
    place = np.arange(len(classes)) - tags.offsets[row]
    found = [
        (
            int(row[w]),
            int(place[w]),
            tags.names[tags.ids[w]],
            kinds[given[w].argmax()],
            float(given[w].max()),
        )
        for w in order.tolist()
    ]
    table = tuple(
        (part.where(i), sentences[i][at], tag, says, f"{much:.2f}", cut(" ".join(sentences[i])))
        for i, at, tag, says, much in found[:SHOWN]
    )
    details = {"accuracy": right, "rows": [[int(part.rows[i]), *rest] for i, *rest in found]}
    heads = ("row", "word", "tag", "the probe says", "sure")
    share = rows / len(part) if knows >= KNOWS else 0.0
    return [_finding(part, share, summary, heads, table, [i for i, *_ in found], details)]


def _finding(
    part: Part, share: float, summary: str, heads: tuple[str, ...], table: tuple[tuple[str, ...], ...],
    rows: Sequence[int], details: dict[str, Any],
) -> Finding:  # fmt: skip
    """share: of rows with an alarm. table: with the input last, which of images is a picture."""
    images = part.are_images
    return Finding(
        "suspicious labels",
        graded(share, 0.01, 0.1),
        summary + said_of_sample([part]),
        "look at the first ones: right labels of hard rows are among them, so drop none unseen",
        heads if images else (*heads, "input"),
        tuple(row[: len(heads)] for row in table) if images else table,
        details,
        tuple((part.picture(i),) for i in rows[:SHOWN]) if images else (),
    )


def _of_words(
    sentences: Sequence[Sequence[str]], classes: np.ndarray, row: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]], count: int,
) -> np.ndarray:  # fmt: skip
    """[words, count] probabilities of each word by a probe of the other folds."""
    from sklearn.feature_extraction.text import CountVectorizer

    features = CountVectorizer(analyzer=_described, binary=True, dtype=np.float64)
    ask = yes_or_no(features.fit_transform(_each_word(sentences)))
    found = np.full((len(classes), count), _LEAST)
    for fitted, _ in folds:
        inside = np.isin(row, fitted)
        known, asked = np.flatnonzero(inside), np.flatnonzero(~inside)
        for number in range(count):
            found[asked, number] = np.maximum(ask(known, asked, classes == number), _LEAST)
    return found / found.sum(1, keepdims=True)


def _each_word(sentences: Sequence[Sequence[str]]) -> Iterator[tuple[str, str, str]]:
    """(the word before, the word, the one after) of all words."""
    for words in sentences:
        padded = ["", *words, ""]
        yield from zip(padded, words, padded[2:], strict=False)


def _described(three: tuple[str, str, str]) -> list[str]:
    """What the probe sees of a word between two others.

    >>> _described(("in", "Berlin", "."))
    ['w=berlin', 'e=lin', 'f=Xx', 'b=in', 'a=.']
    """
    before, word, after = three
    form = re.sub(r"(.)\1+", r"\1", re.sub(r"\d", "0", re.sub(r"[^\W\d_]", _case, word)))
    low = word.casefold()
    return [
        f"w={low}",
        f"e={low[-3:]}",
        f"f={form}",
        f"b={before.casefold()}",
        f"a={after.casefold()}",
    ]


def _case(letter: re.Match[str]) -> str:
    return "X" if letter[0].isupper() else "x"
