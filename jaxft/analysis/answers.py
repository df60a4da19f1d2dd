"""Numbers and pictures of answers to questions: exact match and F1 as SQuAD scores them.

Rajpurkar et al. 2016 (arXiv:1606.05250) and, for questions without an answer, 2018 (arXiv:1806.03822).
"""

from __future__ import annotations

import collections
import heapq
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxft.analysis.page import Html, element, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing
from jaxft.analysis.view import View
from jaxft.training.rows import Row

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORST = 15
_KINDS = ("what", "who", "when", "where", "which", "why", "how")


def normalised(text: str) -> str:
    """As the official script compares answers: in lower case, without punctuation (ASCII), English articles
    and superfluous blanks.

    >>> normalised(" The  Quick-Fox! ")
    'quickfox'
    """
    plain = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_and_f1(found: str, answers: Sequence[str]) -> tuple[float, float]:
    """The best over all answers, 0 to 1; found: '' says that there is none.

    answers: those of which nothing is left when they are normalised do not count; none left means that
      there is none.
    """
    wanted = [text for text in map(normalised, answers) if text] or [""]
    own = normalised(found)
    return max(float(own == text) for text in wanted), max(_f1(own, text) for text in wanted)


def _f1(found: str, wanted: str) -> float:
    ours, theirs = found.split(), wanted.split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


class Graded(NamedTuple):
    """What answers are worth, [n] float64 each.

    Attributes:
      exact, f1: of the span that was found.
      empty: 1 where there is no answer, so that none is right.
    """

    exact: np.ndarray
    f1: np.ndarray
    empty: np.ndarray


def graded(found: Iterable[str], answers: Iterable[Sequence[str]]) -> Graded:
    """The spans that were found for some questions, against all answers of each."""
    rows = [
        (*exact_and_f1(text, wanted), exact_and_f1("", wanted)[0])
        for text, wanted in zip(found, answers, strict=True)
    ]
    return Graded(*np.array(rows, np.float64).reshape(-1, 3).T)


def best_threshold(margin: np.ndarray, grades: Graded) -> float:
    """The margin above which it is best to give no answer, by F1, on these questions.

    margin [n]: how far the score of no answer is above that of the span.
    """
    order = np.argsort(margin, kind="stable")
    ordered = margin[order]
    # Of the k questions with the smallest margins the spans count, of the others that there is none.
    gain = np.concatenate([[0.0], np.cumsum((grades.f1 - grades.empty)[order])])
    possible = np.append(True, np.append(ordered[1:] > ordered[:-1], True))
    best = int(np.argmax(np.where(possible, gain, -np.inf)))
    if best == len(order):
        return float(ordered[-1])
    return float(ordered[0]) - 1.0 if not best else float(ordered[best - 1])


def answer_metrics(grades: Graded, none: np.ndarray, answered: np.ndarray) -> dict[str, float]:
    """'exact_match' and 'f1'; of questions with and without an answer, too, where there are both.

    none [n] bool: that there is none is what was said. answered [n] bool: there is an answer.
    """
    exact, f1 = (np.where(none, grades.empty, given) for given in (grades.exact, grades.f1))
    found = {"exact_match": float(exact.mean()), "f1": float(f1.mean())}
    if answered.all():
        return found
    if answered.any():
        found["has_answer_exact_match"] = float(exact[answered].mean())
        found["has_answer_f1"] = float(f1[answered].mean())
    found["no_answer_accuracy"] = float(exact[~answered].mean())
    return found


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What is probably not meant."""
    if metrics["examples"] >= 20 and not metrics["f1"]:
        return ["no answer has a word in common with the right one"]
    return []


# The report


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """How many answers are right."""
    which = {"test": "test", "eval": "evaluation"}[record.split]
    text = (
        f"{metrics['exact_match']:.1%} of the answers to {metrics['examples']:,} {which} questions are "
        f"exactly right; the words of answer and prediction overlap by {metrics['f1']:.1%} (F1)."
    )
    if "no_answer_accuracy" in metrics:
        text += f" Of the questions without an answer {metrics['no_answer_accuracy']:.1%} are known as such."
    return text


def kind_of(question: str) -> str:
    """The first of its words that says what is asked for.

    >>> kind_of("In which year?"), kind_of("Name it.")
    ('which', 'other')
    """
    words = re.findall(r"[a-z]+", question.lower())
    return next((word for word in words if word in _KINDS), "other")


def predictions(record: Record, _: ModuleType) -> Html:
    """Scores by what is asked for."""
    groups: dict[str, list[Row]] = {}
    for row in filter(_is_prediction, record.predictions.get(record.split, ())):
        groups.setdefault("without an answer" if not row["answers"] else "", []).append(row)
        groups.setdefault(kind_of(row["question"]), []).append(row)
    if not groups:
        return missing(f"No predictions/{record.split}.jsonl.")
    with_answer = groups.pop("", [])
    without = groups.pop("without an answer", [])
    named = [("all", with_answer + without)]
    if without:
        named += [("with an answer", with_answer), ("without", without)]
    named += sorted(groups.items(), key=lambda group: -len(group[1]))
    cells = [
        [name, f"{len(rows):,}", *(f"{_mean(rows, key):.3f}" for key in ("exact_match", "f1"))]
        for name, rows in named
    ]
    return table(["questions", "number", "exact match", "F1"], cells, kinds="tnnn")


def worst(record: Record, _: ModuleType) -> Html:
    """The wrong answers that the model is surest of."""
    every = [row for row in record.predictions.get(record.split, ()) if _is_prediction(row)]
    wrong = [row for row in every if row["f1"] < 1]
    first = heapq.nsmallest(
        _WORST, wrong, key=lambda row: (row["f1"], -row["probability"], row["index"])
    )
    if not every:
        return missing(f"No predictions/{record.split}.jsonl.")
    cells = [
        [str(row["index"]), row["question"], " / ".join(dict.fromkeys(row["answers"])) or "–",
         row["predicted"] or "–", f"{row['f1']:.2f}", f"{row['probability']:.2f}"]
        for row in first
    ]  # fmt: skip
    note = (
        f"{len(wrong):,} of {len(every):,} answers are not wholly right; those with the least F1 that the "
        "model gave the highest probability are first."
    )
    heads = ["row", "question", "answers", "predicted", "F1", "probability"]
    return join([element("p", note), table(heads, cells, kinds="nwwwnn") if cells else Html()])


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows) / max(1, len(rows))


def _is_prediction(row: Row) -> bool:
    """Whether it holds what was written."""
    return (
        all(isinstance(row.get(key), str) for key in ("question", "predicted"))
        and all(type(row.get(key)) in (int, float) for key in ("exact_match", "f1", "probability"))
        and isinstance(row.get("answers"), list)
        and all(isinstance(text, str) for text in row["answers"])
    )


VIEW = View(
    tiles={
        "f1": "F1",
        "exact_match": "exact match",
        "has_answer_f1": "F1 where there is an answer",
        "no_answer_accuracy": "right where there is none",
        "loss": "loss",
    },
    result=result,
    sections={"Predictions": predictions, "Mistakes": worst},
)
