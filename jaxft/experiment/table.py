"""The table of every parameter: what `describe` prints, parameters.json holds and the report draws."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from jaxft.experiment.prepared import Prepared


def parameter_rows(
    prepared: Prepared, never_trained: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """One row per parameter, by depth and then by the model's own order.

    `learning_rate` is the peak one, `weight_decay` the decoupled coefficient; both 0 when frozen.
    `placement` is the axis of the mesh that cuts each dimension, or None.

    Args:
      never_trained: paths that have the source's values in the weights that count, where these are
        known; the rows then say so in `trained`.
    """
    rows = []
    for decision in sorted(prepared.decisions, key=lambda decision: decision.depth):
        rows.append(
            {
                "path": decision.path,
                "shape": list(decision.shape),
                "size": decision.size,
                "depth": decision.depth,
                "trainable": decision.trains,
                "lr_scale": decision.lr_scale if decision.trains else 0.0,
                "learning_rate": decision.peak_lr,
                "weight_decay": decision.decay,
                "placement": list(decision.placement),
            }
        )
        if never_trained is not None:
            rows[-1]["trained"] = decision.path not in never_trained
    return rows
