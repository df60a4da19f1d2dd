"""Texts that are empty, damaged by a wrong encoding, or hold what no reader sees."""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Callable, Sequence

from jaxft.insight.extra import needed
from jaxft.insight.finding import SHOWN, Finding, cut, graded, percent
from jaxft.insight.parts import Part, said_of_sample

# Beside tab and line ends. (Those from 0x80 on come of Windows-1252 read as Latin-1, which ftfy tells.)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
_MARKUP = re.compile(
    r"&(?:[a-z]{2,8}|#\d{2,5});|<(?:br|p|div|span|a|b|i)\b[^<>]{0,80}>", re.IGNORECASE
)


def findings(parts: Sequence[Part]) -> list[Finding]:
    """Of all parts together, one finding for each kind of damage.

    Raises ValueError: ftfy is not installed.
    """
    is_bad: Callable[[str], bool] = needed("ftfy.badness").is_bad
    fixed: Callable[[str], str] = needed("ftfy").fix_encoding
    kinds: list[tuple[str, Callable[[str], bool], tuple[float, float], str]] = [
        ("empty texts", lambda t: not t.strip(), (0.001, 0.05), "leave the rows out"),
        (
            "mojibake",
            lambda t: not t.isascii() and is_bad(t) and fixed(t) != t,
            (0.001, 0.05),
            "UTF-8 was read as another encoding: export again as UTF-8, or repair with ftfy",
        ),
        ("replacement characters", lambda t: "\ufffd" in t, (0.001, 0.05),
         "characters were lost when the file was made: export it again"),
        ("control characters", lambda t: bool(_CONTROL.search(t)), (0.001, 0.05),
         "remove them: a tokenizer drops or splits at them"),
        ("invisible characters", lambda t: bool(_INVISIBLE.search(t)), (0.01, 1.1),
         "byte order marks, soft hyphens and zero-width spaces change tokens without being seen"),
        ("markup", lambda t: bool(_MARKUP.search(t)), (0.2, 1.1),
         "HTML that predict may not meet: keep it only if it is there, too"),
    ]  # fmt: skip
    found = []
    for name, holds, (warning, serious), advice in kinds:
        hits = [
            (part, position)
            for part in parts
            for position, texts in enumerate(part.texts)
            if any(map(holds, texts))
        ]
        if hits:
            found.append(_finding(name, hits, parts, (warning, serious), advice))
    return found + _scripts(parts)


def _finding(
    name: str, hits: list[tuple[Part, int]], parts: Sequence[Part], levels: tuple[float, float],
    advice: str,
) -> Finding:  # fmt: skip
    rows = sum(map(len, parts))
    return Finding(
        name,
        graded(len(hits) / rows, *levels) if len(hits) > 1 else "note",
        f"{percent(len(hits), rows)} rows{said_of_sample(list(parts))}",
        advice,
        ("row", "text"),
        tuple((p.where(i), _around(p.shown(i))) for p, i in hits[:SHOWN]),
        {"rows": [[p.name, int(p.rows[i])] for p, i in hits]},
    )


def _around(text: str) -> str:
    """The part of a text in which something else than ASCII or a control character begins, escaped."""
    first = next((i for i, c in enumerate(text) if not c.isascii() or not c.isprintable()), 0)
    return ascii(text[max(0, first - 60) : first + 100])[1:-1]


def _scripts(parts: Sequence[Part]) -> list[Finding]:
    """A finding on rows in another script than most; languages of one script are not told apart."""
    own: list[tuple[Part, int, str]] = [
        (part, position, script)
        for part in parts
        for position, texts in enumerate(part.texts)
        if (script := main_script(" ".join(texts)))
    ]
    counts = collections.Counter(script for _, _, script in own)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    other = [(part, position) for part, position, script in own if script != usual]
    shares = ", ".join(f"{name.lower()} {n / len(own):.1%}" for name, n in counts.most_common(5))
    return [
        Finding(
            "scripts",
            graded(len(other) / len(own), 0.02),
            f"{percent(len(other), len(own))} rows are written otherwise than most: {shares}",
            "a checkpoint of one language reads little of the others",
            ("row", "text"),
            tuple((p.where(i), cut(p.shown(i), 160)) for p, i in other[:SHOWN]),
            {"scripts": dict(counts), "rows": [[p.name, int(p.rows[i])] for p, i in other]},
        )
    ]


def main_script(text: str) -> str:
    """The script of most letters, as Unicode names it ('LATIN', 'CYRILLIC'), of the first 200; '' of few."""
    letters = [c for c in text[:400] if c.isalpha()][:200]
    if len(letters) < 3:
        return ""
    if all(map(str.isascii, letters)):
        return "LATIN"
    names = [_JOINED.get(n, n) for c in letters if (n := unicodedata.name(c, "").split(" ")[0])]
    return collections.Counter(names).most_common(1)[0][0] if names else ""


# Written together: Japanese mixes three.
_JOINED = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}
