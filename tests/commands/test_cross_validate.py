"""jaxft.cross_validate: folds are the runs of `train`, a kill costs one trial, pairs are on the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxft import compare, cross_validate, train
from jaxft.api import make_config
from jaxft.search.validation import validating
from jaxft.search.validation.folds import Plan
from jaxft.terminal.errors import run_command
from tests.worlds import ROOT, Crash, arguments


def argv(world: Path, output: Path, *extra: str) -> list[str]:
    """The command line of two folds; `extra` comes last, so that it wins."""
    return [
        "cross_validate", f"--config={ROOT}/configs/text_classification.py", f"--output={output}",
        f"--config.model.path={world / 'one_block'}", f"--config.data.train={world / 'train.csv'}",
        "--config.train.batch_size=16", "--config.train.steps=4", "--config.optim.lr=3e-3",
        "--config.data.max_shapes=1", "--config.train.compile_cache=", "--config.parallel.mode=jit",
        "--folds=2", *extra,
    ]  # fmt: skip


def found(output: Path) -> dict:
    return json.loads((output / "cross_validate.json").read_text())


def timeless(output: Path) -> dict:
    """Without what a clock says."""
    value = found(output)
    for trial in value["trials"]:
        del trial["seconds"]
    return value


def refused(main, arguments: list[str], capsys) -> str:
    assert run_command(main, arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("jaxft: error: ") and "\n" not in error, error
    return error


@pytest.fixture(scope="module")
def validated(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("validated") / "out"
    assert cross_validate.main(argv(world, output)) == 0
    return output


def test_every_row_is_predicted_once_by_a_model_that_has_not_seen_it(validated, world):
    rows = [json.loads(line) for line in (validated / "predictions.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(96))
    trials = found(validated)["trials"]
    for trial in trials:  # and the metric of a fold is that of its rows
        own = [r["label"] == r["predicted"] for r in rows if r["fold"] == trial["fold"]]
        assert len(own) == trial["held_out"] == 96 - trial["trained"]
        assert np.mean(own) == pytest.approx(trial["metrics"]["accuracy"])
    [pooled] = found(validated)["pooled"]
    assert np.mean([r["label"] == r["predicted"] for r in rows]) == pytest.approx(
        pooled["accuracy"]
    )


def test_the_interval_is_of_the_folds(validated):
    value = found(validated)
    values = [trial["metrics"]["loss"] for trial in value["trials"]]
    estimate = value["estimates"]["loss"]
    assert estimate["mean"] == pytest.approx(np.mean(values))
    # t of one degree of freedom; two folds, each as large as what was trained on: 1/2 + 1.
    reach = 12.706 * np.sqrt(1.5) * np.std(values, ddof=1)
    assert estimate["high"] - estimate["mean"] == pytest.approx(reach, rel=1e-4)
    assert value["interval"]["test over training rows"] == 1.0
    page = (validated / "cross_validate.html").read_text()
    assert "Nadeau and Bengio" in page and "<svg" in page and f"{estimate['mean']:.4f}" in page


def test_a_second_call_runs_nothing_and_finds_the_same(validated, world, capsys, monkeypatch):
    before = {
        name: (validated / name).read_bytes()
        for name in ("cross_validate.json", "predictions.jsonl")
    }
    monkeypatch.setattr(
        "jaxft.search.trials.trial.run_alone", lambda *_, **__: pytest.fail("a trial is run again")
    )
    assert cross_validate.main(argv(world, validated)) == 0
    for name, content in before.items():
        assert (validated / name).read_bytes() == content


def test_other_trials_in_the_same_folder_are_refused(validated, world, tmp_path, capsys):
    for extra, said in (
        (["--config.optim.lr=1e-3"], "holds trials with config.optim.lr=0.003, not 0.001"),
        (["--folds=3"], "holds trials with folds 2, not 3"),
        (["--checkpoint=best"], "holds trials with checkpoint 'last', not 'best'"),
    ):
        assert said in refused(cross_validate.main, argv(world, validated, *extra), capsys)
    (tmp_path / "thesis.tex").write_text("years")
    assert "holds 'thesis.tex' and no cross-validation" in refused(
        cross_validate.main, argv(world, tmp_path), capsys
    )
    assert "96 examples cannot be cut into 97 folds" in refused(
        cross_validate.main, argv(world, tmp_path / "new", "--folds=97"), capsys
    )


def test_a_second_config_of_other_rows_is_refused_before_the_first_trial(world, tmp_path, capsys):
    other = tmp_path / "other.py"
    lines = f"from jaxft.config import override\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    lines += "from configs.text_classification import get_config as first\n"
    for change, said in (
        ("{'data.split_seed': 1}", "--config and --against hold out other rows"),
        ("{'task': 'text_regression', 'eval.metric': 'loss'}", "--against of 'text_regression'"),
        ("{'data.folds': 3}", "config.data.folds=3 holds out fold 0 of a single run"),
    ):
        other.write_text(lines + f"def get_config(arg=None): return override(first(), {change})\n")
        command = argv(world, tmp_path / change[2:10], f"--against={other}")
        assert said in refused(cross_validate.main, command, capsys)
        assert not list(tmp_path.rglob("trials"))
    # Where no trial has run, the folder may still become that of another config.
    with validating.opened(make_config(f"{ROOT}/configs/text_classification.py", {
        "model.path": str(world / "one_block"), "data.train": str(world / "test.csv"),
    }), Plan(), str(tmp_path / "data.spl")) as one:  # fmt: skip
        assert len(one.prepared) == 5


def test_compare_refuses_what_is_no_pair(validated, tmp_path, capsys):
    def changed(name: str, **values) -> str:
        (tmp_path / name).mkdir()
        file = tmp_path / name / "cross_validate.json"
        file.write_text(json.dumps({**found(validated), **values}))
        return str(tmp_path / name)

    own = str(validated)
    for other, said in (
        (changed("rows", fingerprint="0"), "hold other rows"),
        (changed("best", checkpoint="best"), "measured the last weights of each trial"),
        (changed("task", task="embedding"), "nothing to compare"),
        (changed("kind", folds=0), "has 2 seeds; a paired test needs the same"),
        (changed("damaged", trials=[{}]), "is damaged"),
        (str(tmp_path), "compare takes runs, or two cross-validations"),
    ):
        assert said in refused(compare.main, ["compare", own, other], capsys)
    assert "two are compared" in refused(compare.main, ["compare", own], capsys)
    values = [{**trial, "metrics": {**trial["metrics"], "f1_macro": 0.9 + i / 100}}
              for i, trial in enumerate(found(validated)["trials"])]  # fmt: skip
    better = changed("better", trials=values)
    assert compare.main(["compare", own, better, f"--output={tmp_path}/page.html"]) == 0
    out = capsys.readouterr().out
    assert "corrected resampled t test" in out and "B - A" in out
    assert "B is better in f1_macro" in out or "no difference in f1_macro is shown" in out
    assert "B - A of the same fold" in (tmp_path / "page.html").read_text()


def killed_and_continued(monkeypatch, command: list[str]) -> list[int]:
    """The command, killed when the second trial is measured, and again. Returns trials that were measured."""
    real, calls = validating._said, []

    def crashing(trials, metric):
        report = real(trials, metric)

        def told(number, row):
            calls.append(number)
            if len(calls) == 2:
                raise Crash
            return report(number, row)

        return told

    output = next(word.removeprefix("--output=") for word in command if "--output=" in word)
    with monkeypatch.context() as patch:
        patch.setattr(validating, "_said", crashing)
        with pytest.raises(Crash):
            cross_validate.main(command)
        assert not (Path(output) / "cross_validate.json").exists()
        assert cross_validate.main(command) == 0
    return calls


@pytest.mark.slow
def test_workers_find_what_one_finds_also_after_a_kill(validated, world, tmp_path, monkeypatch):
    output = tmp_path / "out"
    calls = killed_and_continued(monkeypatch, argv(world, output, "--workers=2"))
    assert calls in ([0, 1, 1], [1, 0, 0])
    assert timeless(output) == timeless(validated)
    rows = [(path / "predictions.jsonl").read_bytes() for path in (output, validated)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_fold_is_the_run_of_train_and_a_kill_costs_the_trial_that_was_running(
    validated, world, tmp_path, monkeypatch
):
    own = ("--config.data.folds=2", "--config.data.fold=1", "--config.train.seed=1", "--config.train.steps=4",
           "--config.eval.every=100%")  # fmt: skip
    train.main(arguments(world, tmp_path / "run", *own))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    trial = found(validated)["trials"][1]
    assert (trial["fold"], trial["seed"]) == (1, 1)
    for name, value in trial["metrics"].items():
        assert summary["eval"][name] == value

    output = tmp_path / "killed"
    calls = killed_and_continued(monkeypatch, argv(world, output))
    assert calls == [0, 1, 1]
    assert timeless(output) == timeless(validated)
    # More repeats go on from those that are there, whose trials stay what they are.
    assert cross_validate.main(argv(world, output, "--repeats=2")) == 0
    assert timeless(output)["trials"][:2] == timeless(validated)["trials"]
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 2 * 96


@pytest.mark.slow
def test_seeds_and_a_second_config_on_the_same_rows(world, tmp_path, capsys):
    command = [word for word in argv(world, tmp_path / "out") if not word.startswith("--folds")]
    second = f"--against={ROOT}/configs/text_classification.py:head"
    assert cross_validate.main([*command, "--seeds=3", second]) == 0
    out = capsys.readouterr().out
    assert "paired over 3 seeds" in out and "optim.freeze_below=all" in out
    value = json.loads((tmp_path / "out" / "comparison.json").read_text())
    first, other = (found(tmp_path / name) for name in ("out", "out/against"))
    apart = [
        b["metrics"]["loss"] - a["metrics"]["loss"]
        for a, b in zip(first["trials"], other["trials"], strict=True)
    ]
    assert value["metrics"]["loss"]["B - A"] == pytest.approx(np.mean(apart))
    assert value["differs"] == {"optim.freeze_below": [None, "all"]}
    assert value["verdict"] in out and (tmp_path / "out" / "comparison.html").is_file()
    rows = [
        json.loads(x) for x in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [row["seed"] for row in rows] == [0] * 10 + [1] * 10 + [2] * 10
    # Other rows are no pairs.
    moved = argv(world, tmp_path / "moved", "--seeds=3", "--config.data.split_seed=1")
    assert cross_validate.main([word for word in moved if not word.startswith("--folds")]) == 0
    said = refused(
        compare.main, ["compare", str(tmp_path / "out"), str(tmp_path / "moved")], capsys
    )
    assert "evaluation rows hold other rows" in said
