"""The temperature and the expected calibration error, held to scipy and to their definitions."""

import json
import shutil

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxft import load, predict
from jaxft.analysis.calibration import (
    HIGHEST,
    LOWEST,
    calibration,
    label_calibration,
    label_temperature,
    temperature_of,
)
from jaxft.data.targets import unlabelled
from jaxft.tasks.classification import Classification
from jaxft.tasks.multi_label import MultiLabel
from tests import tiny


@pytest.fixture(scope="module")
def overconfident():
    """Logits that are three times those by which the labels were drawn."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(3000, 4)) * 1.5
    labels = (true + rng.gumbel(size=true.shape)).argmax(-1)
    return (3 * true).astype(np.float32), labels


def cross_entropy(temperature, logits, labels):
    log_p = scipy.special.log_softmax(logits.astype(float) / temperature, axis=-1)
    return -log_p[np.arange(len(labels)), labels].mean()


def test_the_temperature_has_the_lowest_cross_entropy(overconfident):
    found = temperature_of(*overconfident)
    best = scipy.optimize.minimize_scalar(
        cross_entropy, bounds=(LOWEST, HIGHEST), args=overconfident, method="bounded",
        options={"xatol": 1e-8},
    )  # fmt: skip
    assert found == pytest.approx(best.x, rel=1e-4) and 2.7 < found < 3.3


def test_the_error_is_that_of_its_definition_and_smaller_afterwards(overconfident):
    logits, labels = overconfident
    p = scipy.special.softmax(logits.astype(float), axis=-1)
    top, right, expected = p.max(-1), p.argmax(-1) == labels, 0.0
    for k in range(15):
        own = (top >= k / 15) & ((top < (k + 1) / 15) | (k == 14))
        if own.any():
            expected += own.mean() * abs(top[own].mean() - right[own].mean())
    before = calibration(logits, labels, 1.0)
    after = calibration(logits, labels, temperature_of(logits, labels))
    assert before["ece"] == pytest.approx(expected) and before["ece"] > 0.1 > 0.03 > after["ece"]
    assert before["loss"] == pytest.approx(cross_entropy(1.0, logits, labels))
    assert sum(after["count"]) == len(labels)


def test_few_examples_have_none_and_perfect_ones_a_bounded_one():
    logits = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    assert temperature_of(logits[:29], np.arange(29) % 3) == 1
    assert temperature_of(logits, np.arange(60) % 3) == pytest.approx(LOWEST)
    assert temperature_of(logits, (np.arange(60) + 1) % 3) == pytest.approx(HIGHEST)


def test_other_data_is_scored_with_the_temperature_that_is_given(overconfident):
    class Targets:
        names, ids = ("a", "b", "c", "d"), overconfident[1]

        def __len__(self):
            return len(self.ids)

    targets, found = Targets(), {"logits": overconfident[0]}
    task = Classification("text")
    kept = task.kept(targets, found, np.arange(3000))
    metrics, details = task.scores(kept, targets)
    assert metrics["ece_calibrated"] < 0.03 < metrics["ece"] and "before" in details["calibration"]
    assert metrics["loss_calibrated"] < metrics["loss"]
    given = task.fitted(task.fits(metrics), targets.names)
    assert given.scores(kept, targets)[0] == metrics
    other, _ = task.fitted({"temperature": 2.0}, targets.names).scores(kept, targets)
    assert other["temperature"] == 2.0 and other["loss_calibrated"] > metrics["loss_calibrated"]
    for damaged in ({}, {"temperature": "hot"}, {"temperature": float("nan")}, {"temperature": -1}):
        assert task.fitted(damaged, targets.names).temperature == 1.0


@pytest.fixture(scope="module")
def overconfident_labels():
    """Logits [N, 5] that are three times those by which it was drawn whether a label applies, most do not."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(2000, 5)) - 1.5
    return (3 * true).astype(np.float32), rng.random(true.shape) < scipy.special.expit(true)


