"""Sections of the report that tell how the run went. Each takes a record and returns its HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from jaxft.analysis.page import Html, element, figure, join, table
from jaxft.analysis.record import Record
from jaxft.analysis.view import View
from jaxft.base.nested import flatten

_PHASES = {
    "load": ("#CC79A7", "reading model and data"),
    "compile": ("#E69F00", "compiling"),
    "train": ("#0072B2", "training steps"),
    "eval": ("#56B4E9", "evaluation"),
    "save": ("#009E73", "saving"),
    "other": ("#c9ced4", "everything else"),
}
_MAX_EVENTS = 20


def missing(what: str) -> Html:
    """What stands in a section that has nothing to show."""
    return element("p", what, attributes={"class": "none"})


def header(record: Record, view: View) -> Html:
    """Task, model and data; the result in one paragraph and a few large numbers."""
    summary = record.summary
    task = str(summary.get("task") or record.config.get("task") or "run").replace("_", " ")
    model = str(summary.get("model") or flatten(record.config).get("model.path") or "unknown model")
    name = model.rstrip("/").rsplit("/", 1)[-1]
    metrics = record.metrics(record.split)
    parts = [
        element("p", f"jaxft · {task} · run {record.name}", attributes={"class": "kicker"}),
        element("h1", name),
    ]
    if not summary:
        parts.append(missing("No summary.json: this run is not finished, or was stopped."))
    if not metrics:
        parts.append(missing("No evaluation yet."))
    else:
        parts.append(element("p", _result(record, metrics, view), attributes={"class": "lead"}))
        parts.append(_tiles(record, metrics, view.tiles))
    rows = [("model", model), *_data_rows(record), *_parameter_rows(summary)]
    rows += _placement_rows(record)
    parts.append(table(["", ""], rows, kinds="tw"))
    return join(parts)


def training(
    record: Record, plots: ModuleType, metrics: Sequence[str], eval_loss: str = ""
) -> Html:
    """Curves, those of these metrics among them, with what happened on the way.

    eval_loss: see `View`.
    """
    evals = record.evals["eval"]
    if not record.train and not evals:
        return missing("No metrics.jsonl, or no step in it yet.")
    summary = record.summary
    chosen = (summary.get("best_metric") or {}).get("name", metrics[0])
    events = record.events[:_MAX_EVENTS]
    best = summary.get("best_step")
    svg = plots.curves(record.train, evals, events, best, chosen, metrics, eval_loss)
    caption = "Training and evaluation loss, and evaluation metrics, over steps."
    if eval_loss:
        caption += f" The evaluation's loss, on the axis at the right, is the {eval_loss}."
    parts = [figure(svg, caption)]
    if events:
        items = [
            element("li", f"step {e['step']:,}: {e.get('name')} – {e.get('message')}")
            for e in events
        ]
        parts.append(element("ol", *items, attributes={"class": "events"}))
    if len(record.events) > len(events):
        parts.append(
            element("p", f"{len(record.events) - len(events)} later events are in metrics.jsonl.")
        )
    return join(parts)


def learning_rate(record: Record, plots: ModuleType) -> Html:
    """The schedule, and the multiplier of each depth."""
    parts = []
    if any("learning_rate" in row for row in record.train):
        parts.append(figure(plots.schedule(record.train), "Learning rate of the head over steps."))
    layers = layer_rates(record.parameters)
    if layers:
        caption = (
            "Learning-rate multiplier of each depth, and how many parameters move. Hatched: "
            "frozen. A pale part of a bar: the tensors of this depth have different multipliers."
        )
        parts.append(figure(plots.layer_rates(layers), caption))
    else:
        parts.append(missing("No parameters.json: learning rates per layer are not known."))
    return element("div", *parts, attributes={"class": "pair"})


def layer_rates(parameters: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, str]]:
    """(name, lowest, highest multiplier, note) of each depth with parameters, from the stem up."""
    depths = sorted({row["depth"] for row in parameters})
    rates = []
    for depth in depths:
        rows = [row for row in parameters if row["depth"] == depth]
        moving = [row for row in rows if row.get("trained", row["trainable"])]
        scales = [float(row["lr_scale"]) for row in moving]
        name = "stem" if depth == 0 else "head" if depth == depths[-1] else f"block {depth}"
        note = _count(sum(row["size"] for row in moving)) if moving else "frozen"
        if moving and len(moving) < len(rows):
            note += f", {len(rows) - len(moving)} of {len(rows)} tensors frozen"
        rates.append((name, min(scales, default=0.0), max(scales, default=0.0), note))
    return rates


def timing(record: Record) -> Html:
    """Where the time went, and the speed."""
    summary = record.summary
    seconds = {k: float(v) for k, v in (summary.get("seconds") or {}).items() if v is not None}
    if not seconds:
        return missing("No summary.json: timing is not known.")
    known = {name: seconds[name] for name in _PHASES if name in seconds}
    total = max(seconds.get("total", 0.0), sum(known.values()), 1e-9)
    known["other"] = total - sum(known.values())
    known = {name: value for name, value in known.items() if value > 0.0005 * total}
    spans = [
        element(
            "span", attributes={"style": f"flex:{value / total:.4f};background:{_PHASES[name][0]}"}
        )
        for name, value in known.items()
    ]
    rows = [
        (_key(_PHASES[name][0], _PHASES[name][1]), f"{value:,.1f} s", f"{value / total:.1%}")
        for name, value in known.items()
    ]
    rows.append((element("strong", "total"), f"{total:,.1f} s", ""))
    facts = []
    if summary.get("examples_per_second"):
        facts.append(f"{summary['examples_per_second']:,.1f} examples a second while training")
    if summary.get("padding_efficiency"):
        facts.append(f"{summary['padding_efficiency']:.1%} of the computed tokens were not padding")
    if summary.get("waiting_share") is not None:
        facts.append(f"{summary['waiting_share']:.1%} of the training time waited for data")
    if summary.get("shapes"):
        shapes = summary["shapes"]
        facts.append(f"{len(shapes)} compiled batch shapes: {', '.join(map(_plain, shapes))}")
    return join(
        [
            element("div", *spans, attributes={"class": "parts", "role": "presentation"}),
            table(["", "time", "share"], rows, kinds="tnn"),
            element("p", "; ".join(facts) + ".") if facts else Html(),
        ]
    )


def configuration(record: Record, defaults: Mapping[str, Any] | None) -> Html:
    """Every field; those that differ from the defaults first."""
    flat = flatten(record.config)
    if not flat:
        return missing("No config.json.")
    if defaults is None:
        return table(["field", "value"], [(k, _plain(v)) for k, v in flat.items()], kinds="cc")
    missing_field = object()
    changed = [k for k, v in flat.items() if _plain(defaults.get(k, missing_field)) != _plain(v)]
    rows = [(k, _plain(flat[k]), _plain(defaults[k]) if k in defaults else "–") for k in changed]
    rest = [(k, _plain(v)) for k, v in flat.items() if k not in changed]
    details = element(
        "details",
        element("summary", f"{len(rest)} fields at their defaults"),
        table(["field", "value"], rest, kinds="cc"),
    )
    return join(
        [table(["field", "value", "default"], rows, kinds="ccc") if rows else Html(), details]
    )


def environment(record: Record) -> Html:
    """Hardware and versions."""
    summary = record.summary
    rows = [("device", str(summary["device"]))] if summary.get("device") else []
    rows += [(name, str(version)) for name, version in (summary.get("versions") or {}).items()]
    if not rows:
        return missing("No summary.json: hardware and versions are not known.")
    return table(["", ""], rows, kinds="tc")


def _result(record: Record, metrics: Mapping[str, Any], view: View) -> str:
    """The result in words."""
    summary, split = record.summary, record.split
    text = view.result(record, metrics)
    if summary.get("best_step") is not None:
        best = summary.get("best_metric") or {}
        value = f", with {best['name']} {best['value']:.4f} on the evaluation data" if best else ""
        text += f" The checkpoint is that of step {summary['best_step']:,}{value}"
        text += f", of {summary['steps']:,} steps" if summary.get("steps") else ""
        text += f" ({summary['epochs']:.3g} epochs)." if summary.get("epochs") else "."
    if summary.get("stopped_early"):
        text += " Training stopped early: the metric no longer improved."
    if split == "eval" and summary:
        text += " It was chosen on the same data, so these numbers are a little optimistic."
    elif not summary and metrics.get("step"):
        text += f" This is the evaluation after step {metrics['step']:,} of an unfinished run."
    return text


def _tiles(record: Record, metrics: Mapping[str, Any], names: Mapping[str, str]) -> Html:
    other = record.metrics("eval") if record.split == "test" else {}
    tiles = []
    for name, words in names.items():
        if isinstance(metrics.get(name), int | float):
            note = f"evaluation {other[name]:.4f}" if name in other else record.split
            tiles.append(
                element(
                    "div",
                    element("dt", words),
                    element("dd", f"{metrics[name]:.4f}", element("small", note)),
                )
            )
    return element("dl", *tiles, attributes={"class": "tiles"})


def _data_rows(record: Record) -> list[tuple[str, str]]:
    flat = flatten(record.config)
    rows = []
    for split, value in (record.summary.get("data") or {}).items():
        if isinstance(value, int) and value:
            given = flat.get(f"data.{split}")
            rows.append(
                (f"{split} data", f"{value:,} examples" + (f" of {given}" if given else ""))
            )
    return rows


def _parameter_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    counts = summary.get("parameters") or {}
    if counts.get("total"):
        total, trainable = counts["total"], counts.get("trainable", 0)
        # Of the exported weights: a run may end before its last stage, or be best before it.
        trained = counts.get("trained", trainable)
        text = f"{total:,}, of which {trained:,} trained ({trained / total:.1%})"
        if trained < trainable:
            text += f"; {trainable - trained:,} more were to train in later stages"
        rows.append(("parameters", text))
    if summary.get("initialised"):
        rows.append(("newly initialised", ", ".join(map(str, summary["initialised"]))))
    if summary.get("fitted"):
        rows.append(("fitted to the training rows", ", ".join(map(str, summary["fitted"]))))
    return rows


def _placement_rows(record: Record) -> list[tuple[str, str]]:
    """How many tensors are cut over which axes of the mesh; nothing where all are whole."""
    counts = Counter(_axes(row.get("placement")) for row in record.parameters)
    whole = counts.pop((), 0)
    if not counts:
        return []
    parts = [f"over {' and '.join(axes)}: {count}" for axes, count in counts.most_common()]
    return [("tensors cut", f"{'; '.join(parts)}; whole on every device: {whole}")]


def _axes(placement: Any) -> tuple[str, ...]:
    """The axes that cut a tensor; none where a row of an earlier version does not say."""
    entries = placement if isinstance(placement, list) else []
    return tuple(sorted({axis for axis in entries if isinstance(axis, str)}))


def _key(colour: str, words: str) -> Html:
    return join(
        [element("span", attributes={"class": "key", "style": f"background:{colour}"}), words]
    )


def _count(value: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def _plain(value: Any) -> str:
    """A config value as one would write it; lists as tuples, since JSON knows no tuples."""
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_plain, value)) + ")"
    return repr(value) if isinstance(value, str) and not value else str(value)
