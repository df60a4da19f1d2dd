"""The table of every parameter: what `describe` prints, parameters.json holds and the report draws."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from jaxft.models import flatten
from jaxft.run.build import Prepared
from jaxft.run.treatment import group_labels, settings_of


def parameter_rows(
    prepared: Prepared, never_trained: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """One row a parameter, by depth and then by the model's own order.

    `learning_rate` is the peak one, `weight_decay` the decoupled coefficient; both 0 when frozen.

    Args:
      never_trained: paths that have the source's values in the weights that count, where these are
        known; the rows then say so in `trained`.
    """
    treatment, config = prepared.treatment, prepared.config
    settings = settings_of(config, group_labels(config, treatment.lr_scale))
    rows = []
    for path, leaf in flatten(prepared.architecture.abstract).items():
        trainable = path not in treatment.frozen
        scale = treatment.lr_scale[path] if trainable else 0.0
        decays = trainable and path in treatment.decayed
        rows.append(
            {
                "path": path,
                "shape": list(leaf.shape),
                "size": math.prod(leaf.shape),
                "depth": prepared.architecture.depths[path],
                "trainable": trainable,
                "lr_scale": scale,
                "learning_rate": settings[path]["lr"] * scale,
                "weight_decay": settings[path]["weight_decay"] if decays else 0.0,
            }
        )
        if never_trained is not None:
            rows[-1]["trained"] = path not in never_trained
    return sorted(rows, key=lambda row: row["depth"])
