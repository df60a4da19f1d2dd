"""What a module is asked as a text goes on: the logits of one token of each row, and what its encoder says.

The logits of all tokens would be the largest array of such a program.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from jaxft.models.bridge.hub import unchecked
from jaxft.models.bridge.module import Built

# Inputs that are no arguments of a module's forward pass: [R], which token of each row is read, and
# [R, L, D], what the encoder gave.
PLACES, ENCODED = "places", "encoded"


def logits_at(built: Built, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[R, 1, V] or, of a module whose output layer is not known, those of all tokens [R, L, V]."""
    given: dict[str, Any] = dict(inputs)
    places = given.pop(PLACES)
    if ENCODED in given:
        given.pop("input_ids")
        given["encoder_outputs"] = BaseModelOutput(last_hidden_state=given.pop(ENCODED))
    with _reading(built.module, places):
        return built.forward(given)


def encoded(built: Built, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the decoder looks at: [R, L, D]."""
    encoder: Any = built.module.get_encoder()  # type: ignore[operator]
    takes = inspect.signature(encoder.forward).parameters
    given = {name: x for name, x in inputs.items() if name in takes}
    with unchecked():
        return encoder(**given, return_dict=True).last_hidden_state


@contextlib.contextmanager
def _reading(module: Any, places: torch.Tensor) -> Iterator[None]:
    """Meanwhile the output layer, where it is one of its own that is given [R, L, D], has one token a row."""
    try:
        output = module.get_output_embeddings()
    except NotImplementedError:
        output = None
    if output is None:
        yield
        return

    def chosen(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden, *rest = given
        if hidden.ndim != 3 or len(hidden) != len(places):
            return None
        index = places[:, None, None].expand(-1, 1, hidden.shape[-1])
        return (torch.gather(hidden, 1, index), *rest)

    handle = output.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()
