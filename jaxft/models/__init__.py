"""Models from Hugging Face checkpoints and back.

An architecture is read from a checkpoint's config.json (architecture.py), its parameters from the
tensors (checkpoint/). What differs between families is in one file each (families/), as the record
that family.py describes. Of any other, PyTorch's own module is traced (bridge/). Both are what contract.py
says, and load.py chooses.
"""

from jaxft.models.checkpoint import hf
from jaxft.models.checkpoint.config_json import class_names
from jaxft.models.checkpoint.names import ReadReport
from jaxft.models.contract import Architecture, Pass, has_batch_norms
from jaxft.models.families import FAMILIES
from jaxft.models.family import ImageLimits, TextLimits
from jaxft.models.heads import SENTENCE, NoHeadError
from jaxft.models.layers.batch_norm import move_statistics
from jaxft.models.load import load_architecture
from jaxft.models.randomness import draws
from jaxft.models.tree import Params, by_path

__all__ = [
    "FAMILIES",
    "SENTENCE",
    "Architecture",
    "ImageLimits",
    "NoHeadError",
    "Params",
    "Pass",
    "ReadReport",
    "TextLimits",
    "class_names",
    "by_path",
    "draws",
    "has_batch_norms",
    "hf",
    "load_architecture",
    "move_statistics",
]
