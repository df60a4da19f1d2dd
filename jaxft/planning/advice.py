"""What to change where a plan does not fit, or sends much more than it must: the largest savings first."""

from __future__ import annotations

from jaxft.planning.plan import Plan
from jaxft.planning.topology import parse_topology
from jaxft.planning.whole_slice import is_summed

_MUCH = 1.1  # times the least that a plan may send without a word


def size(count: float) -> str:
    """'1.5 GiB'.

    >>> size(3 * 2**29)
    '1.5 GiB'
    """
    for unit, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if abs(count) >= 1 << unit:
            return f"{count / (1 << unit):.3g} {name}"
    return f"{count:.0f} bytes"


def advice(plan: Plan) -> list[str]:
    """One line each, with what it saves a device as far as that is known without compiling again."""
    lines = []
    if not plan.fits:
        lack = plan.memory["needed"] - plan.memory["available"]
        found = sorted(_savings(plan), reverse=True)
        enough = [line for saved, line in found if saved >= lack]
        lines += [line for _, line in found[:4]]
        if not enough:
            lines.append(
                f"none of these alone saves the {size(lack)} that lack: combine them, take more devices, or "
                "let --search look"
            )
    if plan.over_least is not None and plan.over_least > _MUCH and plan.traffic[0]["count"]:
        most = plan.traffic[0]
        lines.append(
            f"it sends {plan.over_least:.2g} times the least; most of it is {most['count']} x {most['kind']} "
            f"along {' x '.join(most['axes']) or 'no axis'}"
        )
        half = plan.devices // 2
        summed = is_summed(parse_topology(plan.topology), plan.mesh)
        if summed and most["kind"] == "all-reduce":
            lines.append(
                "where fsdp goes over every chip of this slice, XLA sums whole gradients: with "
                f"--config.parallel.fsdp={half} (data 2) each is scattered, for twice the parameters and "
                "slots a device"
            )
    return lines


def _savings(plan: Plan) -> list[tuple[float, str]]:
    """(bytes saved, what to do)."""
    m, mesh = plan.memory, plan.mesh
    shards = mesh.get("data", 1) * mesh.get("fsdp", 1)
    found: list[tuple[float, str]] = []
    if not plan.remat:
        blocks = max(1, plan.parameters["blocks"] - plan.parameters["frozen_blocks"])
        saved = m["activations"] * (1 - 1.5 / max(2, blocks))
        found.append((saved, f"--config.model.remat=true: about {size(saved)} less of activations"))
    if plan.dtype != "bfloat16":
        saved = m["activations"] / 2
        found.append(
            (saved, f"--config.model.dtype=bfloat16: about {size(saved)} less of activations")
        )
    rows = plan.batch["rows"] // max(1, plan.batch["accumulate"])
    if rows >= 2 * shards:
        saved, parts = m["activations"] / 2, 2 * plan.batch["accumulate"]
        said = f"about {size(saved)} less of activations, the same update"
        found.append((saved, f"--config.train.accumulate={parts}: {said}"))
    state = m["trainable"] + m["slots"] + m["frozen"]
    data = mesh.get("data", 1)
    if data > 1:
        fsdp = mesh["fsdp"] * data
        saved = (state + m["trainable"]) * (1 - 1 / data)
        found.append(
            (
                saved,
                f"--config.parallel.fsdp={fsdp}: about {size(saved)} less of parameters and slots",
            )
        )
    if m["slots"] > 1.5 * m["trainable"]:
        saved = m["slots"] / 2
        found.append(
            (saved, f"--config.optim.optimizer=lion: {size(saved)} less of slots, another method")
        )
    half = plan.parameters["blocks"] // 2
    if plan.parameters["frozen_blocks"] <= half:
        saved = (m["slots"] + m["trainable"] + m["activations"]) / 2
        found.append(
            (saved, f"--config.optim.freeze_below={half}: about {size(saved)} less of slots, gradients and "
             "activations, another training")
        )  # fmt: skip
    saved = state / 2
    found.append(
        (saved, f"twice the devices, cut by fsdp: about {size(saved)} less of parameters and slots")
    )
    return [one for one in found if one[0] > 0.01 * m["needed"]]