def test_several_labels_have_one_temperature(overconfident_labels):
    logits, truth = overconfident_labels

    def loss(temperature):
        z = logits.astype(float) / temperature
        return (np.logaddexp(0, z) - truth * z).mean()

    found = label_temperature(logits, truth)
    best = scipy.optimize.minimize_scalar(
        loss, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 1e-8}
    )
    assert found == pytest.approx(best.x, rel=1e-4) and 2.7 < found < 3.3
    assert label_temperature(logits[:29], truth[:29]) == 1
    p, expected = scipy.special.expit(logits.astype(float)).ravel(), 0.0
    for k in range(15):
        own = (p >= k / 15) & ((p < (k + 1) / 15) | (k == 14))
        if own.any():
            expected += own.mean() * abs(p[own].mean() - truth.ravel()[own].mean())
    before, after = (label_calibration(logits, truth, t) for t in (1.0, found))
    assert before["ece"] == pytest.approx(expected) and before["ece"] > 0.05 > 0.02 > after["ece"]
    assert before["loss"] == pytest.approx(loss(1.0)) and after["loss"] < before["loss"]


def test_labels_apply_at_the_same_thresholds_whatever_the_temperature(overconfident_labels):
    logits, truth = overconfident_labels

    class Targets:
        names = ("a", "b", "c", "d", "e")

        def __len__(self):
            return len(truth)

        def dense(self, places):
            return truth[places]

    task, names = MultiLabel("text"), Targets.names
    metrics, details = task.scores({"logits": logits}, Targets())
    assert metrics["ece_calibrated"] < metrics["ece"] and "after" in details["calibration"]
    plain = task.fitted(task.fits(metrics), names)
    assert plain.scores({"logits": logits}, Targets())[0] == metrics
    hot = {"logits": logits[:50]}
    as_is = list(plain.answers(hot, unlabelled(50), names))
    cooled = list(plain.calibrated().answers(hot, unlabelled(50), names))
    assert [a.labels for a in cooled] == [a.labels for a in as_is]
    found = [list(answer.probabilities.values()) for answer in cooled]
    np.testing.assert_allclose(
        found, scipy.special.expit(logits[:50].astype(float) / metrics["temperature"]), rtol=1e-5
    )
    assert task.fitted({"temperature": "hot"}, names).temperature == 1.0


def test_predict_gives_calibrated_probabilities_on_request(trained, tmp_path, capsys):
    best = tmp_path / "model"
    shutil.copytree(trained / "run" / "best", best)
    config = json.loads((best / "config.json").read_text())
    assert config["fitted_on_evaluation"].keys() == {"temperature"}
    config["fitted_on_evaluation"]["temperature"] = 2.0
    (best / "config.json").write_text(json.dumps(config))
    plain, cooled = load(best), load(best, calibrated=True)
    texts = ["a fine day", "it was cold", "the film"]
    expected = scipy.special.softmax(plain.logits(texts).astype(float) / 2, axis=-1)
    found = [list(answer.probabilities.values()) for answer in cooled.predict(texts)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert [a.label for a in cooled.predict(texts)] == [a.label for a in plain.predict(texts)]
    command = ["predict", f"--run={best}", f"--input={trained / 'test.csv'}", "--calibrated"]
    assert predict.main([*command, f"--output={tmp_path / 'out.jsonl'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answers = cooled.predict([row["text"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert row["predicted"] == answer.label
        assert row[f"probability_{answer.label}"] == pytest.approx(answer.probability, abs=2e-6)
    del config["fitted_on_evaluation"]
    (best / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the model has no temperature"):
        load(best, calibrated=True)
    with pytest.raises(ValueError, match="and this is one of 'masked_lm'"):
        load(tiny.language_model(tmp_path / "base", "masked"), calibrated=True)
    assert "Calibration" in (trained / "run" / "report.html").read_text()
