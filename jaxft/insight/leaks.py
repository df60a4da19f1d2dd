"""What gives the label away: a word, a column, the place in the file, the form of an image file.

Each is asked alone, by a rule that a reader can check: presence of a word, or a small tree over one value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.insight.finding import SHOWN, Finding, graded
from jaxft.insight.parts import Part, said_of_sample

_FOLDS = 5
_FEWEST = 50  # rows, below which a rule may hold by chance
# Of a rule 'this word, this label': how often it is right, and which part of the label's rows it tells.
# Words that belong to a label ('thanks' to gratitude) are right less often.
_RIGHT, _TELLS = 0.99, 0.3
_GAIN = 0.5  # share of the errors of always guessing the same that one column takes away
_NEARLY_ALL = 0.9
_WORD = re.compile(r"\w+|[^\w\s]+")
_SEED = 0


def words(part: Part) -> list[Finding]:
    """Words of the training rows whose presence alone tells a label."""
    classes = part.classes
    if classes is None or len(part) < _FEWEST or len(part.names) < 2:
        return []
    from sklearn.feature_extraction.text import CountVectorizer

    own = CountVectorizer(binary=True, analyzer=_analyse, min_df=max(5, len(part) // 1000))
    try:
        present = own.fit_transform(part.texts).tocsc()
    except ValueError:  # no word is there often enough
        return []
    counts = np.bincount(classes, minlength=len(part.names))
    one_hot = np.eye(len(part.names), dtype=np.float64)[classes]
    with_word = np.asarray(present.T @ one_hot)  # [words, classes]
    times = with_word.sum(1)
    best = with_word.argmax(1)
    hits = with_word[np.arange(len(best)), best]
    right, tells = hits / times, hits / np.maximum(counts[best], 1)
    # Where nearly all rows have one label, most words are right by that alone.
    lift = right - counts[best] / counts.sum()
    leaks = np.flatnonzero((right >= _RIGHT) & (tells >= _TELLS) & (lift >= 0.2) & (times >= 10))
    leaks = leaks[np.argsort(-tells[leaks], kind="stable")]
    if not len(leaks):
        return []
    vocabulary = own.get_feature_names_out()
    told = [
        (vocabulary[i], part.names[best[i]], float(right[i]), float(tells[i]))
        for i in leaks.tolist()
    ]
    word, label, sure, share = told[0]
    return [
        Finding(
            "words that leak the label",
            graded(share, _TELLS, 0.5),
            f"{word!r} alone means {label!r} in {sure:.1%} of its rows, and is in {share:.1%} of that label's"
            f"{said_of_sample([part])}",
            "a marker, a source, a template? Where it would not be there when predicting, take it out",
            ("word", "label", "right", "of that label's rows"),
            tuple((word, label, f"{a:.1%}", f"{b:.1%}") for word, label, a, b in told[:SHOWN]),
            {"words": told},
        )
    ]


def _analyse(texts: Sequence[str]) -> list[str]:
    """Words and marks, lower case, of all texts of a row; the number of its column is not kept."""
    return _WORD.findall(" ".join(texts).casefold())


def columns(part: Part) -> list[Finding]:
    """Columns beside inputs and label, and the place in the file, that tell the label nearly alone."""
    others = [c for c in part.source.columns if c not in (*part.columns, part.label)]
    values: dict[str, Sequence[Any]] = {}
    for name in others:
        values[name] = [v for _, (chunk,) in part.source.chunks((name,), part.rows) for v in chunk]
    advice = (
        "jaxft does not read it; never add it to data.text, and ask how it came about: perhaps the label was "
        "made of it"
    )
    found = _telling(part, values, "columns that leak the label", advice)
    # Folders of classes are in the order of the classes by themselves.
    if not part.source.paths and len(part) == part.whole:
        rows = {"number of the row": part.rows.tolist()}
        advice = "the file is sorted by label: jaxft shuffles and stratifies, but a cut by hand would not"
        found += _telling(part, rows, "order of the rows", advice, level="note")
    return found


def forms(part: Part, values: Mapping[str, Sequence[Any]]) -> list[Finding]:
    """Facts of image files (size, format, …) that tell the label nearly alone."""
    advice = "the model may learn how the files were made: save all images in one way"
    return _telling(part, values, "files that leak the label", advice)


def _telling(
    part: Part, values: Mapping[str, Sequence[Any]], check: str, advice: str, *, level: str = ""
) -> list[Finding]:
    if (
        part.targets is None
        or len(part) < _FEWEST
        or (len(part.names) < 2 and part.numbers is None)
    ):
        return []
    rows = []
    for name, column in values.items():
        encoded = _encoded(column)
        if encoded is not None and len(np.unique(encoded)) > 1:
            gain = _gain(part, encoded)
            if gain >= _GAIN:
                rows.append((name, gain))
    if not rows:
        return []
    rows.sort(key=lambda row: -row[1])
    name, gain = rows[0]
    return [
        Finding(
            check,
            level or graded(gain, _GAIN, _NEARLY_ALL),
            f"{name!r} alone takes away {gain:.0%} of the error of always guessing the same"
            f"{said_of_sample([part])}",
            advice,
            ("column", "error taken away"),
            tuple((name, f"{gain:.1%}") for name, gain in rows[:SHOWN]),
            {"columns": dict(rows)},
        )
    ]


def _gain(part: Part, values: np.ndarray) -> float:
    """1 - error / error of always guessing the same, of a tree over one value, cross-validated."""
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    least, leaves = max(5, len(values) // 1000), max(16, 4 * len(part.names))
    folds = KFold(_FOLDS, shuffle=True, random_state=_SEED)
    shared = {"min_samples_leaf": least, "max_leaf_nodes": leaves, "random_state": _SEED}
    column = values[:, None]
    if part.classes is not None:
        predicted = cross_val_predict(
            DecisionTreeClassifier(**shared), column, part.classes, cv=folds
        )
        wrong = float((predicted != part.classes).mean())
        constant = 1 - float(np.bincount(part.classes).max() / len(values))
    else:
        numbers = np.asarray(part.numbers, float)
        predicted = cross_val_predict(DecisionTreeRegressor(**shared), column, numbers, cv=folds)
        wrong, constant = float(((predicted - numbers) ** 2).mean()), float(numbers.var())
    return 1 - wrong / constant if constant > 0 else 0.0


def _encoded(column: Sequence[Any]) -> np.ndarray | None:
    """[n] float: numbers as they are, other values numbered by how often they are there; None of lists.

    Of values that hardly ever come again nothing can be learned but their order, which is that of their text.
    """
    numbers = [_number(value) for value in column]
    if all(number is not None for number in numbers):
        return np.array(numbers, float)
    if any(isinstance(value, list | tuple | dict | np.ndarray) for value in column):
        return None
    kinds, codes, counts = np.unique(
        [str(value)[:200] for value in column], return_inverse=True, return_counts=True
    )
    if len(kinds) > len(column) / 2:
        return codes.astype(float)
    return np.argsort(np.argsort(-counts, kind="stable"), kind="stable")[codes].astype(float)


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return -1e300  # missing is a value, too
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else -1e300
