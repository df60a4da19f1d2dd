"""Real processes: two with two devices each are one with four, and however one ends, the run is safe."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxft import export
from jaxft.experiment import processes
from tests.end_to_end.several import (
    EVAL_EVERY,
    HEARTBEAT,
    SAVE_EVERY,
    STEPS,
    alone,
    arguments,
    assert_close,
    environment,
    evaluations,
    launch,
    launch_runs,
    make_world,
    wait_for_step,
)
from tests.worlds import ROOT, timeless, weights

COLLECTIVE = re.compile(r" = \S+ (all-|reduce-scatter|collective-)")
KEPT = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("kept", "kept_pmap")]
FAST = ("fsdp",)  # cuts parameters and batches; a mesh that cuts batches alone, and pmap, are slow
CASES = [
    *FAST,
    *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("shard", "pmap", "context")),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def single(world, tmp_path_factory):
    """One process with four devices, in the modes that are asked for: the folder of each run."""
    folder, finished = tmp_path_factory.mktemp("single"), set()

    def run(mode: str) -> Path:
        if mode not in finished:
            modes = FAST if mode in FAST else (mode,)
            alone(*(arguments(world, folder / one, one) for one in modes))
            finished.update(modes)
        return folder / mode

    return run


@pytest.fixture(scope="module")
def double(world, tmp_path_factory):
    """Two processes with two devices each, undisturbed: (run directory, their output) by mode."""
    folder, finished = tmp_path_factory.mktemp("double"), {}

    def run(mode: str):
        if mode not in finished:  # those of the fast tests in the same processes, which start once
            modes = FAST if mode in FAST else (mode,)
            with launch_runs(*(arguments(world, folder / one, one) for one in modes)) as started:
                finished.update(dict.fromkeys(modes, started.end()))
        return folder / mode, finished[mode]

    return run


@pytest.mark.parametrize("mode", [*CASES, *KEPT])
def test_two_processes_are_one_with_as_many_devices(single, double, mode):
    run, (statuses, outputs, errors) = double(mode)
    assert statuses == [0, 0], errors
    assert_close(run, single(mode), atol=1e-6)
    found, expected = timeless(run), timeless(single(mode))
    logged = {*range(2, STEPS + 1, 2), *range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)}
    assert len(found) == len(expected) == len(logged) + STEPS // EVAL_EVERY
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        # The padding of its own rows is what a process knows.
        for name, value in ((n, v) for n, v in theirs.items() if n != "padding"):
            near = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert ours[name] == near, (name, ours)


@pytest.mark.slow
def test_what_two_processes_keep_is_found_again_and_made_again_where_one_lacks_it(
    world, double, tmp_path
):
    run, _ = double("kept")
    caches = [tmp_path / "first", tmp_path / "second"]
    for folder in caches:
        shutil.copytree(run / "cache", folder)
    (lost,) = caches[1].glob("*.prefix.*.npy")
    whole = lost.read_bytes()
    times = [path.stat().st_mtime_ns for path in caches[0].glob("*.prefix.*.npy")]
    lost.unlink()
    commands = [
        arguments(world, tmp_path / "run", "kept", f"--config.data.cache={folder}")
        for folder in caches
    ]
    with launch(*commands) as started:
        statuses, _, errors = started.end()
    assert statuses == [0, 0], errors
    assert lost.read_bytes() == whole
    assert [path.stat().st_mtime_ns for path in caches[0].glob("*.prefix.*.npy")] != times
    assert timeless(tmp_path / "run") == timeless(run)


@pytest.mark.parametrize("mode", CASES)
def test_only_the_first_process_prints_and_writes(single, double, mode):
    run, (_, outputs, errors) = double(mode)
    assert "best step" in outputs[0]
    assert (outputs[1], errors[0], errors[1]) == ("", "", "")

    def files(folder: Path) -> set[Path]:
        return {p.relative_to(folder) for p in folder.rglob("*") if "checkpoints" not in p.parts}

    assert files(run) == files(single(mode))


def test_sharded_parameters_are_exported_whole_by_any_number_of_processes(double, tmp_path):
    run, _ = double("fsdp")
    layout = (run / "checkpoints" / str(STEPS) / "params" / "_sharding").read_text()
    assert "fsdp" in layout  # or nothing was cut
    assert export.main(["export", f"--run={run}", f"--output={tmp_path}/out"]) == 0
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights(run).keys()
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert all(np.array_equal(exported[name], value) for name, value in weights(run).items())


def kill_and_continue(world: Path, run: Path, mode: str, victim: int) -> None:
    command = arguments(world, run, mode)
    with launch(command, command) as started:
        wait_for_step(run, 12, started)
        started.children[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        statuses, *_ = started.end(HEARTBEAT + 60)
        took = time.monotonic() - began
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] not in (0, None)
    assert took < HEARTBEAT + 30  # seconds; alone on two cores it is about HEARTBEAT
    with launch(command, command) as started:
        statuses, outputs, errors = started.end()
    assert statuses == [0, 0], errors
    # Of step 10, or of 5 where the kill came before the later one was whole.
    assert "continued from the checkpoint of step " in outputs[0]


@pytest.mark.slow
def test_two_processes_learn_from_one_teacher(world, single, tmp_path):
    teacher = f"--config.distill.teacher={single('fsdp')}"
    command = arguments(world, tmp_path / "two", "fsdp", teacher)
    with launch(command, command) as started:
        statuses, _, errors = started.end(600)
    assert statuses == [0, 0], errors
    alone(arguments(world, tmp_path / "one", "fsdp", teacher))
    assert_close(tmp_path / "two", tmp_path / "one", atol=1e-6)
    pairs = zip(timeless(tmp_path / "two"), timeless(tmp_path / "one"), strict=True)
    for ours, theirs in ((a, b) for a, b in pairs if a["kind"] == "train"):
        assert ours["soft_loss"] == pytest.approx(theirs["soft_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "victim"), [("fsdp", 1), ("shard", 0), ("shard", 1), ("pmap", 1)])
def test_the_others_end_when_one_is_killed_and_the_same_command_continues(
    world, double, tmp_path, mode, victim
):
    kill_and_continue(world, tmp_path / "run", mode, victim)
    undisturbed, _ = double(mode)
    assert_close(tmp_path / "run", undisturbed, atol=0)
    assert timeless(tmp_path / "run") == timeless(undisturbed)


@pytest.mark.slow
def test_sigterm_saves_one_step_and_one_process_can_continue(world, single, tmp_path):
    run = tmp_path / "run"
    command = arguments(world, run, "shard")
    with launch(command, command) as started:
        wait_for_step(run, 6, started)
        for child in started.children:
            child.terminate()
        statuses, *_ = started.end()
    assert statuses == [143, 143]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["name"] == "sigterm" and 6 <= last["step"] < STEPS
    assert (run / "checkpoints" / str(last["step"])).is_dir()
    alone(command)
    assert_close(run, single("shard"), atol=1e-6)
    for ours, theirs in zip(evaluations(run), evaluations(single("shard")), strict=True):
        assert (ours["step"], ours["per_class"]) == (theirs["step"], theirs["per_class"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_a_mistake_is_said_once_by_the_launcher(world, tmp_path):
    command = arguments(world, tmp_path / "run", "shard", "--config.optim.lrr=1")
    ended = subprocess.run(
        ["launch/local.sh", "2", *command], cwd=ROOT, env=environment(1), capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "jaxft: error: config.optim.lrr does not exist (did you mean 'optim.lr'?)"
    ]


def test_processes_with_different_configs_do_not_begin(world, tmp_path):
    first = arguments(world, tmp_path / "run", "shard")
    second = [*first, "--config.train.seed=1"]
    with launch(first, second) as started:
        statuses, outputs, errors = started.end(120)
    assert (statuses, outputs, errors[0]) == ([2, 2], ["", ""], "")
    assert errors[1].splitlines()[-1] == (
        "jaxft: error: the config in this process is not the same as in process 0"
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_run_directory_that_is_not_shared_is_refused(world, tmp_path):
    commands = [arguments(world, tmp_path / name, "shard") for name in ("here", "there")]
    with launch(*commands) as started:
        statuses, _, errors = started.end(120)
    assert (statuses, errors[0]) == ([2, 2], "")
    assert "there is not the directory that process 0 writes to" in errors[1].splitlines()[-1]
    assert not any((tmp_path / name).exists() for name in ("here", "there"))


@pytest.mark.slow
def test_too_few_processes_is_one_line(world, tmp_path):
    command = [*arguments(world, tmp_path / "run", "shard"), "--join_timeout=3"]
    alone = ["--coordinator=localhost:0", "--num_processes=2", "--process_id=0"]
    ended = subprocess.run(
        [sys.executable, "-m", "jaxft.train", *command, *alone], cwd=ROOT, env=environment(1),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "nothing was heard at localhost:0 from process 1 of 2 in 3 seconds" in line


FAIL_IN_ONE = """
import sys
from jaxft import train
from jaxft.terminal.errors import run_command
from jaxft.training.logs import Logs

