"""A module of PyTorch without its numbers, and what its library says of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from jaxft.models.family import ImageLimits, TextLimits
from jaxft.models.naming import Naming
from jaxft.models.rates import Rates

# Tensors of torch, by the names that the module's forward pass has for them -> its logits.
Forward = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """A module on torch's meta device.

    Attributes:
        head: 'sequence', 'token', 'question', 'choice', 'image', 'causal', 'masked' or 'seq2seq'.
        library: what it is of, for the terminal.
        module: its parameters and persistent buffers have shapes and no numbers.
        constants: its other buffers, which follow from the config, by name.
        forward: its logits, as it gives them.
        takes: names of the arguments of its forward pass.
        initialise: gives every parameter that it has at the time of the call its initial values.
        from_scratch: what these are is known of every parameter.
        pad: the token id that stands where there is no token.
        left: the head reads the last token of a row, padding or not, so texts stand at its end.
        exports, limits, naming: see `contract.Architecture`.
        depths: depth of every parameter and persistent buffer, by name; the last is the head's.
        fixed: names of parameters that the module itself never trains, as tables of sines.
        join, split: the module's tensors of those that files hold, and these of those.
    """

    head: str
    library: str
    module: torch.nn.Module
    constants: dict[str, np.ndarray]
    forward: Forward
    takes: frozenset[str]
    initialise: Callable[[], None]
    from_scratch: bool
    pad: int
    exports: str
    limits: TextLimits | ImageLimits
    naming: Naming
    depths: dict[str, int]
    left: bool = False
    fixed: frozenset[str] = frozenset()
    join: Callable[[Tensors], Tensors] = dict
    split: Callable[[Tensors], Tensors] = dict

    @functools.cached_property
    def parameters(self) -> dict[str, torch.Tensor]:
        """By the name in files; tied ones once."""
        whole = self.split(dict(self.module.named_parameters()))
        return {name: x for name, x in whole.items() if name not in self.fixed}

    @functools.cached_property
    def statistics(self) -> dict[str, torch.Tensor]:
        """What is in files and never trained, by name: persistent buffers and fixed parameters."""
        persistent = persistent_names(self.module)
        buffers = {name: x for name, x in self.module.named_buffers() if name in persistent}
        parameters = dict(self.module.named_parameters())
        return buffers | {name: parameters[name] for name in sorted(self.fixed)}

    @property
    def ties(self) -> dict[str, tuple[str, ...]]:
        """Name of a tied parameter -> its other names, under which a file may hold it again."""
        found: dict[str, tuple[str, ...]] = {}
        for other, name in tied_names(self.module).items():
            found[name] = (*found.get(name, ()), other)
        return found


def persistent_names(module: torch.nn.Module) -> set[str]:
    """Of what a checkpoint holds: parameters and persistent buffers, tied ones by every name."""
    return set(module.state_dict(keep_vars=True))


def computed_buffers(module: torch.nn.Module) -> list[tuple[torch.nn.Module, str, str]]:
    """(owner, attribute, full name) of every buffer that no checkpoint holds."""
    persistent, found = persistent_names(module), []
    for prefix, owner in module.named_modules():
        for name, _ in owner.named_buffers(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if full not in persistent:
                found.append((owner, name, full))
    return found


def make_buffers_of_unsaved(module: torch.nn.Module) -> None:
    """Parameters that are never trained and that its class does not save, as Marian's tables of sines, are
    buffers that follow from the config, like those that it calls so."""
    unsaved = set(getattr(module, "_keys_to_ignore_on_save", None) or ())
    for full, x in list(module.named_parameters()):
        if full in unsaved and not x.requires_grad:
            prefix, _, name = full.rpartition(".")
            owner = module.get_submodule(prefix)
            delattr(owner, name)
            owner.register_buffer(name, x.data, persistent=False)


def tied_names(module: torch.nn.Module) -> dict[str, str]:
    """Other names of tied parameters -> the one that `named_parameters` has."""
    first: dict[int, str] = {}
    tied = {}
    for name, x in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(x), name) != name:
            tied[name] = first[id(x)]
    return tied


def path_of(name: str) -> str:
    """'encoder.layer.0.weight' -> 'encoder/layer/0/weight'."""
    return name.replace(".", "/")


def replace_rates(config: Any, rates: Rates) -> bool:
    """The rates of a config of transformers replaced, and no block left out at random for all examples.

    Leaving out whole blocks (LayerDrop, arXiv:1909.11556) is a decision of Python's in the module's
    forward pass, and would be taken once, when it is traced.

    Returns:
        Whether it says how often residual branches are left out of an example.
    """
    found, dropout = False, rates.dropout
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            found |= replace_rates(value, rates)
        elif "layerdrop" in key or "layer_drop" in key:
            setattr(config, key, 0.0)
        elif key == "drop_path_rate":
            found = True
            if rates.stochastic_depth is not None:
                each = isinstance(value, list | tuple)  # of CvT's stages
                rate = rates.stochastic_depth
                setattr(config, key, [rate] * len(value) if each else rate)
        elif dropout is not None and ("dropout" in key or "pdrop" in key):
            if value is None or isinstance(value, float | int) and not isinstance(value, bool):
                setattr(config, key, dropout)
    return found
