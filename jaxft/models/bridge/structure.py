"""Depths from the structure of a module: the stem 0, the blocks 1.., the head one more.

Blocks are the children of the longest lists of alike children: `encoder.layer`, `h`, `blocks`. Where the
children of a list differ and each has such a list inside (stages of a convolutional network), these are
counted through. A decoder's blocks follow those of the encoder.
"""

import dataclasses
from collections.abc import Iterator

import torch

# A list of blocks has at least this share of the parameters that the largest one has.
_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """A list of blocks: its name, and of each block the names of what belongs to it (a block of a
    stage takes what stands before it, or after the last, in its stage)."""

    name: str
    members: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A list of blocks in its module: where its submodules begin and end, and the depth of its last."""

    container: str
    first: int
    last: int
    depth: int


def depths(module: torch.nn.Module, base: str) -> dict[str, int]:
    """The depth of every parameter and persistent buffer, by name; tied ones once.

    What is registered before the blocks, and any embedding, is the stem's. What follows them inside
    of the encoder, and a norm after it, belongs to the last block, as in timm. What is left, as a
    pooler and all outside of `base`, is the head's.
    """
    order = {name: number for number, (name, _) in enumerate(module.named_modules())}
    block_of: dict[str, int] = {}
    placed, total = [], 0
    for one in _block_lists(module):
        for names in one.members:
            total += 1
            block_of.update(dict.fromkeys(names, total))
        inside = [number for name, number in order.items() if name.startswith(f"{one.name}.")]
        placed.append(_Placed(one.name.rpartition(".")[0], min(inside), max(inside), total))
    kept = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    result = {}
    for name in module.state_dict(keep_vars=True):
        if name not in kept:
            continue  # another name of a tied tensor
        owner = name.rpartition(".")[0]
        within = next((block_of[p] for p in (name, *_prefixes(name)) if p in block_of), None)
        if within is not None:
            result[name] = within
        elif base in order and base and not name.startswith(f"{base}."):
            result[name] = total + 1
        else:
            part = module.get_submodule(owner)
            result[name] = _beside(owner, part, order[owner], placed, base, total)
    return result


def _beside(
    owner: str, part: torch.nn.Module, number: int, placed: list[_Placed], base: str, total: int
) -> int:
    """The depth of what is in no block, by where it is registered."""
    before = [one for one in placed if one.last < number]
    if isinstance(part, torch.nn.Embedding) or (placed and not before):
        return 0
    if before and before[-1].container not in (base, ""):
        if owner.startswith(f"{before[-1].container}."):
            return before[-1].depth
    if any(number < one.first for one in placed):
        return 0
    return total if "norm" in type(part).__name__.lower() else total + 1


def _prefixes(name: str) -> Iterator[str]:
    """'a.b.c' -> 'a.b', 'a'."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _block_lists(module: torch.nn.Module) -> list[_Blocks]:
    """In the order in which the module has them."""
    lists = {name: part for name, part in module.named_modules() if _is_list(part)}
    outer = [name for name in lists if not any(prefix in lists for prefix in _prefixes(name))]
    sizes = {name: _size(lists[name]) for name in outer}
    most = max(sizes.values(), default=0)
    chosen = [name for name in outer if sizes[name] and sizes[name] >= _SHARE * most]
    return [_Blocks(name, tuple(_blocks(name, lists[name]))) for name in chosen]


def _blocks(name: str, listed: torch.nn.Module) -> Iterator[tuple[str, ...]]:
    children = [(f"{name}.{key}", child) for key, child in listed.named_children()]
    found = [_main_list(child) for _, child in children]
    stages = [inner for inner in found if inner is not None]
    lists = all(_is_list(child) for _, child in children)
    if (
        children
        and len(stages) == len(children)
        and (lists or not _alike([child for _, child in children]))
    ):
        for (child_name, child), stage in zip(children, stages, strict=True):
            yield from _of_stage(child_name, child, stage)
    else:
        for child_name, _ in children:
            yield (child_name,)


def _of_stage(name: str, stage: torch.nn.Module, inner: str) -> Iterator[tuple[str, ...]]:
    """The blocks of a stage: what is before them is the first's, what is after them the last's."""
    full = f"{name}.{inner}" if inner else name
    blocks = list(_blocks(full, stage.get_submodule(inner)))
    names = [f"{name}.{key}" for key, _ in stage.named_children()]
    holder = f"{name}.{inner.split('.')[0]}" if inner else ""
    place = names.index(holder) if holder else 0
    before = names[:place] if holder else []
    after = names[place + 1 :] if holder else []
    blocks[0] = (*before, *blocks[0])
    blocks[-1] = (*blocks[-1], *after)
    yield from blocks


def _main_list(part: torch.nn.Module) -> str | None:
    """Name in `part` of the list with most parameters; '' if it is one itself; None if it has none."""
    if _is_list(part):
        return ""
    lists = {name: _size(x) for name, x in part.named_modules() if _is_list(x) and _size(x)}
    outer = {
        name: size for name, size in lists.items() if not any(p in lists for p in _prefixes(name))
    }
    return max(outer, key=lambda name: outer[name]) if outer else None


def _is_list(part: torch.nn.Module) -> bool:
    """Numbered children, all of one class that has more in it than one operation."""
    keys = [key for key, _ in part.named_children()]
    if not keys or not all(key.isdecimal() for key in keys):
        return False
    children = list(part.children())
    return len({type(child) for child in children}) == 1 and any(
        True for _ in children[0].children()
    )


def _alike(children: list[torch.nn.Module]) -> bool:
    """Most tensors that neighbours have in common are of equal shape."""
    shares = []
    shapes = [{name: x.shape for name, x in child.named_parameters()} for child in children]
    for one, next_one in zip(shapes, shapes[1:], strict=False):
        common = one.keys() & next_one.keys()
        equal = sum(one[name] == next_one[name] for name in common)
        shares.append(equal / max(len(common), 1))
    return not shares or sorted(shares)[len(shares) // 2] > 0.5


def _size(part: torch.nn.Module) -> int:
    return sum(x.numel() for x in part.parameters())
