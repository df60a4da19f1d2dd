"""What a task is: everything that depends on what is being learned, as the rest of the code asks for it.

A task reads targets from a source, says what the loss of a batch is and which arrays an evaluation
returns, and turns these into metrics, rows, a part of the report, and the columns of predictions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from jaxft.analysis.view import View
from jaxft.data.files import Source
from jaxft.data.pairs import Pairing
from jaxft.data.targets import Targets, Unlabelled

Arrays = dict[str, jax.Array]
# What a pass over a split brings back: arrays [E, ...] of its E predictions, by example (see
# `Targets.offsets`). 'seen' [E] bool: whether the model could read it (a long text is cut).
Predicted = Mapping[str, np.ndarray]
# (what `predictions` gave of each window: arrays [W, ...]; offsets [e + 1]: the windows of example i are
# offsets[i]..offsets[i + 1]; targets, without any where rows are predicted) -> arrays by example, as of
# `kept`
Join = Callable[[Predicted, np.ndarray, Any], Predicted]
Own = TypeVar("Own", bound=Targets)  # the targets of one kind of task


@dataclasses.dataclass(frozen=True)
class Reading:
    """How targets are to be read.

    Attributes:
      names: of the model's outputs; None: this is the training data, whose own they are.
      order: names whose order is kept where the training data has the same ones.
      classes: keep only the examples of these classes; () keeps all.
      drop: leave out rows without a usable target rather than raise ValueError.
      advice: how the user can ask for that, for the message of this error.
    """

    names: tuple[str, ...] | None = None
    order: Sequence[str] = ()
    classes: Sequence[str] = ()
    drop: bool = False
    advice: str = ""


class Answer(Protocol):
    """What a model says of one row."""

    def cells(self) -> tuple[Any, ...]:
        """Its values for the columns of `Task.columns`."""
        ...


@runtime_checkable
class Configured(Protocol):
    """A task that depends on fields of the config.

    Attributes:
      settings: field -> the attribute that has its value.
    """

    @property
    def settings(self) -> Mapping[str, str]: ...


@runtime_checkable
class Varying(Protocol):
    """A task some of whose metrics only some data have."""

    def lacking(self, targets: Any) -> tuple[str, ...]:
        """Names in `METRICS` of those that an evaluation on these targets does not give."""
        ...


@runtime_checkable
class Writes(Protocol):
    """What a task also has whose models give texts: `answers` then finds them as 'written' [E]."""

    def text_scores(self, texts: Sequence[str], targets: Any) -> dict[str, Any]:
        """Metrics of texts that a model gave for some examples, as plain JSON."""
        ...


@runtime_checkable
class Contrastive(Protocol):
    """A task whose loss compares the examples of a batch with each other."""

    def embed(self, outputs: Arrays, batch: Arrays) -> jax.Array:
        """What is compared of each example: [R, K, ...] float32."""
        ...

    def contrast(self, embeddings: jax.Array, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """(sum of the weighted losses, sum of the weights) of all examples together.

        embeddings: [..., K, ...] as of `embed`. batch: 'weight' and, where there are such, 'labels' [..., K].
        """
        ...


@runtime_checkable
class Paired(Protocol):
    """A task that learns from pairs of training examples; `loss` is given batches of pairs."""

    def pairing(self, targets: Any) -> Pairing:
        """Those of the training examples.

        Raises:
          ValueError: there are none to learn from.
        """
        ...


@runtime_checkable
class HeadFitting(Protocol):
    """A task whose head is no part of what trains, but is fitted to all training rows.

    That is done with the weights as they are before each evaluation and each save, so that a checkpoint never
    has the head of others.
    """

    def features(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """What it is fitted to: as `Task.predictions`, with 'features' [..., D]."""
        ...

    def head_of(self, features: np.ndarray, targets: Any) -> dict[str, np.ndarray]:
        """Path -> float32 array, of features [N, D] of the training rows. Deterministic."""
        ...


@runtime_checkable
class Referring(Protocol):
    """A task that compares the model with what it was before the first step.

    Attributes:
      reference: of what `predictions` brings back the array that its targets are given of that model, by
        their `with_reference`.
    """

    @property
    def reference(self) -> str: ...


class Task(Protocol[Own]):
    """One kind of task.

    Attributes:
      inputs: a kind of `data/inputs.py`: the columns, the tokens, and the models it works with.
      head: kind of head (models/heads.py); None: the one with which a family classifies.
      problem_type: of the exported config.json; None: without.
      fewest_names: of the model's outputs.
      unused: config fields that have no meaning here and must be at their defaults.
      shown: metrics that the terminal shows while training; `headline`: those that `evaluate` does;
        `compared`: those that runs are compared by.
      view: what the report shows.
    """

    @property
    def inputs(self) -> str: ...
    @property
    def head(self) -> str | None: ...
    @property
    def problem_type(self) -> str | None: ...
    @property
    def fewest_names(self) -> int: ...
    @property
    def unused(self) -> tuple[str, ...]: ...
    @property
    def shown(self) -> tuple[str, ...]: ...
    @property
    def headline(self) -> tuple[str, ...]: ...
    @property
    def compared(self) -> tuple[str, ...]: ...
    @property
    def view(self) -> View: ...

    # From data

    def find_column(self, source: Source, given: str) -> str:
        """The column of the targets: as given, or found; '' where they are made of the inputs.

        Raises:
          ValueError: there is none, or one is given where it has no meaning.
        """
        ...

    def read(self, source: Source, column: str, inputs: Sequence[str], reading: Reading) -> Own:
        """The targets in `column` ('' as of `find_column`) of the rows that have one.

        inputs: the input columns.

        Raises:
          ValueError: a target is missing or none of the task's, naming the first row and how many.
        """
        ...

    # While a step is traced

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """(sum of the weighted losses of a batch, sum of the weights), float32 scalars."""
        ...

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """What an evaluation brings back of a batch: arrays as small as the metrics allow.

        'index' [...] int32 is the source's row of each prediction, -1 for none; 'item' [...] its
        number within the example, where there are several (the batch's 'window', of one that is read
        in several); the others are [..., *].
        """
        ...

    # Of a whole split

    @property
    def join(self) -> Join | None:
        """Where an example is read in several windows, how what `predictions` gave of them becomes what
        is kept of the example; `kept` is not asked then. None: it is read as a whole."""
        ...

    def kept(self, targets: Own, found: Mapping[str, np.ndarray], places: np.ndarray) -> Predicted:
        """What `scores` and `rows` need of a batch: arrays [k, ...] of a few bytes for each prediction.

        found: what `predictions` gave [k, ...], without 'index' and 'item'.
        places: [k] of each prediction among all those of the split.
        """
        ...

    def scores(self, predicted: Predicted, targets: Own) -> tuple[dict[str, Any], dict[str, Any]]:
        """(metrics, details) of what was `kept`, as plain JSON; details have files of their own.

        Raises:
          FloatingPointError: predictions that are not finite.
        """
        ...

    def rows(
        self, predicted: Predicted, targets: Own, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Rows of predictions/*.jsonl, one an example, of what was `kept` of some.

        inputs: [n], what to show of each.
        """
        ...

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        """What in the metrics is probably not meant, one line each."""
        ...

    # Of rows without targets

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        """What `predict` adds: column -> 'text', 'whole', 'number', 'numbers' (a list of them) or 'nested';
        'predicted' first."""
        ...

    def is_output(self, row: Mapping[str, Any]) -> bool:
        """Whether a file with this first row is an output of `predict` for such a task.

        Only such a file is written over. Its columns are in order; of CSV its values are texts.
        """
        ...

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Answer]:
        """One a row that was given."""
        ...

    # In a checkpoint

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        """Of the exported config.json: one entry an output of the head."""
        ...

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this config.json is one of such a task, by all it says."""
        ...

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of its outputs. ValueError: they are not usable."""
        ...


