"""Which tensors of a checkpoint a module of transformers takes: its own, renamed as transformers does it."""

import re
from collections.abc import Callable, Collection
from typing import Any

import torch
import transformers

from jaxft.base.quiet import quiet
from jaxft.models.bridge.module import (
    computed_buffers,
    path_of,
    persistent_names,
    tied_names,
)
from jaxft.models.bridge.pieces import Pieces
from jaxft.models.naming import Naming


def naming(module: Any, base: str, labelled: Collection[str], pieces: Pieces) -> Naming:
    """What a module takes of a checkpoint.

    Args:
        base: name of the model without a head in it.
        labelled: names of its parameters that are of the size of the labels.
    """
    own = {*persistent_names(module), *pieces.origins}
    computed = {full for _, _, full in computed_buffers(module)}
    tied = tied_names(module)
    patterns = [str(p) for p in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()]
    rename = _renaming(module)

    def renamed(name: str) -> str:
        found = rename(name)
        return name if name in own and found not in own else found

    def current(name: str) -> str:
        known = renamed(name)
        return tied.get(known, tied.get(f"{base}.{known}", known))

    def unused(names: Collection[str], among: Collection[str]) -> list[str]:
        whole = bool(base) and any(name.startswith(f"{base}.") for name in among)
        headless = _base_names(module)

        def is_unused(name: str) -> bool:
            full = renamed(name)
            short = full.removeprefix(f"{base}.")
            return (
                (whole and not full.startswith(f"{base}."))  # of another head
                or short in headless  # of the model without a head, as its pooler
                or not computed.isdisjoint((full, f"{base}.{full}"))
                or any(re.search(pattern, name) for pattern in patterns)
            )

        return [name for name in names if is_unused(name)]

    modules = {path_of(name.rpartition(".")[0]) for name in labelled}
    return Naming(base, tuple(sorted(modules)), current, unused)


def _base_names(module: Any) -> set[str]:
    """Tensors of the model without a head, some of which a model with one may leave out."""
    with quiet(), torch.device("meta"):
        model = transformers.AutoModel.from_config(module.config, attn_implementation="eager")
    return set(model.state_dict())


def _renaming(module: Any) -> Callable[[str], str]:
    """transformers' own renaming of tensors of older files."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    rules = [one for one in get_model_conversion_mapping(module) if isinstance(one, WeightRenaming)]

    def current(name: str) -> str:
        for rule in rules:
            name, _ = rule.rename_source_key(name)
        return name

    return current
