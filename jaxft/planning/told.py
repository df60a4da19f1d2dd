"""A plan told in lines, cells and JSON: what the terminal shows, and the page."""

from __future__ import annotations

from jaxft.planning.advice import size
from jaxft.planning.estimate import cost, energy
from jaxft.planning.plan import Plan

MEMORY = {
    "trainable": "trained parameters",
    "frozen": "frozen parameters",
    "slots": "optimizer slots",
    "statistics": "batch statistics",
    "others": "batch, numbers of the optimizer",
    "activations": "activations kept for the backward pass (estimate)",
    "temporaries": "other temporaries: gradients, gathered parameters, …",
}
TRAFFIC_HEADS = ("collective", "along", "devices", "times", "received a device")
LEAST_HEADS = ("collective", "received a device", "the least", "times the least")


def headline(plan: Plan) -> str:
    """Whether it fits, and by how much."""
    needed, there = plan.memory["needed"], plan.memory["available"]
    said = f"{size(needed)} of the {size(there)} of each {plan.chip}"
    return f"fits: {said}" if plan.fits else f"does not fit: {said}"


def subject(plan: Plan) -> str:
    """What is trained, where."""
    total, trained = plan.parameters["total"], plan.parameters["trainable"]
    mesh = " x ".join(f"{axis} {count}" for axis, count in plan.mesh.items()) or "no mesh"
    rows = f"{plan.batch['rows']} rows of {plan.batch['length']} tokens"
    batch = rows if plan.batch["length"] else f"{plan.batch['rows']} images"
    parts = plan.batch["accumulate"]
    return (
        f"{plan.model}: {number(trained)} of {number(total)} parameters train, on {plan.devices} x "
        f"{plan.chip} ({mesh}); {batch}" + f" in {parts} microbatches" * (parts > 1)
        + f"; {plan.dtype}" + ", blocks recomputed" * plan.remat
    )  # fmt: skip


def memory_rows(plan: Plan) -> list[list[str]]:
    """[what, bytes a device, share]."""
    needed = plan.memory["needed"] or 1
    rows = [
        [label, size(plan.memory[key]), f"{plan.memory[key] / needed:.0%}"]
        for key, label in MEMORY.items()
        if plan.memory[key]
    ]
    rows.append(["needed at its fullest", size(needed), ""])
    if "process" in plan.memory:
        rows.append(["the whole process that trains, about", size(plan.memory["process"]), ""])
    return rows


def traffic_rows(plan: Plan) -> list[list[str]]:
    """Cells under TRAFFIC_HEADS."""
    return [
        [one["kind"], " x ".join(one["axes"]), str(one["group"]), str(one["count"]), size(one["bytes"])]
        for one in plan.traffic
    ]  # fmt: skip


def least_rows(plan: Plan) -> list[list[str]]:
    """Cells under LEAST_HEADS; the last row is the sum."""
    received = plan.received
    rows = [
        [
            kind,
            size(received.get(kind, 0.0)) * bool(plan.compiler),
            size(plan.least.get(kind, 0.0)),
            "",
        ]
        for kind in dict.fromkeys((*plan.least, *received))
    ]
    if plan.over_least is None:
        return rows
    sums = (sum(received.values()), sum(plan.least.values()))
    return [*rows, ["all", *map(size, sums), f"{plan.over_least:.3g}"]]


def time_lines(plan: Plan) -> list[str]:
    """Seconds, tokens, dollars and kilowatt-hours."""
    e, what = plan.estimate, "tokens" if plan.batch["tokens"] else "images"
    lines = [
        f"{number(plan.flops)} FLOPs of products in an update, {number(plan.flops / plan.devices)} a device",
        f"about {seconds(e['seconds'])} an update ({seconds(e['least'])} to {seconds(e['most'])}: products "
        f"{seconds(e['products'])}, memory {seconds(e['memory'])}, traffic {seconds(e['traffic'])}), "
        f"{number(plan.tokens_per_second)} {what}/s, {e['utilisation']:.0%} of the peak",
    ]  # fmt: skip
    for updates, said in (
        (1000, "1,000 updates"),
        (plan.steps, f"the run of {plan.steps:,} updates"),
    ):
        took = updates * e["seconds"]
        dollars, hours = (
            cost(took, plan.devices, plan.price), energy(took, plan.devices, plan.watts),
        )  # fmt: skip
        if updates:
            known = [f"{dollars:,.2f} USD"] if dollars is not None else []
            known += [f"{hours:,.3g} kWh"] if hours is not None else []
            lines.append(f"{said}: {seconds(took)}" + "".join(f", {one}" for one in known))
    if plan.price is None and plan.kind != "cpu":
        lines.append("no price is known here of such a device: --price=USD_AN_HOUR")
    if plan.watts is None and plan.kind != "cpu":
        lines.append("its vendor does not say what it draws: --watts=W gives the energy")
    return lines


def number(value: float) -> str:
    """'1.24B'.

    >>> number(1_235_000_000)
    '1.24B'
    """
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """'2.5 h'.

    >>> seconds(0.012)
    '12 ms'
    """
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if value >= unit * (1 if name == "s" else 2):
            return f"{value / unit:.3g} {name}"
    return f"{value * 1000:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"