# Fields of config.train that change the loss of the tasks that are `Shaped`, and of no others.
LOSS_OPTIONS = ("train.class_weights", "train.focal_gamma", "train.r_drop")


@runtime_checkable
class Shaped(Protocol):
    """A task whose loss takes `LOSS_OPTIONS`; its targets can be `weighted`."""

    def disagreement(self, first: Arrays, second: Arrays, batch: Arrays) -> jax.Array:
        """How far the outputs of two passes over a batch are apart: the weighted sum, float32 scalar."""
        ...


@runtime_checkable
class Distils(Protocol):
    """A task whose models can learn from the outputs of another, which do not depend on its tokens."""

    def logits(self, outputs: Arrays, batch: Arrays) -> Arrays:
        """What is kept of a teacher: as `predictions`, but 'logits' [..., C] float32 of each."""
        ...

    def distance(self, outputs: Arrays, batch: Arrays, temperature: float) -> jax.Array:
        """[...] float32: how far each prediction is from the batch's 'teacher' [..., C]; 0: not at all."""
        ...


@runtime_checkable
class Fits(Protocol):
    """A task of which some numbers are fitted on the evaluation data and then used on other data."""

    def fits(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """These numbers, of the metrics of the evaluation data, as plain JSON: what an export keeps."""
        ...

    def fitted(self, found: Mapping[str, Any], names: Sequence[str]) -> Any:
        """The task that uses them; `found` may be anything that a JSON object can be.

        names: of the outputs.
        """
        ...


@runtime_checkable
class Calibrates(Protocol):
    """A task whose probabilities can be those of a temperature that was fitted (see `Fits`)."""

    def calibrated(self) -> Any:
        """The task whose `answers` have them."""
        ...


def fitted(task: Task[Any], found: Mapping[str, Any], names: Sequence[str]) -> Task[Any]:
    """The task with what was fitted for it, if anything is; see `Fits.fitted`."""
    return task.fitted(found, names) if isinstance(task, Fits) else task


def fits(task: Task[Any], metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """See `Fits.fits`; {} where nothing is fitted."""
    return task.fits(metrics or {}) if isinstance(task, Fits) else {}
