"""Which tensor of a checkpoint is which parameter: by `Architecture.stored`, strict both ways.

No tensor data is touched here.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping

from jaxft.base.json_file import brief
from jaxft.models.checkpoint import tensors
from jaxft.models.checkpoint.checkpoint_files import listed
from jaxft.models.contract import Architecture
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
    paths = {
        name: path
        for path, stored in architecture.stored.items()
        for name in (stored.name, *stored.ties)
    }
    sources: dict[str, tuple[str, tensors.Entry]] = {}
    left, renamed, again = [], [], []
    entries, naming = tensors.entries(directory), architecture.naming
    for name, entry in entries.items():
        known_as = naming.current(name)
        path = paths.get(known_as) or paths.get(f"{naming.base}.{known_as}")
        if path is not None and path not in sources:
            sources[path] = (name, entry)
            renamed += [(name, known_as)] if known_as != name else []
        elif path is not None and architecture.stored[path].ties:
            again.append((path, name, entry))
        else:
            left.append(name)
    unused = {*(naming.unused(left, entries) if left else ()), *_apart(left, entries)}
    dropped = [name for name in left if name in unused]
    unexpected = [
        name if name.isprintable() and len(name) < 200 else brief(name)
        for name in left
        if name not in unused
    ]
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


def _apart(names: Iterable[str], entries: Mapping[str, tensors.Entry]) -> list[str]:
    """Those that are in the file of what no class of transformers has, which most models do not take."""
    return [name for name in names if os.path.basename(entries[name].file) == tensors.APART]


def _new_head(
    architecture: Architecture, sources: dict[str, tuple[str, tensors.Entry]]
) -> list[str]:
    """Paths of head modules to initialise."""
    leaves = by_path(architecture.whole)
    classifiers = tuple(f"{module}/" for module in architecture.naming.classifiers)
    modules: dict[str, list[str]] = {}
    for path in leaves:
        # A classifier's are of the head even where they are no parameters, as those of a fitted one.
        of_head = architecture.depths.get(path) == architecture.num_blocks + 1
        if of_head or path.startswith(classifiers):
            modules.setdefault(path.rpartition("/")[0], []).append(path)

    def other_labels(path: str) -> bool:
        """The tensor is a classifier's and would fit, were it for these labels."""
        if not path.startswith(classifiers):
            return False
        if path not in sources:  # as a bias that the head of another kind lacks
            return architecture.new_head
        wanted = architecture.stored[path].reordered(leaves[path].shape)
        found = sources[path][1].shape
        # A tensor's first axis is the one that counts labels.
        return found[1:] == wanted[1:] and (architecture.new_head or found != wanted)

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
        shape = architecture.grown.get(path, leaves[path].shape)
        shape = architecture.stored[path].reordered(shape)
        if entry.shape != shape:
            found.append(f"{name} is {list(entry.shape)}, expected {list(shape)}")
        elif entry.dtype not in (dtypes := tensors.readable_as(leaves[path].dtype)):
            expected = f"one of {', '.join(dtypes)}" if dtypes[1:] else dtypes[0]
            found.append(f"{name} is {entry.dtype}, expected {expected}")
    return found
