"""Which tensor of a checkpoint is which parameter: by the type of the leaf, strict both ways.

A parameter path is the checkpoint's name with '/' for '.', up to the leaf; `stored` has the one
rule for each type of leaf, and reading and writing both go by it. No tensor data is touched here.
"""

import dataclasses
import re
from typing import Any

from jaxft.models import FAMILIES, Architecture, flatten, tensors
from jaxft.models.checkpoint_files import brief, listed


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What happened to a checkpoint on its way in, beyond tensors read under their own names."""

    initialised: tuple[str, ...] = ()  # parameter paths of head modules the checkpoint lacks
    dropped: tuple[str, ...] = ()  # tensors of heads that are not used here
    renamed: tuple[tuple[str, str], ...] = ()  # (name in the file, name it is known by here)


@dataclasses.dataclass(frozen=True)
class Match:
    """Parameter path -> (name of its tensor, where that is); and what did not pair up."""

    sources: dict[str, tuple[str, tensors.Entry]]
    report: ReadReport


def stored(path: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """How HF stores a leaf: its name there, and the stored tensor's axes in the leaf's order.

    'classifier/kernel' [in, out] -> ('classifier.weight', (1, 0))
    'x/projection/kernel' HWIO    -> ('x.projection.weight', (2, 3, 1, 0)), as OIHW is stored
    'x/LayerNorm/scale'           -> ('x.LayerNorm.weight', (0,))
    'vit/embeddings/cls_token'    -> ('vit.embeddings.cls_token', (0, 1, 2))
    """
    *parents, leaf = path.split("/")
    name = "weight" if leaf in ("kernel", "embedding", "scale") else leaf
    axes = {2: (1, 0), 4: (2, 3, 1, 0)}[ndim] if leaf == "kernel" else tuple(range(ndim))
    return ".".join((*parents, name)), axes


def to_stored(items: tuple, axes: tuple[int, ...]) -> tuple:
    """Reorders a leaf's shape or index for the stored tensor: ((3, 5), (1, 0)) -> (5, 3)."""
    return tuple(items[axes.index(axis)] for axis in range(len(items)))


def match(directory: str, architecture: Architecture) -> Match:
    """Pairs the tensors of a checkpoint with parameters.

    A head module that is absent as a whole, or was made for other labels, is left for
    initialisation; tensors of other heads are dropped. Both are reported.

    Raises:
        ValueError: one line with every missing, unexpected and misshapen tensor; a damaged file.
    """
    family = FAMILIES[architecture.family]
    others = (*family.OTHER_HEADS, *family.HEADS[architecture.head].unused)
    leaves = flatten(architecture.abstract)
    names = {path: stored(path, leaf.ndim)[0] for path, leaf in leaves.items()}
    paths = {name: path for path, name in names.items()}
    sources: dict[str, tuple[str, tensors.Entry]] = {}
    dropped, unexpected, renamed = [], [], []
    for name, entry in tensors.entries(directory).items():
        known_as = current_name(name, family.ALIASES)
        path = paths.get(known_as) or paths.get(f"{family.BASE}.{known_as}")
        if path is not None and path not in sources:
            sources[path] = (name, entry)
            renamed += [(name, known_as)] if known_as != name else []
        elif any(re.fullmatch(pattern, name) for pattern in others):
            dropped.append(name)
        else:
            unexpected.append(name if name.isprintable() and len(name) < 200 else brief(name))
    new = _new_head(architecture, sources)
    dropped += [sources.pop(path)[0] for path in new if path in sources]
    missing = [names[path] for path in leaves if path not in sources and path not in new]
    found = {"missing": missing, "unexpected": unexpected, "misshapen": _misfits(leaves, sources)}
    problems = [f"{len(some)} {kind}: {listed(some)}" for kind, some in found.items() if some]
    if problems:
        raise ValueError(f"{directory} is no {architecture.exports}: {'; '.join(problems)}")
    return Match(sources, ReadReport(tuple(new), tuple(dropped), tuple(renamed)))


def current_name(name: str, aliases: tuple[tuple[str, str], ...]) -> str:
    """A tensor's name with every (pattern, replacement) applied in order."""
    for pattern, replacement in aliases:
        name = re.sub(pattern, replacement, name)
    return name


def _new_head(
    architecture: Architecture, sources: dict[str, tuple[str, tensors.Entry]]
) -> list[str]:
    """Paths of head modules to initialise."""
    leaves = flatten(architecture.abstract)
    modules: dict[str, list[str]] = {}
    for path in leaves:
        if architecture.depths[path] == architecture.num_blocks + 1:
            modules.setdefault(path.rpartition("/")[0], []).append(path)

    def other_labels(path: str) -> bool:
        """The tensor is a classifier's and would fit, were it for these labels."""
        if path not in sources or not path.startswith("classifier/"):
            return False
        shape, axes = leaves[path].shape, stored(path, leaves[path].ndim)[1]
        found = sources[path][1].shape
        labels = axes[-1]  # the axis of the stored tensor that counts labels
        fitted = (*found[:labels], shape[-1], *found[labels + 1 :])
        return fitted == to_stored(shape, axes) and (architecture.new_head or found != fitted)

    return [
        path
        for members in modules.values()
        if not any(path in sources for path in members) or all(map(other_labels, members))
        for path in members
    ]


def _misfits(leaves: dict[str, Any], sources: dict[str, tuple[str, tensors.Entry]]) -> list[str]:
    found = []
    for path, (name, entry) in sources.items():
        shape = to_stored(leaves[path].shape, stored(path, leaves[path].ndim)[1])
        if entry.shape != shape:
            found.append(f"{name} is {list(entry.shape)}, expected {list(shape)}")
        elif entry.dtype not in tensors.DTYPES:
            found.append(f"{name} is {entry.dtype}, expected one of {', '.join(tensors.DTYPES)}")
    return found
