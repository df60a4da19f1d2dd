"""Precise fine-tuning of pretrained Hugging Face checkpoints.

    from jaxft import train, evaluate, load

`train` and `evaluate` are the modules of the commands, which can be called as functions; `load` gives a
model to predict with. They are imported when they are first asked for: `import jaxft.optim` must not
bring the rest with it.
"""

import importlib

__all__ = ["evaluate", "load", "train"]


def __getattr__(name: str) -> object:
    if name == "load":
        return importlib.import_module("jaxft.api").load
    if name in __all__:
        return importlib.import_module(f"jaxft.{name}")
    raise AttributeError(f"module 'jaxft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
