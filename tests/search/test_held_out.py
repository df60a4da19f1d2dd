"""Predictions of folds put together: each where its row is, whatever the folds and however many a row has."""

from __future__ import annotations

import numpy as np
import pytest

from jaxft.data.files import table
from jaxft.data.targets import Unlabelled, offsets_of
from jaxft.experiment.split import Split
from jaxft.search.validation.held_out import fingerprint, in_row_order, pooled


@pytest.mark.parametrize("seed", range(5))
def test_each_prediction_is_where_its_row_is(seed):
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(100, 30, replace=False))  # some rows of the source are left out
    whole = Unlabelled(rows, offsets_of(rng.integers(0, 4, 30)))
    score = rng.normal(size=(whole.offsets[-1], 2))
    text = np.array([f"word {i}" for i in range(whole.offsets[-1])], object)
    parts = []
    for fold in range(3):
        own = np.flatnonzero(rng.permutation(30) % 3 == fold) if not parts else None
        if own is None:
            left = np.setdiff1d(np.arange(30), np.concatenate([p for p, *_ in parts]))
            own = left if fold == 2 else np.sort(rng.choice(left, len(left) // 2, replace=False))
        entries = np.concatenate(
            [np.arange(whole.offsets[i], whole.offsets[i + 1]) for i in own] or [np.zeros(0, int)]
        ).astype(int)
        parts.append((own, whole.take(own), {"score": score[entries], "text": text[entries]}))
    found = pooled(whole, [(targets, predicted) for _, targets, predicted in parts])
    np.testing.assert_array_equal(found["score"], score)
    assert found["text"].tolist() == text.tolist()


def test_forms_that_differ_are_refused():
    whole = Unlabelled(np.arange(2), np.arange(3))
    parts = [(whole.take(np.array([i])), {"logits": np.zeros((1, 2 + i))}) for i in range(2)]
    with pytest.raises(ValueError, match="in one fold"):
        pooled(whole, parts)


def test_rows_of_several_trials_are_in_the_order_of_the_data():
    parts = [({"fold": fold}, iter([{"index": i} for i in range(fold, 9, 3)])) for fold in range(3)]
    assert [(row["fold"], row["index"]) for row in in_row_order(parts)] == [
        (i % 3, i) for i in range(9)
    ]


def test_a_fingerprint_is_of_rows_and_cells():
    def of(values, *held, columns=("label",)):
        source = table("data", {"label": values, "text": list("abcd")})
        whole = Unlabelled(np.arange(4), np.arange(5))
        return fingerprint(
            [Split(source, whole.take(np.array(h))) for h in held], columns, Split(source, whole)
        )

    first = of([0, 1, 0, 1], [0, 1], [2, 3])
    assert first == of([0, 1, 0, 1], [0, 1], [2, 3])
    others = [
        of([0, 1, 0, 2], [0, 1], [2, 3]), of([0, 1, 0, 1], [0, 2], [1, 3]), of([0, 1, 0, 1], [0, 1, 2, 3]),
        of(["0", "1", "0", "1"], [0, 1], [2, 3]), of([0, 1, 0, 1], [0, 1], [2, 3], columns=("text",)),
    ]  # fmt: skip
    assert len({first, *others}) == 6
