"""A finished run's best model, ready to predict."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.config import ConfigDict
from jaxft.models import Architecture, hf, load_architecture
from jaxft.run.build import slicing
from jaxft.run.data import Encoder, Split
from jaxft.run.directory import RunDirectory
from jaxft.run.evaluation import Evaluation, evaluate, predict
from jaxft.tasks import TASKS
from jaxft.training.parallel import Parallel, Programs, make_parallel
from jaxft.training.step import eval_step


@dataclasses.dataclass(frozen=True)
class Inference:
    """A model with what it needs to read rows.

    Attributes:
      config: of the run it comes from.
      names: label names by class number.
      params: placed, replicated under pmap.
    """

    config: ConfigDict
    architecture: Architecture
    names: tuple[str, ...]
    params: Any
    program: Programs
    parallel: Parallel
    encoder: Encoder

    def logits(self, split: Split) -> np.ndarray:
        """[N, C] float32 in the order of the split's rows; its labels are not looked at."""
        batches = self.encoder.evaluation(split, self.config, slicing(self.parallel))
        return predict(self.program, self.params, batches, self.parallel, split.labels.rows)

    def evaluate(self, split: Split) -> Evaluation:
        """Logits and metrics of a labelled split."""
        batches = self.encoder.evaluation(split, self.config, slicing(self.parallel))
        return evaluate(self.program, self.params, batches, self.parallel, split)


def load_inference(directory: RunDirectory) -> Inference:
    """Read DIR/best on this machine's devices.

    Raises:
      ValueError: no run directory, or the run has not finished.
    """
    config = directory.config()
    if not directory.best.is_dir():
        raise ValueError(
            f"{directory.path} has no best/ yet: finish the run with the command that began it, "
            f"or write one now with: python -m jaxft.export --run {directory.path} "
            f"--output {directory.best}"
        )
    source = directory.source()
    names = tuple(source["label names"])
    best = str(directory.best)
    architecture = load_architecture(best, num_labels=len(names))
    parallel = make_parallel("auto")
    params, _ = hf.read_params(
        best, architecture, key=jax.random.key(0),
        shardings=parallel.param_shardings(architecture.abstract, architecture.tensor_rules),
    )  # fmt: skip
    forward = functools.partial(architecture.apply, dtype=jnp.dtype(config.model.dtype))
    program = parallel.compile_eval(functools.partial(eval_step, forward=forward))
    hf_config = json.loads((directory.best / "config.json").read_text())
    limit = hf_config.get("max_position_embeddings", 0)
    encoder = Encoder(
        TASKS[config.task].inputs, best, hf_config, tuple(source["columns"]),
        config.data.max_length or limit, None,
    )  # fmt: skip
    return Inference(config, architecture, names, params, program, parallel, encoder)
