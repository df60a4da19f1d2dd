"""How long texts are, what is cut off at the chosen length, and what the tokenizer does not know."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np
import tokenizers

from jaxft.analysis.plots import histogram
from jaxft.data.special_tokens import unknown_token
from jaxft.insight.finding import SHOWN, Finding, graded, percent
from jaxft.insight.parts import Part, Texts, said_of_sample

_CHUNK = 256  # texts that are tokenised at a time
_PIECES = 60  # characters of an unknown piece that are shown, at most


def words(parts: Sequence[Part]) -> Finding:
    """Lengths in words: without a checkpoint nothing is known of tokens."""
    counts = [np.array([sum(len(t.split()) for t in row) for row in p.texts]) for p in parts]
    every = np.concatenate(counts)
    return Finding(
        "lengths",
        "note",
        f"{_quantiles(every)} words (give config.model.path to count tokens){said_of_sample(list(parts))}",
        details={"words": _summary(every)},
        figure=histogram(np.minimum(every, np.quantile(every, 0.999)), "words", mark=None),
    )


def findings(
    parts: Sequence[Part], tokenizer: tokenizers.Tokenizer, max_length: int | None
) -> list[Finding]:
    """Lengths in tokens, what lies beyond max_length, and unknown tokens.

    Args:
      tokenizer: of the checkpoint; its truncation is taken away.
      max_length: tokens that the model will read, special ones included; None: all are read.
    """
    tokenizer.no_truncation()
    unknown = unknown_token(tokenizer)
    lengths, seen, pieces = [], 0, collections.Counter[str]()
    for part in parts:
        own = []
        for start in range(0, len(part), _CHUNK):
            texts = part.texts[start : start + _CHUNK]
            for row, encoding in zip(texts, _encode(tokenizer, texts), strict=True):
                ids = encoding.ids
                own.append(len(ids))
                if unknown is not None and unknown in ids:
                    places = [i for i, token in enumerate(ids) if token == unknown]
                    seen += len(places)
                    pieces.update(_piece(row, encoding, i) for i in places)
        lengths.append(np.array(own, np.int64))
    return [
        _cut(parts, lengths, max_length),
        *_unknown(parts, int(sum(map(np.sum, lengths))), seen, pieces),
    ]


def _encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[Texts]) -> list:
    """Of two texts as a pair, of more as one text."""
    pairs = [row if len(row) == 2 else " ".join(row) for row in texts]
    return tokenizer.encode_batch(pairs)


def _piece(row: Texts, encoding: tokenizers.Encoding, place: int) -> str:
    start, end = encoding.offsets[place]
    text = row[min(encoding.type_ids[place], 1)] if len(row) == 2 else " ".join(row)
    return text[start:end][:_PIECES]


def _cut(parts: Sequence[Part], lengths: Sequence[np.ndarray], limit: int | None) -> Finding:
    every = np.concatenate(lengths)
    if limit is None:
        return Finding(
            "lengths",
            "note",
            f"{_quantiles(every)} tokens{said_of_sample(list(parts))}",
            details={"tokens": _summary(every)},
            figure=histogram(np.minimum(every, np.quantile(every, 0.999)), "tokens", mark=None),
        )
    longer = int((every > limit).sum())
    lost = int(np.maximum(every - limit, 0).sum())
    share = lost / every.sum()
    summary = f"{_quantiles(every)} tokens"
    summary += (
        f"; {percent(longer, len(every))} rows are cut at {limit}, and {share:.1%} of tokens lost"
    )
    order = np.argsort(-every, kind="stable")[: SHOWN if longer else 0]
    owner = np.repeat(np.arange(len(parts)), list(map(len, lengths)))
    start = np.cumsum([0, *map(len, lengths)])
    rows = tuple(
        (parts[owner[i]].where(int(i - start[owner[i]])), f"{every[i]:,}") for i in order.tolist()
    )
    shown = max(float(np.quantile(every, 0.999)), limit * 1.05 if longer else 0)
    return Finding(
        "truncation",
        graded(share, 0.01, 0.1) if longer > 1 else "note",
        summary + said_of_sample(list(parts)),
        f"raise data.max_length, or cut by hand what matters least (longest: {every.max():,})"
        if share >= 0.01
        else "",
        ("row", "tokens") if rows else (),
        rows,
        {"max_length": limit, "cut": longer, "lost": share, "tokens": _summary(every)},
        figure=histogram(np.minimum(every, shown), "tokens", mark=limit if longer else None),
    )


def _unknown(
    parts: Sequence[Part], tokens: int, seen: int, pieces: collections.Counter[str]
) -> list[Finding]:
    if not seen:
        return []
    return [
        Finding(
            "unknown tokens",
            graded(seen / tokens, 0.005, 0.05),
            f"{percent(seen, tokens)} tokens are unknown to the tokenizer{said_of_sample(list(parts))}",
            "the model reads the same nothing for each of them; is it a checkpoint for this language?",
            ("text", "times"),
            tuple((piece, f"{count:,}") for piece, count in pieces.most_common(SHOWN)),
            {"unknown": seen, "tokens": tokens},
        )
    ]


def _quantiles(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"median {middle:.0f}, 90 % of rows {low:.0f} to {high:.0f}, longest {values.max():,}"


def _summary(values: np.ndarray) -> dict[str, float]:
    names = ("min", "5%", "median", "95%", "99%", "max")
    return dict(
        zip(names, np.quantile(values, (0, 0.05, 0.5, 0.95, 0.99, 1)).tolist(), strict=True)
    )
