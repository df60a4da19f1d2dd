"""A module of PyTorch run on JAX arrays: what torchax traces, with dropout and modes of our own.

torch's modes and a module's `training` flags are state of the process, so one trace goes at a time; the
programs that come of them hold nothing of torch.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import torch
import torchax
from torch.nn.utils.stateless import _reparametrize_module as reparametrised
from torchax.tensor import OperatorNotFound

from jaxft.models.bridge import operators
from jaxft.models.bridge.norms import BatchNorms

_LOCK = threading.RLock()
_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
Arrays = Mapping[str, jax.Array]
Tensors = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def run(
    module: torch.nn.Module,
    arrays: Arrays,
    forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    inputs: Arrays,
    *,
    join: Tensors = dict,
    key: jax.Array | None,
    training: Callable[[str], bool],
    norms: BatchNorms,
) -> jax.Array:
    """`forward(inputs)` of the module with these parameters and buffers in it, traced.

    Args:
        arrays: every parameter and buffer by name; of tied ones any.
        join: makes the module's tensors of them.
        key: drives dropout; None: all of the module is in evaluation mode.
        training: whether the submodule of this name is in training mode, where there is a key.
        norms: answers batch norms; new for each trace.

    Raises:
        ValueError: something that cannot be traced; one line with its name and what would help.
    """
    env = torchax.default_env()
    seed = jax.random.key(0) if key is None else key
    with _LOCK, _quiet(), env.override_property(prng=seed):
        for name, part in module.named_modules():
            # Batch norms keep the checkpoint's statistics.
            fixed = isinstance(part, _BATCH_NORMS)
            part.training = key is not None and training(name) and not fixed
        try:
            with torch.no_grad(), env, norms:
                tensors = join(env.j2t_iso(dict(arrays)))
                norms.tensors = tensors
                with reparametrised(module, tensors, tie_weights=True):
                    return env.t2j_iso(forward(env.j2t_iso(dict(inputs))))
        except Exception as error:
            raise refusal(module, error) from error


def initialise(
    module: torch.nn.Module, start: Arrays, fill: Callable[[], None], key: jax.Array,
    split: Tensors = dict,
) -> Any:  # fmt: skip
    """What `fill` leaves in the module's parameters and buffers, which begin as `start`, traced; `split`
    makes what is returned of them."""
    env = torchax.default_env()
    with _LOCK, _quiet(), env.override_property(prng=key):
        try:
            with torch.no_grad(), env:
                tensors = env.j2t_iso(dict(start))
                with reparametrised(module, tensors, tie_weights=True):
                    fill()
                return {name: env.t2j_iso(x) for name, x in split(tensors).items()}
        except Exception as error:
            raise refusal(module, error) from error


operators.install()


def refusal(module: torch.nn.Module, error: Exception) -> ValueError:
    """Why a module cannot be traced, in one line."""
    name, text = type(module).__name__, " ".join(str(error).split())
    if isinstance(error, OperatorNotFound):
        reason = f"torchax has no {text.removeprefix('Operator with name ').split()[0]}"
        helps = "a newer torchax may have it"
    elif isinstance(
        error, jax.errors.ConcretizationTypeError | jax.errors.NonConcreteBooleanIndexError
    ):
        reason = f"it chooses by the values of its inputs, in {_place(error)}"
        helps = "another class of the same size that does not"
    else:
        reason = f"{type(error).__name__} in {_place(error)}: {text[:160]}"
        helps = "an implementation in plain operations"
    return ValueError(f"{name} cannot be traced into JAX: {reason}; what would help is {helps}")


def _place(error: BaseException) -> str:
    """The innermost line of a library's model that led to the error."""
    found, trace = "the module", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/models/" in code.co_filename and "/jaxft/" not in code.co_filename:
            found = f"{code.co_name} ({code.co_filename.rpartition('/')[2]}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that 64-bit integers of torch are 32-bit ones here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
