"""What a run was built from: enough to notice that a resumed run would not be the same run.

What decides the weights must be equal (`refused`); what may change their last bits is reported (`noted`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxft.data.loader import TextBatches
from jaxft.experiment.encoder import Batches
from jaxft.experiment.streaming import StreamBatches, TrainBatches
from jaxft.models import hf

if TYPE_CHECKING:  # which imports far more than a reader of source.json needs
    from jaxft.experiment.build import Run
    from jaxft.experiment.prepared import Prepared

# Keys of a record that a run may be continued under other values of, with a word.
_NOTED = ("versions", "device kind", "kept prefix")
_VERSIONS = ("jax", "jaxlib", "grain", "numpy", "tokenizers", "pillow")


def source_record(run: Run) -> dict[str, Any]:
    """What source.json holds."""
    splits = run.prepared.splits
    return {
        **model_record(run.prepared),
        **({} if run.prepared.teacher is None else run.prepared.teacher.record()),
        "label names": list(splits.names),
        "columns": list(splits.columns),
        "training rows": len(splits.train.targets),
        **({} if splits.windows is None else {"training windows": splits.windows}),
        **({} if splits.pairs is None else {"training pairs": splits.pairs}),
        "evaluation rows": len(splits.eval.targets),
        "training fingerprint": fingerprint(run.train_batches),
        "evaluation fingerprint": fingerprint(run.shared.eval_batches),
        "kept prefix": list(run.kept.depths),
        "rows laid out for": run.laid_out,
        "versions": versions(),
        "device kind": jax.devices()[0].device_kind,
    }


def model_record(prepared: Prepared) -> dict[str, Any]:
    """The part of it that is about the checkpoint."""
    found = hf.fingerprints(prepared.directory)
    weights = found.pop("weights")
    return {
        "model fingerprint": "" if prepared.config.model.scratch else weights,
        **{f"model {name}": value for name, value in found.items()},
    }


def fingerprint(batches: TrainBatches) -> str:
    """Of rows, targets and contents: changes when an example is added, moved, relabelled or edited.

    Of a stream, of its first block.
    """
    if isinstance(batches, StreamBatches):
        batches = batches.first
    digest = hashlib.sha256()
    for array in batches.targets.contents():
        digest.update(np.ascontiguousarray(array).data)  # no copy, of what may be gigabytes
    digest.update(inputs_fingerprint(batches).encode())
    return digest.hexdigest()


def inputs_fingerprint(batches: Batches) -> str:
    """Of the tokens or the images alone, in their order."""
    if isinstance(batches, TextBatches):
        return batches.tokens.fingerprint
    return batches.images.fingerprint()


def versions(names: tuple[str, ...] = _VERSIONS) -> dict[str, str]:
    """Installed versions; 'unknown' for a package that runs without being installed, as a checkout may."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    return {name: version(name) for name in names}


def refused(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of `now` is not as it was and decides the weights. A record lacks what was not kept then."""
    return [
        name
        for name, value in now.items()
        if name in known and name not in _NOTED and known[name] != value
    ]


def noted(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """'jax 0.10.2 -> 0.11.0' for each version or device that is not the one the run began with."""
    before, after = (
        {
            **_mapping(record.get("versions")),
            "device": record.get("device kind"),
            "data.cache_prefix, blocks that are kept:": record.get("kept prefix"),
        }
        for record in (known, now)
    )
    return [
        f"{name} {before[name]} -> {after.get(name)}"
        for name in before
        if before[name] is not None and before[name] != after.get(name)
    ]


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
