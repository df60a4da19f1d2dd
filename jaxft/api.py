"""For notebooks and scripts: `from jaxft import train, evaluate, load`.

    result = train("configs/text_classification.py", "runs/mine",
                   {"model.path": "DIR_OR_HUB_ID", "data.train": "my.csv"})
    result.metrics["accuracy"]
    load("runs/mine").predict(["a fine day", "cold and dark"])

A mistake is a ValueError with the line that the command would print.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxft.config import ConfigDict, override
from jaxft.config_check import validate
from jaxft.data import files
from jaxft.data.handed import as_columns, as_list
from jaxft.data.memory import from_memory
from jaxft.data.stream import is_stream
from jaxft.data.targets import Unlabelled
from jaxft.experiment import processes
from jaxft.experiment.directory import RunDirectory
from jaxft.experiment.generating import continuations
from jaxft.experiment.inference import Inference, load_inference
from jaxft.experiment.lifecycle import carry_out
from jaxft.experiment.measure import measure
from jaxft.experiment.opening import MEMORY
from jaxft.experiment.split import Split
from jaxft.experiment.stored_run import place_given
from jaxft.experiment.timing import Stopwatch
from jaxft.generation.sampling import Sampling
from jaxft.tasks.classification import Prediction as Prediction  # what `predict` gives of classes
from jaxft.tasks.contract import Predicted
from jaxft.terminal import config_file

_OF_ANY_WIDTH = (
    "choices",
    "conversation",
    "preference",
    "texts",
)  # kinds whose inputs may have any columns


class Model:
    """A fine-tuned model that takes inputs from memory. Made by `load`.

    Attributes:
      labels: names of its outputs, by number; () where they are numbers.
      inputs: 'text', 'words', 'question', 'choices' or 'image'.
    """

    def __init__(self, inference: Inference):
        self._inference = inference
        self.labels = inference.names
        self.inputs = inference.encoder.inputs

    def __repr__(self) -> str:
        outputs = ", ".join(self.labels[:5]) or self._inference.config.task
        return f"<jaxft model: {self.inputs} -> {outputs}" + (
            f", … ({len(self.labels)} labels)>" if len(self.labels) > 5 else ">"
        )

    def logits(self, inputs: Iterable[Any]) -> np.ndarray:
        """What the model's head gives for each input: of classes, the scores before the softmax.

        Args:
          inputs: texts; pairs of texts (tuples or lists of two; of a question and its context, or of a
            text and a list of choices); words (a list of them each, or a text that is cut at white space);
            or images: paths, Pillow images, or uint8 arrays [H, W] or [H, W, C].

        Returns:
          [N, C] float32, in the order of the inputs and of `labels`.

        Raises:
          ValueError: an input that is none, naming its number; a model without outputs of whole
            inputs.
        """
        given = as_list(inputs)
        if not given:
            return np.zeros((0, self._inference.architecture.num_labels), np.float32)
        predicted, _ = self._predicted(given)
        if "logits" not in predicted:
            raise ValueError(f"a model of {self._inference.config.task} has no logits of an input")
        return predicted["logits"]

    def predict(self, inputs: Iterable[Any]) -> list[Any]:
        """What the model says of each input; arguments as of `logits`.

        Returns:
          One object an input: of classes a `tasks.classification.Prediction` with the label and the
          probabilities; of other tasks see the `answers` of their file in `jaxft.tasks`.
        """
        given = as_list(inputs)
        if not given:
            return []
        predicted, rows = self._predicted(given)
        return list(self._inference.task.answers(predicted, rows, self.labels))

    def generate(
        self, prompts: Iterable[str], *, max_new_tokens: int = 128, temperature: float = 0.0,
        top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (), seed: int = 0,
    ) -> list[str]:  # fmt: skip
        """The texts with which a decoder goes on, one a prompt, each without the prompt.

        A text ends before the checkpoint's ending token, before a stop string, or after `max_new_tokens`.
        A bridged decoder has no cache: each token takes a pass over the whole text so far.

        Args:
          temperature, top_k, top_p, min_p, repetition_penalty, seed: see `generation.sampling.Sampling`;
            the defaults give the likeliest token.

        Raises:
          ValueError: prompts that are no list of texts, one that is too long, a setting that cannot be, or
            a model that does not predict the next token.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        ends = (stop,) if isinstance(stop, str) else stop
        return continuations(
            self._inference, as_list(prompts), sampling, max_new_tokens=max_new_tokens, stop=ends
        )

    def _predicted(self, given: Sequence[Any]) -> tuple[Predicted, Unlabelled]:
        columns = as_columns(self.inputs, given)
        expected = len(self._inference.encoder.columns)
        if expected and len(columns) != expected and self.inputs not in _OF_ANY_WIDTH:
            what = "pairs of texts" if expected == 2 else "single texts"
            raise ValueError(f"the model was trained on {what}")
        # The names of the run's own columns mean nothing here: the order counts.
        encoder = dataclasses.replace(self._inference.encoder, columns=tuple(columns))
        model = dataclasses.replace(self._inference, encoder=encoder)
        source = files.table("inputs", columns)
        rows = encoder.kind.unlabelled(source, encoder.columns)
        return model.predict(Split(source, rows)), rows


