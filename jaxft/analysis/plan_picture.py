"""Who holds what on a device, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxft.analysis.drawing import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, drawn

_GIB = 2**30
# What a bar is made of, from the left: frozen parameters are pale as they only lie there.
PARTS = {
    "frozen": ("frozen parameters", PALE),
    "trainable": ("trained parameters", BLUE),
    "slots": ("optimizer slots", PURPLE),
    "activations": ("activations (estimate)", ORANGE),
    "temporaries": ("other temporaries", GREEN),
}


def memory_picture(memory: Mapping[str, float]) -> str:
    """One bar of what the program holds at its fullest, beside the memory that there is."""
    unit, name = _unit(max(memory["needed"], memory["available"]))
    with drawn(8.2, 1.7) as (figure, svg):
        axes = figure.subplots()
        left = 0.0
        for key, (label, colour) in PARTS.items():
            wide = memory[key] / unit
            if not wide:
                continue
            axes.barh(0, wide, left=left, height=0.6, color=colour, label=f"{label} {wide:.3g}")
            left += wide
        available = memory["available"] / unit
        axes.axvline(available, color=INK, linewidth=1.4)
        axes.text(
            available, 0.42, f" {available:.3g} {name} there", color=INK, va="bottom", ha="right"
        )
        axes.set_yticks([])
        axes.set_ylim(-0.4, 0.75)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{name} a device", color=GREY)
        figure.legend(loc="outside lower center", ncols=3, handlelength=1, columnspacing=1)
    return svg()


def holding_picture(held: Sequence[Sequence[float]], blocks: int) -> str:
    """A bar for each depth: stem, blocks, head; of its parameters and slots on a device."""
    unit, name = _unit(max(sum(row[1:]) for row in held))
    with drawn(8.2, 2.6) as (figure, svg):
        axes = figure.subplots()
        depths = [row[0] for row in held]
        below = [0.0] * len(held)
        for key, column in (("frozen", 2), ("trainable", 1), ("slots", 3)):
            label, colour = PARTS[key]
            values = [row[column] / unit for row in held]
            if any(values):
                axes.bar(depths, values, bottom=below, color=colour, label=label, width=0.85)
            below = [a + b for a, b in zip(below, values, strict=True)]
        axes.set_xlabel(f"depth: 0 is the stem, {blocks + 1} the head", color=GREY)
        axes.set_ylabel(f"{name} a device")
        axes.grid(axis="y", color="#eceef0")
        axes.set_axisbelow(True)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return svg()


def _unit(most: float) -> tuple[float, str]:
    return (_GIB, "GiB") if most >= _GIB / 4 else (2**20, "MiB")
