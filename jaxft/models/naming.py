"""Which tensors of a checkpoint are those of a model, whatever other versions call them."""

import dataclasses
import re
from collections.abc import Callable, Collection


@dataclasses.dataclass(frozen=True)
class Naming:
    """Which tensors of a checkpoint a model takes, beyond the names of its parameters.

    Attributes:
        base: name of the backbone in a model with a head, which files of the base model leave out.
        classifiers: paths of the modules whose outputs are the labels.
        current: the name here of a tensor that other versions of the library, or the other of two
            tied tensors, call otherwise.
        unused: `(names, all names of the checkpoint) ->` those of `names` that are of other heads, or
            of what is computed and not read.
    """

    base: str
    classifiers: tuple[str, ...]
    current: Callable[[str], str]
    unused: Callable[[Collection[str], Collection[str]], Collection[str]]


def current_name(name: str, aliases: tuple[tuple[str, str], ...]) -> str:
    """A tensor's name with every (pattern, replacement) applied in order."""
    for pattern, replacement in aliases:
        name = re.sub(pattern, replacement, name)
    return name


def matching(
    names: Collection[str], among: Collection[str], patterns: tuple[str, ...]
) -> list[str]:
    """Those of `names` that a pattern matches, whatever else there is."""
    return [name for name in names if any(re.fullmatch(one, name) for one in patterns)]
