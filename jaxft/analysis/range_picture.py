"""The picture of a learning-rate range test, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import NullFormatter

from jaxft.analysis.drawing import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, drawn
from jaxft.analysis.range_curve import RangeCurve

_MARKS = zip("os^D", (BLUE, ORANGE, GREEN, PURPLE), strict=True)
_STYLES = dict(zip(("valley", "slide", "steep", "minimum / 10"), _MARKS, strict=True))


def range_picture(
    curve: RangeCurve, low: np.ndarray, high: np.ndarray, found: Sequence[tuple[str, float]],
    recommended: str,
) -> str:  # fmt: skip
    """Losses over the logarithm of the rate, with what the rules suggest.

    Args:
      low, high: [curve.common] of the band over seeds.
      found: rule -> rate; of these, `recommended` has a line.
    """
    rates, losses = curve.rates[: curve.common], curve.losses[:, : curve.common]
    with drawn(8.2, 3.9) as (figure, svg):
        axes = figure.subplots()
        axes.plot(rates, losses.mean(0), color=PALE, linewidth=1, label="batches")
        if len(losses) > 1:
            axes.fill_between(rates, low, high, color="#cfe1ee", linewidth=0, label="seeds")
        axes.plot(rates, curve.mean, color=INK, linewidth=1.6, label="smoothed")
        for name, rate in found:
            mark, colour = _STYLES[name]
            if name == recommended:
                axes.axvline(rate, color=colour, linewidth=1)
            height = np.interp(np.log(rate), np.log(rates), curve.mean)
            axes.plot(
                rate, height, mark, color=colour, markersize=7, markeredgecolor="white",
                label=f"{name} {rate:.2g}",
            )  # fmt: skip
        axes.set_xscale("log")
        # Where the loss runs away, nothing is to be read any more.
        top, bottom = curve.ceiling, float(low.min())
        axes.set_ylim(bottom - 0.06 * (top - bottom), top)
        axes.xaxis.set_major_formatter(lambda rate, _: f"1e{round(np.log10(rate))}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("learning rate", color=GREY)
        axes.set_ylabel("loss")
        axes.grid(axis="y", color="#eceef0")
        axes.set_axisbelow(True)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return svg()
