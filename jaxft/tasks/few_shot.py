"""Few-shot classification of texts as SetFit does it (Tunstall et al. 2022, arXiv:2209.11055).

Texts with the same label are to be similar, by cosine, and others not: the squared error over pairs of
training rows is the loss, as sentence-transformers' CosineSimilarityLoss. The classifier is scikit-learn's
logistic regression of the vectors of all training rows.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis.view import View
from jaxft.data.labels import Labels
from jaxft.data.pairs import Pairing, pairing_of
from jaxft.tasks.classification import OneLabel, logits_of
from jaxft.tasks.contract import Arrays
from jaxft.tasks.embedding import CLASSIFIER, of_unit_length, pooled

# The head's parameters (models/heads.py).
_KERNEL, _BIAS = f"{CLASSIFIER}/kernel", f"{CLASSIFIER}/bias"
_ITERATIONS = 1000  # of LBFGS; scikit-learn's own 100 are too few where vectors are long


@dataclasses.dataclass(frozen=True)
class FewShot(OneLabel):
    """A task (see contract.py).

    Attributes:
      pooling: 'mean' of the tokens of a text, or 'cls', its first.
      normalize: 'yes' or 'no', whether the classifier reads vectors of unit length.
      sampling, iterations: see `pairing_of`.
      head_c: the classifier's C of scikit-learn, what an error counts beside the square of its weights.
    """

    head: str | None = "sentence"
    unused: tuple[str, ...] = (
        "train.label_smoothing", "data.mixture", "data.stream", "data.token_dropout", "data.word_swap",
    )  # fmt: skip
    pooling: str = "mean"
    normalize: str = "no"
    sampling: str = "oversampling"
    iterations: int | None = None
    head_c: float = 1.0

    @property
    def settings(self) -> Mapping[str, str]:
        return {
            "model.pooling": "pooling",
            "model.normalize": "normalize",
            "data.pair_sampling": "sampling",
            "data.pair_iterations": "iterations",
            "train.head_c": "head_c",
        }

    @property
    def view(self) -> View:
        return dataclasses.replace(super().view, eval_loss="cross-entropy of the classifier")

    def pairing(self, targets: Labels) -> Pairing:
        return pairing_of(targets, self.sampling, self.iterations)

    def loss(
        self, outputs: Arrays, batch: Arrays, label_smoothing: float
    ) -> tuple[jax.Array, jax.Array]:
        """Sums over pairs. batch: 'labels' [R, K] float32, the cosine that is wanted."""
        vectors = of_unit_length(pooled(outputs, batch, self.pooling))
        error = jnp.sum(vectors[..., 0, :] * vectors[..., 1, :], -1) - batch["labels"]
        return jnp.sum(error**2 * batch["weight"]), jnp.sum(batch["weight"])

    def predictions(self, outputs: Arrays, batch: Arrays) -> Arrays:
        vectors = self._vectors(outputs, batch)
        # In full precision: accelerators round the factors of a product that is left to them.
        logits = jnp.matmul(vectors, outputs["kernel"], precision=jax.lax.Precision.HIGHEST)
        return logits_of({"logits": logits + outputs["bias"]}, batch)

    def features(self, outputs: Arrays, batch: Arrays) -> Arrays:
        return {"features": self._vectors(outputs, batch), "index": batch["index"]}

    def head_of(self, features: np.ndarray, targets: Labels) -> dict[str, np.ndarray]:
        """See `fit_classifier`."""
        kernel, bias = fit_classifier(features, targets.ids, self.head_c)
        return {_KERNEL: kernel, _BIAS: bias}

    def recognises(self, hf_config: Mapping[str, Any]) -> bool:
        """A model without a head, but for the classifier beside it that its config.json names."""
        return bool(hf_config.get(CLASSIFIER))

    def _vectors(self, outputs: Arrays, batch: Arrays) -> jax.Array:
        """[R, K, D], of examples of one text."""
        vectors = pooled(outputs, batch, self.pooling)[..., 0, :]
        return of_unit_length(vectors) if self.normalize == "yes" else vectors


def fit_classifier(
    features: np.ndarray, ids: np.ndarray, c: float
) -> tuple[np.ndarray, np.ndarray]:
    """(kernel [D, C], bias [C]) float32 whose softmax is that of scikit-learn's LogisticRegression(C=c).

    features: [N, D]. ids: [N], of C classes, all of them there. Of two, logits are -z / 2 and z / 2 for the z
    of scikit-learn.
    """
    # 0.5 s, and only where a head is fitted.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=_ITERATIONS)
    with warnings.catch_warnings():  # what is left to gain after so many is nothing
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.astype(np.float64), ids)
    kernel, bias = model.coef_.T, model.intercept_
    if len(bias) == 1:
        kernel, bias = (np.concatenate([-x / 2, x / 2], axis=-1) for x in (kernel, bias))
    return kernel.astype(np.float32), bias.astype(np.float32)
