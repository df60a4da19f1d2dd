"""Texts that a model gives for others: a program beside the evaluation's, and texts of its tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis.written import require_libraries
from jaxft.config import ConfigDict
from jaxft.data.decoder_tokens import around
from jaxft.data.tokenizer import load_tokenizer
from jaxft.experiment.encoder import Encoder
from jaxft.experiment.evaluation import predict
from jaxft.experiment.split import Split
from jaxft.experiment.steps import slicing
from jaxft.generation.encoder_decoder import generate
from jaxft.generation.rereading import check_rereads
from jaxft.generation.search import Beams, Ending
from jaxft.models import Architecture, Pass, TextLimits
from jaxft.tasks.contract import Arrays, Task, Writes
from jaxft.training.parallel import Parallel
from jaxft.training.programs import Programs
from jaxft.training.step import eval_step


@dataclasses.dataclass(frozen=True)
class Writer:
    """What a model gives for texts.

    Attributes:
      end: the token that ends a text; None: each has as many as the longest.
      rows: of an evaluation that are written, evenly chosen among them.
      plain: makes the tree by path of what it is given.
    """

    program: Programs
    config: ConfigDict
    encoder: Encoder
    parallel: Parallel
    end: int | None
    rows: int
    plain: Callable[[Any], Any] = lambda params: params

    def chosen(self, count: int) -> np.ndarray:
        """Positions of the rows of an evaluation of `count` that are written."""
        return np.unique(np.linspace(0, count - 1, min(self.rows, count)).round().astype(np.int64))

    def texts(self, params: Any, split: Split) -> np.ndarray:
        """One for each example of a split [n], of which the targets are not looked at.

        Every process runs this and every process gets everything.
        """
        batches = self.encoder.unanswered(split, self.config, slicing(self.parallel))
        found = predict(
            self.program, self.plain(params), batches, self.parallel, batches.targets,
            threads=self.config.data.workers,
        )  # fmt: skip
        tokenizer = load_tokenizer(self.encoder.directory)
        # Not by the tokenizer's special tokens alone: padding need not be one of them.
        own = [
            tokens[: tokens.index(self.end)] if self.end in tokens else tokens
            for tokens in found["written"].tolist()
        ]
        return np.array(tokenizer.decode_batch(own, skip_special_tokens=True), object)


def make_writer(
    architecture: Architecture,
    task: Task[Any],
    encoder: Encoder,
    config: ConfigDict,
    parallel: Parallel,
) -> Writer | None:
    """The writer of a run or checkpoint; None where the task's models give no texts.

    Raises:
      ValueError: texts are to be scored, and what scores them is not installed, or the model cannot
        write them.
    """
    if not isinstance(task, Writes):
        return None
    if config.eval.generate:
        require_libraries()
        check_rereads(architecture)
    beams = None
    if config.eval.beams > 1:
        beams = Beams(config.eval.beams, config.eval.length_penalty, config.eval.early_stopping)
    assert isinstance(architecture.limits, TextLimits)
    most = min(config.data.max_target_length, architecture.limits.positions)
    tokens = around(encoder.directory)
    ending = Ending(most, tokens.end, tokens.pad, tokens.first, tokens.last, tokens.never)
    how = Pass(dtype=jnp.dtype(config.model.dtype))

    def forward(params: Any, batch: Arrays, key: jax.Array | None) -> Arrays:
        found = generate(architecture, params, batch, tokens.start, ending, beams, how)
        return {"written": found}

    step = functools.partial(
        eval_step,
        forward=forward,
        predictions=lambda outputs, batch: {
            "index": batch["index"],
            "written": outputs["written"][:, None],
        },
        axis_name=parallel.axis_name,
    )
    program = parallel.compile_eval(step)
    return Writer(program, config, encoder, parallel, ending.end, config.eval.generate)
