"""Preference tuning without a reward model: DPO, its length-normalised form, and IPO.

Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7); with the mean of the
tokens' log-probabilities in place of their sum (Lambert et al. 2024, arXiv:2411.15124, section 5.1.2); and
identity preference optimisation (Azar et al. 2023, arXiv:2310.12036, equation 17). Label smoothing of DPO is
that of Mitchell (2023), for labels that are wrong so often. What the model says before the first step is
computed then, so that one model is in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis import preference as analysis
from jaxft.analysis.view import View
from jaxft.data.files import Source
from jaxft.data.preferences import Preferences, read_preferences
from jaxft.data.targets import Unlabelled
from jaxft.tasks.contract import Arrays, Predicted, Reading
from jaxft.tasks.token_losses import by_text, loss_sum, next_tokens, statistics

LOSSES = ("dpo", "dpo_norm", "ipo")
_COLUMNS = {"log_probability_chosen": "number", "log_probability_rejected": "number"}


@dataclasses.dataclass(frozen=True)
class Compared:
    """What a model says of two answers: the log-probability of each, the sum over its tokens."""

    chosen: float
    rejected: float

    def cells(self) -> tuple[float, float]:
        return self.chosen, self.rejected


@dataclasses.dataclass(frozen=True)
class Preference:
    """A task (see contract.py) with 'log_probability', 'tokens' [E, 2] of the answers of each pair and,
    where it is known, 'reference' [E, 2] float32.

    Attributes:
      form: one of LOSSES.
      beta: how little the model may move away from what it was; of 'ipo' half the inverse of the margin
        that is aimed at.
    """

    form: str = "dpo"
    beta: float = 0.1
    inputs: str = "preference"
    head: str | None = "causal"
    problem_type: str | None = None
    fewest_names: int = 0
    unused: tuple[str, ...] = ("data.label", "data.classes", "data.examples_per_class")
    shown: tuple[str, ...] = ("loss", "accuracy", "margin")
    headline: tuple[str, ...] = ("loss", "accuracy", "margin")
    compared: tuple[str, ...] = ("accuracy", "margin", "loss")
    join: None = None
    reference: str = "log_probability"  # see `Referring`

    @property
    def settings(self) -> Mapping[str, str]:
        return {"train.preference_loss": "form", "train.beta": "beta"}

    @property
    def view(self) -> View:
        return analysis.VIEW

    def find_column(self, source: Source, given: str) -> str:
        if given:
            raise ValueError(
                f"{source.name}: preferences have no label column, got {given!r}; name prompt, preferred and "
                "other answer by config.data.text"
            )
        return ""

    def read(
        self, source: Source, column: str, inputs: Sequence[str], reading: Reading
    ) -> Preferences:
        return read_preferences(source, inputs, drop_bad=reading.drop, advice=reading.advice)

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over pairs. outputs: see `token_losses.loss_sum`. batch: 'reference' [R, K, 2].

        The gradient is taken in two steps, as no logits are kept: that of the loss by each answer's
        log-probability first, by which its tokens are then weighed.
        """
        labels, weight = next_tokens(batch)
        found = self._read(jax.lax.stop_gradient(outputs), batch, labels, weight)
        own = batch["weight"]

        def total(log_probability: jax.Array) -> jax.Array:
            losses = self.losses(
                log_probability, batch["reference"], found["tokens"], label_smoothing
            )
            return jnp.sum(jnp.where(own > 0, losses, 0) * own)

        value, slopes = jax.value_and_grad(total)(found["log_probability"])
        # Of each token's negative log-likelihood, whose sum is the log-probability but for the sign.
        slopes = jnp.pad(-slopes.reshape(len(slopes), -1), ((0, 0), (1, 0)))
        by_token = jnp.take_along_axis(slopes, batch["segment_ids"], axis=1) * weight
        moved = loss_sum(outputs, labels, jnp.maximum(by_token, 0))
        moved -= loss_sum(outputs, labels, jnp.maximum(-by_token, 0))
        return value + moved - jax.lax.stop_gradient(moved), jnp.sum(own)

    def losses(
        self, log_probability: Any, reference: Any, tokens: Any, label_smoothing: float = 0.0
    ) -> jax.Array:
        """[..., 2] each, of the preferred and the other answer -> the loss of each pair [...]."""
        rewards = self.rewards(log_probability, reference, tokens)
        margin = rewards[..., 0] - rewards[..., 1]
        if self.form == "ipo":
            return (margin / self.beta - 1 / (2 * self.beta)) ** 2
        wrong = label_smoothing
        return -(1 - wrong) * jax.nn.log_sigmoid(margin) - wrong * jax.nn.log_sigmoid(-margin)

    def rewards(self, log_probability: Any, reference: Any, tokens: Any) -> Any:
        """beta times how much likelier an answer became, [..., 2]; but for 'dpo' by its mean token."""
        gained = self.beta * (log_probability - reference)
        return gained if self.form == "dpo" else gained / jnp.maximum(tokens, 1)

    def _read(self, outputs: Arrays, batch: Arrays, labels: jax.Array, weight: jax.Array) -> Arrays:
        """'log_probability' and 'tokens' [R, K, 2] of the answers of each pair."""
        losses, _ = statistics(outputs, labels, weight)
        shape = (*batch["index"].shape, 2)
        return {
            "log_probability": -by_text(losses, batch).reshape(shape),
            "tokens": by_text(weight, batch).reshape(shape),
        }

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        known = {"reference": batch["reference"]} if "reference" in batch else {}
        return {
            "index": batch["index"],
            **self._read(outputs, batch, *next_tokens(batch)),
            **known,
        }

    def kept(
        self, targets: Preferences, found: Mapping[str, np.ndarray], places: np.ndarray
    ) -> Predicted:
        """All of it."""
        return found

    def _compared(self, predicted: Predicted) -> tuple[np.ndarray, np.ndarray]:
        """(losses [E], rewards [E, 2])"""
        own, reference, tokens = (
            predicted[name] for name in ("log_probability", "reference", "tokens")
        )
        losses = self.losses(own, reference, tokens)
        return np.asarray(losses), np.asarray(self.rewards(own, reference, tokens))

    def scores(
        self, predicted: Predicted, targets: Preferences
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `analysis.preference.metrics`; there are no details."""
        return analysis.metrics(*self._compared(predicted)), {}

    def rows(
        self, predicted: Predicted, targets: Preferences, inputs: Sequence[str]
    ) -> list[dict[str, Any]]:
        _, rewards = self._compared(predicted)
        chosen, rejected = rewards.astype(float).T.tolist()
        return [
            {"index": int(row), "margin": chosen[j] - rejected[j], "chosen_reward": chosen[j],
             "rejected_reward": rejected[j], "text": inputs[j]}
            for j, row in enumerate(targets.rows)
        ]  # fmt: skip

    def warnings(self, metrics: Mapping[str, Any]) -> list[str]:
        return []

    def columns(self, names: Sequence[str]) -> dict[str, str]:
        return dict(_COLUMNS)

    def is_output(self, row: Mapping[str, Any]) -> bool:
        last = list(row)[-len(_COLUMNS) :]
        prefix = last[0].removesuffix("log_probability_chosen") if last else ""
        return last == [f"{prefix}{name}" for name in _COLUMNS]

    def answers(
        self, predicted: Predicted, given: Unlabelled, names: Sequence[str]
    ) -> Iterator[Compared]:
        return (Compared(*pair) for pair in predicted["log_probability"].tolist())

    def id2label(self, names: Sequence[str]) -> dict[int, str]:
        """None: its outputs are the tokenizer's."""
        return {}

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        """None: its exports are language models like others."""
        return False

    def names_in(self, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
        return ()
