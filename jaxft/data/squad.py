"""SQuAD's JSON: articles, their paragraphs, and the questions about each, made one row a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.data import files
from jaxft.data.files import Source


def is_squad(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these objects are articles of SQuAD (Rajpurkar et al. 2016), by the first."""
    return isinstance(rows[0].get("paragraphs"), list)


def squad_rows(name: str, articles: Sequence[Mapping[str, Any]]) -> Source:
    """A row a question: id, title, context, question, answers {'text': [...], 'answer_start': [...]}.

    These are the columns of the dataset `squad` of Hugging Face. Questions without an answer (those of
    version 2 that have none, those of a test set) have empty lists.

    Raises ValueError, naming the place in the file: a part that is missing, or of another type.
    """
    columns: dict[str, list[Any]] = {
        key: [] for key in ("id", "title", "context", "question", "answers")
    }
    for a, article in enumerate(articles):
        title = _part(name, article, "title", str, f"article {a + 1}", "")
        for p, paragraph in enumerate(_part(name, article, "paragraphs", list, f"article {a + 1}")):
            at = f"article {a + 1}, paragraph {p + 1}"
            context = _part(name, paragraph, "context", str, at)
            for q, asked in enumerate(_part(name, paragraph, "qas", list, at)):
                here = f"{at}, question {q + 1}"
                question = _part(name, asked, "question", str, here)
                answers = _part(name, asked, "answers", list, here, [])
                columns["id"].append(str(asked.get("id", len(columns["id"]))))
                columns["title"].append(title)
                columns["context"].append(context)
                columns["question"].append(question)
                columns["answers"].append(
                    {
                        key: [_part(name, answer, key, kind, here) for answer in answers]
                        for key, kind in (("text", str), ("answer_start", int))
                    }
                )
    if not columns["id"]:
        raise ValueError(f"{name}: the articles have no questions")
    return files.table(name, columns)


def _part(name: str, whole: Any, key: str, kind: type, where: str, default: Any = None) -> Any:
    """whole[key], of a type; the default where it is not there."""
    value = whole.get(key, default) if isinstance(whole, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "has no" if value is None else f"has a {type(value).__name__} as"
        raise ValueError(
            f"{name}, {where}: {found} {key!r}; SQuAD's form has a {kind.__name__} there"
        )
    return value
