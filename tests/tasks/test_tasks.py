"""What every task must keep to, and how its metrics choose the best checkpoint."""

from types import SimpleNamespace

import pytest

from jaxft.config import unflatten
from jaxft.config_fields import BY_NAME
from jaxft.experiment.session import Memory, judge
from jaxft.tasks.names import METRICS, minimised
from jaxft.tasks.table import TASKS


def test_every_name_of_a_task_is_one():
    assert set(TASKS) == set(METRICS) == set(BY_NAME["task"].choices)
    assert set(BY_NAME["eval.metric"].choices) == {name for own in METRICS.values() for name in own}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_only_what_there_is(name):
    task = TASKS[name]
    assert "loss" in task.shown and set(task.shown) <= set(METRICS[name])
    assert set(task.compared) <= set(METRICS[name]) and set(task.view.tiles) <= set(METRICS[name])
    assert all(field in BY_NAME for field in task.unused)
    assert "loss" in minimised(name)
    first = next(iter(task.columns(("a", "b"))))
    assert first.startswith("predicted") or task.head in ("causal", "masked")


@pytest.mark.parametrize("name", TASKS)
def test_an_exported_config_is_recognised_by_its_own_kind_of_task_alone(name):
    names = ("a", "b") if TASKS[name].fewest_names else ()
    heads = {
        "token": "TokenClassification", "causal": "CausalLM", "masked": "MaskedLM",
        "question": "QuestionAnswering", "choice": "MultipleChoice",
        "seq2seq": "ConditionalGeneration",
    }  # fmt: skip
    head = f"BertFor{heads.get(TASKS[name].head or '', 'X')}"
    head = "BertModel" if name in ("embedding", "few_shot") else head
    exported = {
        "architectures": [head],
        "id2label": {str(i): text for i, text in TASKS[name].id2label(names).items()},
        "problem_type": TASKS[name].problem_type,
        **({"sentence_classifier": "a file"} if name == "few_shot" else {}),
    }
    found = {other for other, task in TASKS.items() if task.recognises(exported)}
    # What it was that the next token was learned of, a checkpoint does not say.
    name = "causal_lm" if TASKS[name].head == "causal" else name
    assert found == {other for other in TASKS if type(TASKS[other]) is type(TASKS[name])}
    assert TASKS[name].names_in(exported) == names


@pytest.mark.parametrize(
    ("task", "metric", "values", "best"),
    [
        ("text_regression", "rmse", [0.5, 0.3, 0.4], 2),
        ("text_regression", "pearson", [0.5, 0.3, 0.6], 3),
        ("token_classification", "f1", [0.2, 0.6, 0.5], 2),
        ("text_classification", "loss", [0.2, 0.6, 0.5], 1),
    ],
)
def test_the_best_checkpoint_follows_the_direction_of_the_metric(task, metric, values, best):
    config = unflatten({"task": task, "eval.metric": metric, "eval.patience": 2})
    memory = Memory()
    for step, value in enumerate(values, start=1):
        result = SimpleNamespace(metrics={metric: value})
        memory = judge(memory, step, result, config, last=False)
    assert memory.best_step == best
    assert memory.stopped_early == (best == 1)