original = Logs.train

def fail(self, step, *rest):
    original(self, step, *rest)
    if step == 7 and not self.enabled:
        raise OSError(5, "the disk of this machine is gone")

Logs.train = fail
sys.exit(run_command(train.main, sys.argv))
"""


FAIL_IN_EXPORT = """
import sys
import jax
from jaxft import train
from jaxft.terminal.errors import run_command
from jaxft.training.parallel import Parallel

original, count = Parallel.whole, [0]

def fail(self, x):
    count[0] += 1
    if count[0] == 5 and jax.process_index() == %d:
        raise OSError(28, "No space left on device")
    return original(self, x)

Parallel.whole = fail
sys.exit(run_command(train.main, sys.argv))
"""


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(world, tmp_path):
    command = arguments(world, tmp_path / "run", "shard")
    script = tmp_path / "fail.py"
    script.write_text(FAIL_IN_ONE)
    with launch(command, command, script=script) as started:
        statuses, _, errors = started.end(HEARTBEAT + 120)
    assert statuses[1] == 1 and statuses[0] != 0
    assert "jaxft: error: process 1: the disk of this machine is gone" in errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_an_error_amid_the_export_ends_all_and_the_same_command_exports(
    world, double, tmp_path, number
):
    """The other process waits in the gathering of the next parameter."""
    command = arguments(world, tmp_path / "run", "fsdp")
    script = tmp_path / "fail.py"
    script.write_text(FAIL_IN_EXPORT % number)
    with launch(command, command, script=script) as started:
        statuses, _, errors = started.end(HEARTBEAT + 240)
    assert statuses[number] == 1 and statuses[1 - number] not in (0, None)
    assert "no space left" in errors[number].lower()
    assert not (tmp_path / "run" / "best").exists()
    with launch(command, command) as started:
        statuses, _, errors = started.end()
    assert statuses == [0, 0], errors
    assert_close(tmp_path / "run", double("fsdp")[0], atol=0)
    assert not list((tmp_path / "run").glob("*.exporting-*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "need --coordinator"),
        (["--coordinator=here"], "is not HOST:PORT"),
        (
            ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
            "below --num_processes=2",
        ),
        (["--coordinator=here:1", "--num_processes=two"], "num_processes"),
        (["--config", "FILE", "--num_processes", "2"], "need --coordinator"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        processes.join(["train", *flags])


def test_no_cluster_is_said_in_our_words(monkeypatch):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="--distributed finds no cluster"):
        processes.join(["train", "--distributed"])


def test_one_process_agrees_with_itself():
    processes.join(["train", "--config", "FILE", "--config.optim.lr", "1"])
    with processes.agreement("the config") as facts:
        facts.append({"a": (1, None)})
    with pytest.raises(KeyError), processes.agreement("the config"):
        raise KeyError
    assert processes.is_lead() and not processes.several()
    assert [processes.lead_says(value) for value in (True, False)] == [True, False]


BUILD = """
import sys
from pathlib import Path
from jaxft.experiment.build import build
from jaxft.experiment.prepared import prepare
from jaxft.experiment.steps import devices
from jaxft.terminal.flags import parse

dump = Path(sys.argv.pop(1))
_, config = parse(["build", *sys.argv[1:]], (), with_config=True)
run, state = build(prepare(config), devices(config), cache=None)
dump.rename(dump.with_name("built"))
run.stages.compile(0, run.train_batches)
"""


@pytest.mark.slow
def test_nothing_that_is_run_before_all_agree_needs_the_other_processes(world, tmp_path):
    """A process that failed would leave them waiting. The step itself, which has such, is seen here."""
    flags = [flag for flag in arguments(world, tmp_path, "fsdp") if "workdir" not in flag]
    dump = f"{os.environ['XLA_FLAGS']} --xla_dump_to={tmp_path}/step --xla_dump_hlo_as_text"
    subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path / "step", *flags], cwd=ROOT, check=True, timeout=300,
        env={**environment(4), "XLA_FLAGS": dump},
    )  # fmt: skip
    for name, waits in (("built", False), ("step", True)):
        programs = list((tmp_path / name).glob("*after_optimizations.txt"))
        waiting = [path for path in programs if COLLECTIVE.search(path.read_text())]
        assert programs and bool(waiting) == waits, waiting
