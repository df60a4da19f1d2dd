"""The layout of sentence-transformers beside a checkpoint: which tokens are averaged, and that norms are one.

Of version 2 and later of that library; only what says how texts become vectors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from jaxft.base.json_file import read_json, read_object

POOLING, MODULES = "1_Pooling", "modules.json"
# What a layout consists of, besides the checkpoint; the folder holds a config.json alone.
FILES = (MODULES, "sentence_bert_config.json", POOLING)
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def pooling_of(directory: str) -> str:
    """'mean' or 'cls', as the layout of a checkpoint says; '' where there is none.

    Raises:
        ValueError: it pools in another way, or the file is none.
    """
    path = os.path.join(directory, POOLING, "config.json")
    found = read_object(path)
    if found is None:
        return ""
    modes = [
        name for name, value in found.items() if name.startswith("pooling_mode_") and value is True
    ]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ValueError(
            f"{path}: {', '.join(modes) or 'no mode'} is not implemented; there are {', '.join(_MODES)}; "
            "give config.model.pooling to pool in one of these ways"
        )
    return _MODES[modes[0]]


def normalizes(directory: str) -> bool:
    """Whether the layout of a checkpoint makes vectors of unit length; not where there is none.

    Raises:
        ValueError: the file is none.
    """
    modules = read_json(path) if os.path.exists(path := os.path.join(directory, MODULES)) else []
    given = modules if isinstance(modules, list) else []
    kinds = [str(module.get("type")) for module in given if isinstance(module, dict)]
    return any(kind.rpartition(".")[2] == "Normalize" for kind in kinds)


def layout(
    pooling: str, hf_config: Mapping[str, Any], max_length: int, *, unit: bool = True
) -> dict[str, Any]:
    """The files by path, as JSON, of a model with this config.json. unit: vectors are of unit length."""
    width = hf_config.get("hidden_size", hf_config.get("dim"))
    modules = [("", "Transformer"), (POOLING, "Pooling")]
    modules += [("2_Normalize", "Normalize")] * unit
    return {
        MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        f"{POOLING}/config.json": {
            "word_embedding_dimension": width,
            **{mode: name == pooling for mode, name in _MODES.items()},
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }


def write(directory: str, files: Mapping[str, Any]) -> None:
    """The files of a `layout`."""
    for name, value in files.items():
        path = os.path.join(directory, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)


def is_part(output: str, name: str) -> bool:
    """Whether a file or folder of a checkpoint is one of a layout."""
    path = os.path.join(output, name)
    if name != POOLING:
        return name in FILES and os.path.isfile(path)
    return os.path.isdir(path) and os.listdir(path) == ["config.json"]
