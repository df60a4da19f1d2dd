"""Which tensor of a checkpoint is which parameter: by `Architecture.stored`, strict both ways.

No tensor data is touched here.
"""

import dataclasses
import re

from jaxft.base.json_file import brief
from jaxft.models.architecture import Architecture
from jaxft.models.checkpoint import tensors
from jaxft.models.checkpoint.checkpoint_files import listed
from jaxft.models.tree import by_path


@dataclasses.dataclass(frozen=True)
class ReadReport:
    """What happened to a checkpoint on its way in, beyond tensors read under their own names."""

    initialised: tuple[str, ...] = ()  # parameter paths of head modules the checkpoint lacks
    dropped: tuple[str, ...] = ()  # tensors of heads that are not used here
    renamed: tuple[tuple[str, str], ...] = ()  # (name in the file, name it is known by here)


@dataclasses.dataclass(frozen=True)
class Match:
    """Path in `Architecture.whole` -> (name of its tensor, where that is); and what did not pair up."""

    sources: dict[str, tuple[str, tensors.Entry]]
    report: ReadReport
    again: tuple[tuple[str, str, tensors.Entry], ...] = ()  # (path, name, where): tied, twice there


def match(directory: str, architecture: Architecture) -> Match:
    """Pairs the tensors of a checkpoint with parameters and batch statistics.

    A head module that is absent as a whole, or was made for other labels, is left for
    initialisation; tensors of other heads are dropped. Both are reported.

    Raises:
        ValueError: one line with every missing, unexpected and misshapen tensor; a damaged file.
    """
    family = architecture.family
    others = (*family.other_heads, *family.heads[architecture.head].unused)
    paths = {
        name: path
        for path, stored in architecture.stored.items()
        for name in (stored.name, *stored.ties)
    }
    sources: dict[str, tuple[str, tensors.Entry]] = {}
    dropped, unexpected, renamed, again = [], [], [], []
    for name, entry in tensors.entries(directory).items():
        known_as = current_name(name, family.aliases)
        path = paths.get(known_as) or paths.get(f"{family.base}.{known_as}")
        if path is not None and path not in sources:
            sources[path] = (name, entry)
            renamed += [(name, known_as)] if known_as != name else []
        elif path is not None and architecture.stored[path].ties:
            again.append((path, name, entry))
        elif any(re.fullmatch(pattern, name) for pattern in others):
            dropped.append(name)
        else:
            unexpected.append(name if name.isprintable() and len(name) < 200 else brief(name))
    new = _new_head(architecture, sources)
    dropped += [sources.pop(path)[0] for path in new if path in sources]
    known = {*sources, *new}
    missing = [stored.name for path, stored in architecture.stored.items() if path not in known]
    misshapen = _misfits(architecture, sources)
    found = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    problems = [f"{len(some)} {kind}: {listed(some)}" for kind, some in found.items() if some]
    if problems:
        raise ValueError(f"{directory} is no {architecture.exports}: {'; '.join(problems)}")
    return Match(sources, ReadReport(tuple(new), tuple(dropped), tuple(renamed)), tuple(again))


def current_name(name: str, aliases: tuple[tuple[str, str], ...]) -> str:
    """A tensor's name with every (pattern, replacement) applied in order."""
    for pattern, replacement in aliases:
        name = re.sub(pattern, replacement, name)
    return name


def _new_head(
    architecture: Architecture, sources: dict[str, tuple[str, tensors.Entry]]
) -> list[str]:
    """Paths of head modules to initialise."""
    leaves = by_path(architecture.abstract)
    modules: dict[str, list[str]] = {}
    for path in leaves:
        if architecture.depths[path] == architecture.num_blocks + 1:
            modules.setdefault(path.rpartition("/")[0], []).append(path)

    classifier = architecture.family.heads[architecture.head].classifier

    def other_labels(path: str) -> bool:
        """The tensor is a classifier's and would fit, were it for these labels."""
        if not path.startswith(f"{classifier}/"):
            return False
        if path not in sources:  # as a bias that the head of another kind lacks
            return architecture.new_head
        shape, stored = leaves[path].shape, architecture.stored[path]
        found = sources[path][1].shape
        labels = stored.axes[-1]  # the axis of the tensor that counts labels
        fitted = (*found[:labels], shape[-1], *found[labels + 1 :])
        return fitted == stored.reordered(shape) and (architecture.new_head or found != fitted)

    return [
        path
        for members in modules.values()
        if not any(path in sources for path in members) or all(map(other_labels, members))
        for path in members
    ]


def _misfits(
    architecture: Architecture, sources: dict[str, tuple[str, tensors.Entry]]
) -> list[str]:
    leaves, found = by_path(architecture.whole), []
    for path, (name, entry) in sources.items():
        shape = architecture.stored[path].reordered(leaves[path].shape)
        if entry.shape != shape:
            found.append(f"{name} is {list(entry.shape)}, expected {list(shape)}")
        elif entry.dtype not in (dtypes := tensors.readable_as(leaves[path].dtype)):
            expected = f"one of {', '.join(dtypes)}" if dtypes[1:] else dtypes[0]
            found.append(f"{name} is {entry.dtype}, expected {expected}")
    return found
