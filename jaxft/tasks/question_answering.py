"""Extractive question answering: an answer's first and last token in a context, as in SQuAD.

A long context is read in several windows, whose best spans are joined. The loss and the choice of spans
are those of transformers' recipe for the task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis import answers as analysis
from jaxft.analysis.view import View
from jaxft.data.answers import Answers, find_answer_column, read_answers
from jaxft.data.files import Source
from jaxft.data.targets import Unlabelled
from jaxft.tasks.contract import Arrays, Join, Predicted, Reading

# Of each window so many first tokens are tried with as many last ones, as in the recipe.
_BEST = 20
_NEVER = -1e30  # what a score that does not count is; finite, as the difference of two must be
_WINDOWS = 4096  # joined at a time
_THRESHOLD = "null_threshold"


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What a model says of one question.

    Attributes:
      text: the answer, exactly as in the context; '' where there is none.
      start: the character of the context at which it begins; None where there is none.
      probability: of the best span among all that were tried, and none.
      no_answer: how far the score of no answer is above that of the best span.
    """

    text: str
    start: int | None
    probability: float
    no_answer: float

    def cells(self) -> tuple[Any, ...]:
        return self.text, self.start, round(self.probability, 6), round(self.no_answer, 6)


@dataclasses.dataclass(frozen=True)
class QuestionAnswering:
    """A task (see contract.py) that keeps of each question its best span and the score of none.

    'begin', 'end' [n] int32 count characters of the context; 'score' and 'null' [n] float32 are sums of
    two logits; 'probability' [n]; 'loss' [n], where there are targets, is the sum over the 'windows' [n].

    Attributes:
      longest: tokens that an answer may have.
      threshold: of `Extracted.no_answer`, above which the answer is that there is none. None: the best on
        the data that is evaluated, if some of it has no answer; else there always is one.
    """

    inputs: str = "question"
    head: str | None = "question"
    problem_type: str | None = None
    fewest_names: int = 0
    unused: tuple[str, ...] = ("data.classes", "data.examples_per_class", "train.label_smoothing")
    shown: tuple[str, ...] = ("loss", "exact_match", "f1")
    headline: tuple[str, ...] = (
        "loss", "exact_match", "f1", "has_answer_exact_match", "has_answer_f1", "no_answer_accuracy",
    )  # fmt: skip
    compared: tuple[str, ...] = ("f1", "exact_match", "loss")
    settings: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"eval.max_answer_length": "longest"}
    )
    longest: int = 30
    threshold: float | None = None

    @property
    def view(self) -> View:
        return analysis.VIEW

    def find_column(self, source: Source, given: str) -> str:
        return find_answer_column(source, given)

    def read(self, source: Source, column: str, inputs: Sequence[str], reading: Reading) -> Answers:
        return read_answers(source, column, inputs[1], drop_bad=reading.drop, advice=reading.advice)

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over windows; of each the mean of two cross-entropies over its own tokens.

        outputs: 'logits' [R, L, 2]. batch: 'first', 'last', 'weight' [R, K].
        """
        losses = _losses(outputs, batch)
        return jnp.sum(losses * batch["weight"]), jnp.sum(batch["weight"])

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        logits = outputs["logits"].astype(jnp.float32)
        readable = _own(batch) & (batch["begins"] >= 0)[:, None, :]
        none = jnp.take_along_axis(logits.sum(-1), batch["starts"], axis=1)
        found = {"index": batch["index"], "item": batch["window"], "null": none}
        for i, side in enumerate(("begin", "end")):
            of_tokens = {"token": batch["positions"], "character": batch[f"{side}s"]}
            best = _best(logits[..., i], readable, of_tokens)
            found |= {f"{side}_{name}": array for name, array in best.items()}
        return found | ({"loss": _losses(outputs, batch)} if "first" in batch else {})

    @property
    def join(self) -> Join | None:
        return self._joined

    def _joined(self, found: Predicted, windows: np.ndarray, targets: Any) -> Predicted:
        """Each question's best span over its windows, and the least score of none."""
        spans = [self._spans(found, start) for start in range(0, int(windows[-1]), _WINDOWS)]
        of_window = {name: np.concatenate([part[name] for part in spans]) for name in spans[0]}
        score, first = of_window["score"], windows[:-1]
        example = np.repeat(np.arange(len(first)), np.diff(windows))
        best = np.maximum.reduceat(score, first)
        # Of equal ones the first, as a stable sort has it.
        among = np.flatnonzero(score == best[example])
        place = among[np.unique(example[among], return_index=True)[1]]
        null = np.minimum.reduceat(found["null"], first)
        every = np.logaddexp(np.logaddexp.reduceat(of_window["every"], first), null)
        joined = {
            "begin": of_window["begin"][place],
            "end": of_window["end"][place],
            "score": best,
            "null": null,
            "probability": np.exp(best - every),
            "windows": np.diff(windows),
        }
        if "loss" in found:
            joined["loss"] = np.add.reduceat(found["loss"].astype(np.float64), first)
        return joined

    def _spans(self, found: Predicted, start: int) -> dict[str, np.ndarray]:
        """Of some windows [w] the best span, and 'every': the logarithm of the sum over all of them."""
        some = slice(start, start + _WINDOWS)
        begin, end = (
            {name: found[f"{side}_{name}"][some] for name in ("score", "token", "character")}
            for side in ("begin", "end")
        )
        length = end["token"][:, None, :] - begin["token"][:, :, None] + 1
        count = (begin["score"] > _NEVER / 2)[:, :, None] & (end["score"] > _NEVER / 2)[:, None, :]
        count &= (length > 0) & (length <= self.longest)
        scores = begin["score"][:, :, None] + end["score"][:, None, :]
        flat = np.where(count, scores, 2 * _NEVER).reshape(len(scores), -1)
        best = flat.argmax(1)
        rows, width = np.arange(len(flat)), end["score"].shape[1]
        score = flat[rows, best]
        real = score > _NEVER
        every = score + np.log(np.exp(flat - score[:, None]).sum(1))
        return {
            "score": np.where(real, score, _NEVER).astype(np.float32),
            "begin": np.where(real, begin["character"][rows, best // width], 0),
            "end": np.where(real, end["character"][rows, best % width], 0),
            "every": np.where(real, every, _NEVER),
        }

    def kept(
        self, targets: Answers, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """All of it; see `join`."""
        return found

    def lacking(self, targets: Answers) -> tuple[str, ...]:
        of_answered = "has_answer_f1", "has_answer_exact_match"
        if targets.answered.all():
            return (*of_answered, "no_answer_accuracy")
        return () if targets.answered.any() else of_answered

    def scores(
        self, predicted: Predicted, targets: Answers
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """'loss' (mean over windows) and what `answer_metrics` gives, with 'examples' and 'windows'; there
        are no details. 'null_threshold' is what was taken for `threshold`."""
        if not np.isfinite(predicted["loss"]).all():
            broken = int((~np.isfinite(predicted["loss"])).sum())
            raise FloatingPointError(
                f"the loss of {broken} of {len(targets)} questions is not finite"
            )
        texts = (text for text, _ in _texts(predicted, targets.contexts))
        grades, margin = analysis.graded(texts, targets.texts), _margin(predicted)
        threshold = self.threshold
        if threshold is None and not targets.answered.all():
            threshold = analysis.best_threshold(margin, grades)
        none = margin > (np.inf if threshold is None else threshold)
        metrics = {
            "loss": float(predicted["loss"].sum() / predicted["windows"].sum()),
            **analysis.answer_metrics(grades, none, targets.answered),
            "examples": len(targets),
            "windows": int(predicted["windows"].sum()),
        }
        return metrics | ({} if threshold is None else {_THRESHOLD: threshold}), {}

    def fits(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """'null_threshold', where some evaluation data has no answer."""
        return {_THRESHOLD: metrics[_THRESHOLD]} if _THRESHOLD in metrics else {}

    def fitted(self, found: Mapping[str, Any], names: Sequence[str]) -> QuestionAnswering:
        value = found.get(_THRESHOLD)
        if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
            return self
        return dataclasses.replace(self, threshold=float(value))

    def rows(
        self, predicted: Predicted, targets: Answers, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One a question, with its answers, what was found and how good that is."""
        rows = []
        found = self._found(predicted, targets.contexts)
        for j, (one, answers) in enumerate(zip(found, targets.texts, strict=True)):
            exact, f1 = analysis.exact_and_f1(one.text, answers)
            rows.append(
                {
                    "index": int(targets.rows[j]),
                    "question": inputs[j],
                    "answers": list(answers),
                    "predicted": one.text,
                    "start": one.start,
                    "exact_match": exact,
                    "f1": f1,
                    "probability": one.probability,
                    "no_answer": one.no_answer,
                }
            )
        return rows

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return analysis.warnings_of(metrics)

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        """The answer, the character at which it begins, its probability, and the margin of none."""
        return {
            "predicted": "text", "start": "whole", "probability": "number", "no_answer": "number"
        }  # fmt: skip

    def is_output(self, row: Mapping[str, Any]) -> bool:
        names, last = list(self.columns(())), list(row)[-4:]
        prefix = last[0].removesuffix(names[0]) if last else ""
        return last == [f"{prefix}{name}" for name in names]

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Extracted]:
        assert given.contexts is not None
        return self._found(predicted, given.contexts)

    def _found(self, predicted: Predicted, contexts: Iterable[str]) -> Iterator[Extracted]:
        threshold = np.inf if self.threshold is None else self.threshold
        margins, probabilities = _margin(predicted).tolist(), predicted["probability"].tolist()
        for (text, start), margin, probability in zip(
            _texts(predicted, contexts), margins, probabilities, strict=True
        ):
            none = margin > threshold or not text
            yield Extracted("" if none else text, None if none else start, probability, margin)

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        """The two outputs under the names that transformers gives them."""
        return {0: "LABEL_0", 1: "LABEL_1"}

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        heads = [str(name) for name in hf_config.get("architectures") or ()]
        return any(name.endswith("ForQuestionAnswering") for name in heads)

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        """None: what the outputs are is fixed."""
        return ()


def _own(batch: Arrays) -> jax.Array:
    """[R, K, L] bool: the tokens of each slot."""
    slots = jnp.arange(1, batch["starts"].shape[1] + 1, dtype=batch["segment_ids"].dtype)
    return batch["segment_ids"][:, None, :] == slots[:, None]


def _losses(outputs: Arrays, batch: Arrays) -> jax.Array:
    """[R, K]: the mean of the cross-entropies of the first and of the last token; any of empty slots."""
    logits, own = outputs["logits"].astype(jnp.float32), _own(batch)
    total = jnp.zeros(batch["starts"].shape)
    for i, name in enumerate(("first", "last")):
        every = jax.nn.logsumexp(jnp.where(own, logits[:, None, :, i], _NEVER), axis=-1)
        total += every - jnp.take_along_axis(logits[..., i], batch[name], axis=1)
    return total / 2


def _best(logits: jax.Array, readable: jax.Array, of_tokens: Arrays) -> Arrays:
    """'score': the highest logits [R, L] of each slot, [R, K, n], with what is known of their tokens."""
    count = min(_BEST, logits.shape[1])
    scores, places = jax.lax.top_k(jnp.where(readable, logits[:, None], _NEVER), count)
    found = {
        name: jnp.take_along_axis(array[:, None], places, axis=2)
        for name, array in of_tokens.items()
    }
    return {"score": scores, **found}


def _margin(predicted: Predicted) -> np.ndarray:
    """[n] float64: see `Extracted.no_answer`."""
    return predicted["null"].astype(np.float64) - predicted["score"].astype(np.float64)


def _texts(predicted: Predicted, contexts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """The best span of each context without blanks around it (some tokens begin with one), and where it
    begins."""
    pairs = zip(predicted["begin"].tolist(), predicted["end"].tolist(), strict=True)
    for (begin, end), context in zip(pairs, contexts, strict=True):
        text = context[begin:end]
        stripped = text.strip()
        yield stripped, begin + (len(text) - len(text.lstrip()) if stripped else 0)
