"""A run on a mixture: resumed bitwise, with the share and the losses of each source in its metrics."""

import numpy as np
import pytest

from jaxft import evaluate, train
from tests import tiny
from tests.worlds import arguments, assert_same_weights, killed_at, rows, timeless


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    tiny.texts(folder / "real.csv", 40, seed=1)
    tiny.texts(folder / "made.csv", 80, seed=2)
    return f'(("{folder}/real.csv", 3), ("{folder}/made.csv", 1))'


def command(world, workdir, mixture, *extra, **how):
    given = ("--config.data.train=", f"--config.data.mixture={mixture}", *extra)
    return arguments(world, workdir, *given, **how)


@pytest.fixture(scope="module")
def whole(world, mixture, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train.main(command(world, run, mixture)) == 0
    return run


@pytest.mark.slow
def test_a_killed_run_sees_the_same_examples(world, mixture, whole, tmp_path, capsys):
    argv = command(world, tmp_path / "run", mixture)
    killed_at(7, argv)
    said = "an epoch of 108 goes 2.19 times through real.csv (75.0%), 0.38 times through made.csv (25.0%)"
    assert said in capsys.readouterr().out
    assert train.main(argv) == 0
    assert_same_weights(tmp_path / "run", whole)
    assert timeless(tmp_path / "run") == timeless(whole)


def test_shares_and_losses_are_logged(world, mixture, whole, tmp_path):
    # Over devices the sums are the same.
    run = tmp_path / "run"
    assert train.main(command(world, run, mixture, "--config.train.accumulate=2", mode="pmap")) == 0
    for one, other in zip(rows(whole), rows(run), strict=True):
        if one["kind"] == "train":
            assert one["share/real.csv"] + one["share/made.csv"] == pytest.approx(1)
            mean = sum(one[f"share/{n}.csv"] * one[f"loss/{n}.csv"] for n in ("real", "made"))
            assert mean == pytest.approx(one["loss"], rel=1e-4)
            assert other["share/real.csv"] == pytest.approx(one["share/real.csv"])
        if one["kind"] == "eval":
            # Of each label of each source a tenth is held out: 3 of 40, 9 of 80, 12 in all.
            mean = (3 * one["loss/real.csv"] + 9 * one["loss/made.csv"]) / 12
            assert mean == pytest.approx(one["loss"], rel=1e-6)
    shares = [row["share/real.csv"] for row in rows(whole) if row["kind"] == "train"]
    assert np.mean(shares) == pytest.approx(0.75, abs=0.06)
    last = [row for row in rows(whole) if row.get("split") == "eval"]
    best = max(last, key=lambda row: row["accuracy"])  # the first of equal ones
    assert evaluate(whole)["loss/made.csv"] == pytest.approx(best["loss/made.csv"], rel=1e-5)


def test_a_mixture_stands_for_the_training_data(world, mixture, tmp_path, capsys):
    for extra, said in (
        (
            ["--config.data.train=x.csv"],
            "config.data.mixture and config.data.train='x.csv' are both given",
        ),
        (
            ['--config.data.mixture=(("x.csv", 0),)'],
            "the weight 0 of 'x.csv' is not a number above 0",
        ),
        (['--config.data.mixture=("x.csv",)'], "'x.csv' is not a (source, weight) pair"),
        (["--config.data.mixture=()"], "config.data.train is empty"),
        (
            ["--config.data.mixture=()", "--config.data.mixture_temperature=2.0"],
            "needs config.data.mixture",
        ),
    ):
        from jaxft.terminal.errors import run_command

        argv = command(world, tmp_path / "run", mixture, *extra)
        assert run_command(train.main, argv) == 2
        assert said in capsys.readouterr().err