def load(run_or_checkpoint: str | Path, *, calibrated: bool = False) -> Model:
    """The best model of a finished run, or a checkpoint in Hugging Face format with a classifier.

    run_or_checkpoint: a directory, or the address of one in a store.
    calibrated: probabilities are at the temperature that was fitted on evaluation data.

    Raises:
      ValueError: neither of the two, a run that has not finished, or files that are damaged.
    """
    inference = load_inference(place_given(run_or_checkpoint))
    return Model(inference.calibrated() if calibrated else inference)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
      directory: of the run.
      best: its best checkpoint, in Hugging Face format.
      report: its page.
      summary: summary.json: sizes, steps, seconds, versions, and the metrics below.
      eval, test: metrics of the best checkpoint on these splits; test is {} where there is none.
    """

    directory: Path
    best: Path
    report: Path
    summary: dict[str, Any] = dataclasses.field(repr=False)
    eval: dict[str, Any] = dataclasses.field(repr=False)
    test: dict[str, Any] = dataclasses.field(repr=False)

    @property
    def metrics(self) -> dict[str, Any]:
        """On the test data or, without any, on the evaluation data that the checkpoint was chosen on."""
        return self.test or self.eval

    def load(self) -> Model:
        """The best model, ready to predict."""
        return load(self.directory)


def train(
    config: ConfigDict | str | Path,
    workdir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
) -> Trained:
    """Start or continue the run in `workdir`; a finished one is only read.

    Args:
      config: a config, or the path of a config file (`FILE` or `FILE:arg`).
      workdir: directory of the run; created, or continued if it holds this run.
      overrides: values by field, dotted or nested: {'optim.lr': 1e-4}.
      data: training data that is in memory, in place of `data.train`: a list of dicts, a dict of columns,
        a pandas DataFrame, a pyarrow Table, or a Dataset of Hugging Face; or {'train': …, 'eval': …,
        'test': …} of these. With `data.stream` an IterableDataset, to train on. A run that is continued is
        given the same again.

    Raises:
      ValueError: what the command would say in one line.
      OSError: `workdir` cannot be written, or another process holds it.
      FloatingPointError: a loss that is not finite.
      KeyboardInterrupt: Ctrl-C, after saving: the same call continues. Any other signal that
        stops a run is raised again, too, when all is saved.
    """
    clock, given = Stopwatch(), _sources(data)
    resolved = _overridden(config, overrides)
    for name in given:
        if resolved.data[name]:
            raise ValueError(f"data= and config.data.{name}={resolved.data[name]!r} are both given")
        resolved.data[name] = MEMORY + name
    validate(resolved)
    directory = RunDirectory(Path(workdir).expanduser())
    with ExitStack() as held:
        if processes.is_lead():
            held.enter_context(directory.claimed())
        status = carry_out(resolved, directory, clock, given=given)
    if status:
        signal.raise_signal(status - 128)
        raise InterruptedError(f"stopped by a signal; the same call continues {directory.path}")
    return read_result(directory)


def evaluate(
    run: str | Path,
    data: Any = None,
    *,
    text: Sequence[str] = (),
    label: str = "",
) -> dict[str, Any]:
    """Metrics of a finished run, or of a checkpoint, on labelled data.

    Args:
      run: run directory, or a checkpoint with a classifier; or the address of one in a store.
      data: as `--data`, or data in memory as of `train`; None: the run's own test data, else its
        evaluation data.
      text: input columns; empty: the run's own, else found by their usual names.
      label: label column; '' likewise.

    Returns:
      What `--output` writes: see `jaxft.experiment.evaluation.Evaluation`.

    Raises:
      ValueError: what the command would say in one line.
    """
    model = load_inference(place_given(run))
    columns = (text,) if isinstance(text, str) else tuple(text)
    named = data is None or isinstance(data, str | Path)
    spec = str(data or "") if named else from_memory("data", data)
    return measure(model, spec, columns, label).result.to_json()


def _sources(data: Any) -> dict[str, Any]:
    """'train', and what else there is, of `data` of `train`."""
    if data is None:
        return {}
    names = {"train": "train", "eval": "eval", "validation": "eval", "test": "test"}
    if not (isinstance(data, Mapping) and data and all(name in names for name in data)):
        return {"train": _source("data", data)}
    return {names[name]: _source(f"data[{name!r}]", part) for name, part in data.items()}


def _source(name: str, data: Any) -> Any:
    """As rows at random, or a stream as it is."""
    return data if is_stream(data) else from_memory(name, data)


def read_result(directory: RunDirectory) -> Trained:
    """The result of the finished run in a directory."""
    summary = directory.read_json("summary.json")
    return Trained(
        directory.path, directory.best, directory.path / "report.html", summary,
        summary.get("eval") or {}, summary.get("test") or {},
    )  # fmt: skip


def make_config(
    config: ConfigDict | str | Path, overrides: Mapping[str, Any] | None = None
) -> ConfigDict:
    """A config, or that of a file (`FILE` or `FILE:arg`), with fields replaced.

    Args:
      overrides: values by field, dotted or nested: {'optim.lr': 1e-4} or {'optim': {'lr': 1e-4}}.

    Raises:
      ValueError: a field that does not exist, or a value that it cannot have.
    """
    result = _overridden(config, overrides)
    validate(result)
    return result


def _overridden(config: ConfigDict | str | Path, overrides: Mapping[str, Any] | None) -> ConfigDict:
    """The same, not yet validated."""
    if isinstance(config, str | Path):
        config = config_file.load(str(config))
    elif not isinstance(config, ConfigDict):
        raise ValueError(
            f"a config is a ConfigDict or the path of a config file, not {config!r:.40}"
        )
    result = override(config, overrides or {})
    if result.train.steps is not None:  # steps where only the file has both
        result.train.epochs = None
    return result


def make_callable(module: str, function: Callable[..., Any]) -> None:
    """Let the module of a command be called: `jaxft.train` is both, whoever imports it first."""
    own = {"__call__": staticmethod(function), "__doc__": function.__doc__}
    sys.modules[module].__class__ = type("Command", (ModuleType,), own)
