"""The section of a report on whether probabilities come true (see calibration.py)."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from jaxft.analysis.page import Html, element, figure, join
from jaxft.analysis.record import Record
from jaxft.analysis.sections import missing


def calibrated(record: Record, plots: ModuleType) -> Html:
    """How often predictions are right, against how probable they are, before and after the temperature."""
    caption = (
        "How often predictions of each range of probability are right, a dot a range, larger where there are "
        "more; on the line they are right as often as they are probable."
    )
    axes = ("probability of the predicted label", "share that is right")
    return _section(record, plots, caption, axes)


def calibrated_labels(record: Record, plots: ModuleType) -> Html:
    """How often labels apply, against how probable they are, all labels together."""
    caption = (
        "How often a label of each range of probability applies, a dot a range, larger where there are more; "
        "on the line labels apply as often as they are probable."
    )
    return _section(record, plots, caption, ("probability of a label", "share to which it applies"))


def _section(record: Record, plots: ModuleType, caption: str, axes: tuple[str, str]) -> Html:
    found, metrics = record.detail(record.split, "calibration"), record.metrics(record.split)
    if not isinstance(found, Mapping):
        return missing(f"No predictions/{record.split}.calibration.json.")
    where = "" if record.split == "test" else ", which are these examples"
    words = (
        f"The expected calibration error is {metrics['ece']:.3f}, and {metrics['ece_calibrated']:.3f} with "
        f"logits divided by {metrics['temperature']:.3g}, the temperature that was fitted on the evaluation "
        f"data{where}. Predictions stay the same; predict --calibrated gives these probabilities."
    )
    picture = plots.reliability(found["before"], found["after"], *axes)
    return join([element("p", words), figure(picture, caption)])
