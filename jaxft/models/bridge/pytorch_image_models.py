"""Modules of timm: a directory with a config.json in its hub format (`architecture`, `pretrained_cfg`)."""

import functools
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.models._manipulate import group_with_matcher
from torch.overrides import TorchFunctionMode

from jaxft.base.json_file import brief
from jaxft.models.bridge.module import (
    Built,
    computed_buffers,
    path_of,
    persistent_names,
    tied_names,
)
from jaxft.models.family import ImageLimits
from jaxft.models.naming import Naming
from jaxft.models.rates import Rates


def build(
    where: str, raw: Mapping[str, Any], head: str | None, num_labels: int, rates: Rates
) -> Built:
    """The model of timm that this config.json names.

    Raises:
        ValueError: timm has no such model, cannot make it of this config, or it classifies no images.
    """
    name = raw["architecture"]
    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError(f"{where}: timm {timm.__version__} has no model {brief(name)}")
    if head not in (None, "image"):
        raise ValueError(f"{where}: {name} of timm classifies images; it has no head {head!r}")
    module = _module(where, raw, num_labels, rates, "meta")
    other = _module(where, raw, num_labels + 1, rates, "meta")
    shapes = {key: x.shape for key, x in other.named_parameters()}
    labelled = {key for key, x in module.named_parameters() if shapes[key] != x.shape}
    constants = {}
    if computed := computed_buffers(module):
        with _without_draws():
            whole = _module(where, raw, num_labels, rates, "cpu")
        constants = {full: whole.get_buffer(full).numpy() for _, _, full in computed}
    return Built(
        head="image",
        library=f"timm {timm.__version__}",
        module=module,
        constants=constants,
        forward=functools.partial(_logits, module),
        takes=frozenset({"pixel_values"}),
        initialise=functools.partial(_initialise, module),
        from_scratch=False,
        pad=-1,
        exports=name,
        limits=_limits(where, raw),
        naming=_naming(module, labelled, constants),
        depths=depths(module),
    )


def depths(module: Any) -> dict[str, int]:
    """timm's own groups for layer-wise decay, of parameters and persistent buffers by name."""
    tied = tied_names(module)
    named = [(name, None) for name in sorted(persistent_names(module)) if name not in tied]
    return group_with_matcher(named, module.group_matcher(coarse=False), reverse=True)


def _module(where: str, raw: Mapping[str, Any], num_labels: int, rates: Rates, device: str) -> Any:
    options = dict(raw.get("model_args") or {}) | {"num_classes": num_labels}
    if rates.dropout is not None:
        options["drop_rate"] = rates.dropout
    if rates.stochastic_depth is not None:
        options["drop_path_rate"] = rates.stochastic_depth
    try:
        with torch.device(device):
            module = timm.create_model(raw["architecture"], pretrained=False, **options)
    except Exception as error:  # whatever a library makes of arguments that it does not like
        reason = " ".join(str(error).split())[:300]
        if rates.stochastic_depth is not None and "'drop_path_rate'" in reason:
            raise ValueError(
                f"config.model.stochastic_depth={rates.stochastic_depth} is not for {raw['architecture']} of "
                "timm, which leaves out no residual branches; leave it at none"
            ) from error
        raise ValueError(f"{where}: timm cannot make the model: {reason}") from error
    return module.requires_grad_(False)


class _NoDraws(TorchFunctionMode):
    """Leaves memory that would be filled with draws as it is: untouched, it costs nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, place = getattr(func, "__name__", ""), getattr(func, "__module__", None) or ""
        if name in ("normal_", "uniform_", "erfinv_") or "nn.init" in place:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_draws() -> Iterator[None]:
    with _NoDraws(), torch.no_grad():
        yield


def _logits(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found = module(inputs["pixel_values"])
    # Distilled models have two heads while they train; they predict with the mean of both.
    return (found[0] + found[1]) / 2 if isinstance(found, tuple) else found


def _initialise(module: Any) -> None:
    """torch's own defaults for each kind of layer; of what timm sets besides, nothing is known here."""
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            if not inspect.signature(reset).parameters:
                reset()


def _limits(where: str, raw: Mapping[str, Any]) -> ImageLimits:
    said = raw.get("pretrained_cfg")
    size = (said if isinstance(said, dict) else raw).get("input_size")
    if (
        not isinstance(size, list | tuple)
        or len(size) != 3
        or not all(type(n) is int and 0 < n <= 2**16 for n in size)
    ):
        raise ValueError(
            f"{where}: pretrained_cfg.input_size is {brief(size)}; it must be [channels, height, width]"
        )
    return ImageLimits(size[1], size[2], size[0])


def _naming(module: Any, labelled: Collection[str], constants: Collection[str]) -> Naming:
    tied = tied_names(module)

    def unused(names: Collection[str], among: Collection[str]) -> list[str]:
        return [name for name in names if name in constants]

    modules = {path_of(name.rpartition(".")[0]) for name in labelled}
    return Naming("", tuple(sorted(modules)), lambda name: tied.get(name, name), unused)
