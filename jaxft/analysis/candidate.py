"""What is measured of one checkpoint by its probes."""

from __future__ import annotations

import dataclasses

from jaxft.analysis.signal import Signal


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over folds and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.error:.4f}"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One checkpoint.

    Attributes:
      name: as it was given.
      note: which implementation it has.
      parameters: how many the model has.
      flops: of the forward pass an example, with padding; None: the compiler does not say.
      peak_bytes: of one batch, by the compiler, parameters included; None likewise.
      seconds: for reading, compiling, the passes and the scores.
      probe: of the last block, in `Selection.metric`.
      logme, h_score: of the last block; the latter None for numbers.
      blocks: the cheap probe of each block, in `Selection.block_metric`.
      gradients: the signal of each block's gradient, None of one without any; (): not computed.
      weights: of each block the mean of `signal.spectral_ratio` over its matrices, None of one without
        any that it takes.
    """

    name: str
    note: str
    parameters: int
    flops: float | None
    peak_bytes: int | None
    seconds: float
    probe: Estimate
    logme: float
    h_score: float | None
    blocks: tuple[Estimate, ...]
    gradients: tuple[Signal | None, ...]
    weights: tuple[float | None, ...]

    @property
    def best_block(self) -> Estimate:
        """The block that the probe reads most from; the first of equal ones."""
        return max(self.blocks, key=lambda block: block.mean)


@dataclasses.dataclass(frozen=True)
class Unranked:
    """A checkpoint that could not be measured, and why, in one line."""

    name: str
    why: str
