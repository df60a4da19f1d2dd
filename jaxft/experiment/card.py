"""The model card of an export: its base, data, metrics and settings, and what was frozen.

In the format of the Hugging Face hub, https://huggingface.co/docs/hub/model-cards: YAML, then Markdown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from jaxft.base.nested import flatten
from jaxft.config import default_config
from jaxft.experiment.prepared import Prepared
from jaxft.experiment.provenance import versions
from jaxft.models.checkpoint import companions

# Of the transformers that a hub offers by the head's kind.
_PIPELINES = {
    "text_classification": "text-classification",
    "text_regression": "text-classification",
    "multi_label": "text-classification",
    "image_multi_label": "image-classification",
    "image_regression": "image-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "few_shot": "text-classification",
    "embedding": "sentence-similarity",
    "image_classification": "image-classification",
    "causal_lm": "text-generation",
    "instruction": "text-generation",
    "preference": "text-generation",
    "masked_lm": "fill-mask",
    "seq2seq": "text2text-generation",
}
_VERSIONS = ("jaxft", "jax", "flax", "optax", "transformers")


def model_card(
    prepared: Prepared,
    unchanged: Collection[str],
    metrics: Mapping[str, Any] | None,
    origin: str = "",
) -> str:
    """The text of README.md.

    Args:
      unchanged: paths that have the base's values.
      metrics: of these weights on the evaluation data, where they are known.
      origin: what else is to be said of where they come from.
    """
    config = prepared.config
    base = "" if config.model.scratch else _name(config.model.path)
    kept = sum(row.size for row in prepared.decisions if row.path in unchanged)
    total = prepared.decisions.totals["total"]
    parts = [
        _front(prepared, base),
        f"# {os.path.basename(os.path.normpath(config.model.path))}, fine-tuned",
        f"A `{prepared.architecture.exports}` "
        + (f"fine-tuned from `{base}`" if base else "trained from random weights")
        + f" for {config.task.replace('_', ' ')}{_taught(prepared)}.",
        origin,
        "## Data",
        _data(prepared),
        "## Evaluation",
        _metrics(metrics),
        "## What was trained",
        f"{total - kept:,} of {total:,} parameters. {_frozen(prepared, unchanged)}",
        "## Settings that are not the defaults",
        _settings(config),
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions(_VERSIONS).items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part)


def _front(prepared: Prepared, base: str) -> str:
    licence = companions.licence(prepared.directory) if base else ""
    # JSON strings are YAML strings, whatever a name has in it.
    lines = ["---", "library_name: transformers", "tags: [jaxft]"]
    # The hub takes an id of its own here, no folder's name.
    known = bool(base) and base == prepared.config.model.path and not os.path.exists(base)
    lines += [f"base_model: {json.dumps(base, ensure_ascii=False)}"] if known else []
    lines += [f"license: {licence}"] if licence else []
    if pipeline := _PIPELINES.get(prepared.config.task):
        lines += [f"pipeline_tag: {pipeline}"]
    return "\n".join([*lines, "---"])


def _taught(prepared: Prepared) -> str:
    c = prepared.config.distill
    return f", taught by `{_name(c.teacher)}`" if c.teacher and c.weight else ""


def _data(prepared: Prepared) -> str:
    splits, config = prepared.splits, prepared.config.data
    count = "a stream" if config.stream else f"{len(splits.train.targets):,} rows"
    rows = [f"- trained on {count} of `{_name(config.train)}`"]
    if len(splits.eval.targets):
        origin = f"of `{_name(config.eval)}`" if config.eval else "held out of them"
        rows += [f"- evaluated on {len(splits.eval.targets):,} rows {origin}"]
    if splits.names:
        shown = ", ".join(splits.names[:20])
        more = f" and {len(splits.names) - 20} more" if len(splits.names) > 20 else ""
        rows += [f"- labels: {shown}{more}"]
    return "\n".join(rows)


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    numbers = {k: v for k, v in (metrics or {}).items() if isinstance(v, int | float)}
    if not numbers:
        return "Not measured."
    lines = [f"| {name} | {value:.6g} |" for name, value in numbers.items()]
    return "\n".join(["| metric | value |", "|---|---|", *lines])


def _frozen(prepared: Prepared, unchanged: Collection[str]) -> str:
    depths = sorted({row.depth for row in prepared.decisions})
    whole = [
        depth
        for depth in depths
        if all(row.path in unchanged for row in prepared.decisions if row.depth == depth)
    ]
    if not whole:
        return "No block was frozen as a whole."
    names = ["the embeddings" if d == 0 else f"block {d}" for d in whole]
    return f"As in the base, bit for bit: {', '.join(names)}."


def _settings(config: Any) -> str:
    defaults = flatten(default_config())
    hidden = {"model.path", "data.train", "data.eval", "data.test", "data.dir", "workdir"}
    hidden |= {"distill.teacher"}
    changed = [
        f"    {name} = {json.dumps(value, ensure_ascii=False, default=str)}"
        for name, value in flatten(config).items()
        if value != defaults.get(name) and name not in hidden
    ]
    return "\n".join(changed) or "None."


def _name(given: str) -> str:
    """A hub id as it is; of a path its last part, since a card is published and a path is private."""
    return given if not os.path.exists(given) else os.path.basename(os.path.normpath(given))
