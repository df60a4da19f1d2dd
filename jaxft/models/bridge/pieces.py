"""Tensors that files hold in other pieces than a module does, as experts one by one, or queries, keys and
values in one.

transformers puts them together as it loads, by rules of its own, and takes them apart as it saves. Here
leaves are the pieces of the files, so that paths, frozen bytes and exports are theirs, and they are put
together by the same rules in the traced step. That copies them once a step.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, apply_converters, dot_natural_key

Named = Mapping[str, torch.Tensor]


class Pieces:
    """The rules for one module.

    Attributes:
        origins: name of a piece -> names of the module's tensors that it is a part of; only of those
            that are not the same here and there.
    """

    def __init__(self, module: Any):
        self._module = module
        rules = [
            rule
            for rule in get_model_conversion_mapping(module, add_legacy=False)
            if isinstance(rule, WeightConverter)
        ]
        self._join, self._cut = rules, [rule.reverse_transform() for rule in rules[::-1]]
        whole = dict(module.named_parameters())
        self.origins = {
            piece: members
            for members, found in self._converted(whole, self._cut)
            for piece in found
            if members != (piece,)
        }

    def split(self, tensors: Named) -> dict[str, torch.Tensor]:
        """The module's tensors as files hold them."""
        return {k: x for _, found in self._converted(tensors, self._cut) for k, x in found.items()}

    def join(self, tensors: Named) -> dict[str, torch.Tensor]:
        """The other way round."""
        return {k: x for _, found in self._converted(tensors, self._join) for k, x in found.items()}

    def _converted(
        self, tensors: Named, rules: list[Any]
    ) -> Iterator[tuple[tuple[str, ...], dict[str, torch.Tensor]]]:
        """(names of what goes together, what becomes of it), in the order in which transformers does it."""
        by_pattern = {pattern: rule for rule in rules for pattern in rule.source_patterns}
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(tensors, key=dot_natural_key):
            target, pattern = apply_converters(name, rules)
            if pattern is None:
                yield (name,), {name: tensors[name]}
            else:
                groups.setdefault(target, []).append((pattern, name))
        for target, members in groups.items():
            rule = copy.deepcopy(by_pattern[members[0][0]])
            for pattern, name in members:
                rule.add_tensor(target, name, pattern, tensors[name])
            found = rule.convert(target, model=self._module, config=self._module.config)
            yield (
                tuple(name for _, name in members),
                {name: x[0] if isinstance(x, list) else x for name, x in found.items()},
            )
