"""From a directory to a bridged model."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models.checkpoint import config_json, timm_config
from jaxft.models.contract import Architecture
from jaxft.models.families import TIMM, family_of
from jaxft.models.family import Stored, TextLimits
from jaxft.models.rates import KEPT, Rates
from jaxft.models.tree import by_path, nested

EXTRA = "pip install 'jaxft[bridge]'"


def load_bridged(
    directory: str,
    *,
    num_labels: int,
    head: str | None = None,
    rates: Rates = KEPT,
    new_head: bool = False,
    depths: tuple[tuple[str, int], ...] = (),
    vocabulary: int = 0,
    because: str = "",
) -> Architecture:
    """Reads `directory/config.json`; no weights are touched, and none are made.

    Args:
        num_labels, head, new_head: as `models.load_architecture`.
        rates: what replaces those of the checkpoint.
        depths: ordered (path pattern, depth), before what the module's structure says.
        vocabulary: how many token ids a model of text has to know: where config.json says fewer, what has
            a row for each is `grown`.
        because: what the native family, which would be taken before, refuses of config.json.

    Raises:
        ValueError: torch or torchax is not installed, the library has no such model, code of the
            checkpoint would run, a pattern matches nothing or leaves a gap between blocks, or what has
            rows for tokens cannot have more.
    """
    raw = config_json.load(directory)
    where = os.path.join(directory, "config.json")
    _require(directory, raw, because)
    from jaxft.models.bridge.architecture import BridgedArchitecture
    from jaxft.models.bridge.module import path_of

    raw, built, grown = _built(where, raw, head, num_labels, rates, vocabulary)
    depth_of = {path_of(name): depth for name, depth in built.depths.items()}
    depth_of, num_blocks = _settled(depth_of, depths, max(built.depths.values(), default=1) - 1)
    leaves = {
        path_of(name): jax.ShapeDtypeStruct(tuple(x.shape), _dtype(x))
        for name, x in {**built.parameters, **built.statistics}.items()
    }
    parameters = {path_of(name) for name in built.parameters}
    whole = nested(leaves)
    order = list(by_path(whole))
    others = [name for name in raw.get("architectures") or () if isinstance(name, str)]
    return BridgedArchitecture(
        built=built,
        because=because,
        model_type=str(raw.get("model_type") or raw.get("architecture")),
        hf_config=raw,
        head=built.head,
        num_labels=num_labels,
        num_blocks=num_blocks,
        abstract=nested({path: leaf for path, leaf in leaves.items() if path in parameters}),
        whole=whole,
        stored={path: _stored(path, len(leaves[path].shape), built.ties) for path in order},
        depths={path: depth_of[path] for path in order if path in parameters},
        statistics={path: depth_of[path] for path in order if path not in parameters},
        new_head=new_head or bool(others) and built.exports not in others,
        grown={path_of(name): shape for name, shape in grown.items()},
    )


def _built(
    where: str, raw: dict[str, Any], head: str | None, num_labels: int, rates: Rates,
    vocabulary: int,
) -> tuple[dict[str, Any], Any, dict[str, tuple[int, ...]]]:  # fmt: skip
    """(config.json, the module of it, what of it has fewer rows in the checkpoint, by name)."""
    from jaxft.models.bridge import resizing

    build = _library(where, raw)
    built = build(where, raw, head, num_labels, rates)
    if not isinstance(built.limits, TextLimits) or built.limits.vocabulary >= vocabulary:
        return raw, built, {}
    raw = resizing.with_vocabulary(raw, built.module.config, vocabulary)
    larger = build(where, raw, head, num_labels, rates)
    return raw, larger, resizing.grown(where, built, larger)


def _require(directory: str, raw: Mapping[str, Any], because: str) -> None:
    """Raises ValueError where the extra is not installed."""
    try:
        import torch  # noqa: F401
        import torchax  # noqa: F401
    except ImportError as error:
        if because:
            lacking = f"PyTorch's own module may take it, with {EXTRA} (missing: {error.name})"
            raise ValueError(f"{because}; {lacking}") from None
        lacking = f"any other model of transformers needs {EXTRA} (missing: {error.name})"
        try:
            family = family_of(directory, raw.get("model_type"))
        except ValueError as unknown:
            raise ValueError(f"{unknown}; {lacking}") from None
        raise ValueError(
            f"config.model.implementation='bridge' needs {EXTRA} (missing: {error.name}); "
            f"{family.model_type!r} is also native"
        ) from None


def _library(where: str, raw: Mapping[str, Any]) -> Any:
    """`build` of timm or of transformers: timm's format names an architecture and no model type."""
    if "architecture" not in raw or "model_type" in raw:
        from jaxft.models.bridge import hub

        return hub.build
    try:
        from jaxft.models.bridge import pytorch_image_models
    except ImportError as error:
        lacking = f"needs pip install 'jaxft[timm]' (missing: {error.name})"
        try:
            family = timm_config.family_of(os.path.dirname(where), raw, TIMM)
        except ValueError as unknown:
            raise ValueError(f"{unknown}; any other model of timm {lacking}") from None
        raise ValueError(
            f"config.model.implementation='bridge' of a model of timm {lacking}; "
            f"{family.model_type!r} is also native"
        ) from None
    return pytorch_image_models.build


def _settled(
    found: dict[str, int], rules: tuple[tuple[str, int], ...], blocks: int
) -> tuple[dict[str, int], int]:
    """Depths after the rules, and the number of blocks: the head's parameters move along."""
    if not rules:
        return found, blocks
    result, used = dict(found), set()
    for path in found:
        for pattern, depth in rules:
            if re.fullmatch(pattern, path):
                result[path] = depth
                used.add(pattern)
                break
    for pattern, _ in rules:
        if pattern not in used:
            raise ValueError(f"config.model.depths: {pattern!r} matches no parameter path")
    named = {depth for _, depth in rules}
    top = max(named | {depth for path, depth in result.items() if found[path] <= blocks})
    ruled = {p for p in found if any(re.fullmatch(pattern, p) for pattern, _ in rules)}
    # The head stays above all others, unless a rule speaks of it.
    result = {
        path: top + 1 if found[path] == blocks + 1 and path not in ruled else depth
        for path, depth in result.items()
    }
    head = max(result.values())
    if absent := sorted(set(range(head + 1)) - set(result.values()) - {0}):
        raise ValueError(f"config.model.depths leaves no parameter at depth {absent[0]}")
    return result, head - 1


def _stored(path: str, axes: int, ties: Mapping[str, tuple[str, ...]]) -> Stored:
    name = path.replace("/", ".")
    return Stored(name, tuple(range(axes)), ties.get(name, ()))


def _dtype(x: Any) -> Any:
    """Floats are trained in fp32; whole numbers are counted in 32 bits."""
    return jnp.float32 if x.is_floating_point() else np.int32
