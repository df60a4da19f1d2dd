"""How near generated texts come to those that were to be given, and what the report shows of them.

ROUGE (Lin, 2004) as rouge-score computes it, BLEU (Papineni et al., 2002) and chrF (Popović, 2015) as
sacrebleu does: the reference implementations, of the extra `text`.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jaxft.analysis import language
from jaxft.analysis.page import Html, element, figure, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing
from jaxft.analysis.view import View
from jaxft.training.rows import Row

_ROUGE = ("rouge1", "rouge2", "rougeL")
SCORES = ("rougeL", "rouge1", "rouge2", "bleu", "chrf", "exact_match")
SHOWN = ("rougeL", "bleu", "chrf")
_WORST = 15


def require_libraries() -> None:
    """Raises ValueError where what scores texts is not installed."""
    try:
        import rouge_score.rouge_scorer  # noqa: F401
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"config.eval.generate scores texts by sacrebleu and rouge-score, and {error.name} is not "
            "installed: pip install 'jaxft[text]', or set config.eval.generate=0"
        ) from None


def scores(texts: Sequence[str], wanted: Sequence[str]) -> dict[str, Any]:
    """Metrics of generated texts, as plain JSON values.

    Returns:
      'rouge1', 'rouge2', 'rougeL' (mean F of the texts, stemmed words), 'exact_match' (share without
      regard to blanks at the ends), from 0 to 1; 'bleu' and 'chrf' of all texts together, from 0 to 100
      as usual; 'generated', how many they are, and 'generated_empty'.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    assert len(texts) == len(wanted) > 0
    scorer = RougeScorer(_ROUGE, use_stemmer=True)
    found = [scorer.score(reference, text) for text, reference in zip(texts, wanted, strict=True)]
    same = [
        text.strip() == reference.strip() for text, reference in zip(texts, wanted, strict=True)
    ]
    return {
        **{name: float(np.mean([one[name].fmeasure for one in found])) for name in _ROUGE},
        "bleu": sacrebleu.corpus_bleu(list(texts), [list(wanted)]).score,
        "chrf": sacrebleu.corpus_chrf(list(texts), [list(wanted)]).score,
        "exact_match": float(np.mean(same)),
        "generated": len(texts),
        "generated_empty": sum(not text.strip() for text in texts),
    }


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What in the metrics is probably not meant, one line each."""
    empty, count = metrics.get("generated_empty", 0), metrics.get("generated", 0)
    if count and empty == count:
        return [f"all {count} generated texts are empty: the model ends them at once"]
    return []


def result(record: Record, metrics: Mapping[str, Any]) -> str:
    """The loss a token, and how near the generated texts come."""
    which = {"test": "test", "eval": "evaluation"}[record.split]
    text = (
        f"On {metrics['tokens']:,} tokens of {metrics['examples']:,} {which} examples the loss is "
        f"{metrics['loss']:.4f} nats a token (perplexity {metrics['perplexity']:,.4g}), and "
        f"{metrics['accuracy']:.1%} of the tokens are the likeliest one after those before them."
    )
    if "generated" in metrics:
        text += (
            f" Of {metrics['generated']:,} generated texts ROUGE-L is {metrics['rougeL']:.3f}, BLEU "
            f"{metrics['bleu']:.1f}, chrF {metrics['chrf']:.1f}; {metrics['exact_match']:.1%} are the text "
            "that was to be given."
        )
    return text


def predictions(record: Record, plots: ModuleType) -> Html:
    """How the losses of the texts are distributed, and some that were generated."""
    losses = array("d", (row["loss"] for row in _rows(record)))
    if not losses:
        return missing(f"No predictions/{record.split}.jsonl.")
    drawn = figure(
        plots.histogram(np.frombuffer(losses), "loss, nats a token"),
        "How many texts have which mean loss a token.",
    )
    rows = [row for row in _rows(record) if isinstance(row.get("predicted"), str)]
    some = rows[:: max(1, len(rows) // _WORST)][:_WORST]
    if not some:
        return join([drawn, element("p", "No text was generated: config.eval.generate is 0.")])
    cells = [[str(row["index"]), *(str(row[key]) for key in ("label", "predicted", "text"))]
             for row in some]  # fmt: skip
    heads = ["row", "to be given", "generated", "text"]
    return join([drawn, element("p", "Some generated texts, evenly chosen."),
                 table(heads, cells, kinds="nwww")])  # fmt: skip


def worst(record: Record, _: ModuleType) -> Html:
    """The texts that are predicted worst."""
    rows = heapq.nsmallest(_WORST, _rows(record), key=lambda row: (-row["loss"], row["index"]))
    if not rows:
        return missing(f"No predictions/{record.split}.jsonl.")
    cells = [
        [str(row["index"]), f"{row['loss']:.3f}", f"{language.perplexity(row['loss']):.4g}",
         str(row.get("label", "")), str(row.get("text", ""))]
        for row in rows
    ]  # fmt: skip
    note = "The texts with the largest loss a token: wrong or damaged ones are among them."
    heads = ["row", "loss", "perplexity", "to be given", "text"]
    return join([element("p", note), table(heads, cells, kinds="nnnww")])


def _rows(record: Record) -> Iterator[Row]:
    """Of predictions/*.jsonl, those that hold what was written."""
    return (
        row
        for row in record.predictions.get(record.split, ())
        if type(row.get("loss")) in (int, float) and math.isfinite(row["loss"])
    )


VIEW = View(
    tiles={
        "rougeL": "ROUGE-L",
        "bleu": "BLEU",
        "chrf": "chrF",
        "exact_match": "exactly right",
        "perplexity": "perplexity",
        "loss": "loss, nats a token",
        "accuracy": "tokens right",
    },
    result=result,
    sections={"Predictions": predictions, "Largest losses": worst},
    drawn=("perplexity",),  # beside which what is below 1 would be a flat line
)
